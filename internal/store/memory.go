package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// keepMemorySQL has lpad take a block of 8 MiB, of which it fills a quarter, and free
// it. From then on glibc takes blocks up to that size from the heap, and keeps twice
// as much of it free. The time limit of statements is not meant for this one.
const keepMemorySQL = `
BEGIN;
SET LOCAL statement_timeout = 0;
SELECT length(lpad('', 2097152));
COMMIT`

// keepMemory has the process of PostgreSQL behind a connection keep the memory that a
// batch takes, some megabytes, for the next one. It would otherwise give it back to
// the system after each, and pay for every page again. With another C library it
// does nothing.
func keepMemory(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.PgConn().Exec(ctx, keepMemorySQL).ReadAll(); err != nil {
		return fmt.Errorf("have a connection for batches keep its memory: %w", err)
	}
	return nil
}
