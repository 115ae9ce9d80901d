package store

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Planned gives for each connection, those for batches first, how many statements
// the database has planned on it.
func (s *Store) Planned(ctx context.Context) (planned []int, err error) {
	pools := []*pgxpool.Pool{s.writers, s.pool}
	if s.writers == s.pool {
		pools = pools[1:]
	}
	var conns []*pgxpool.Conn
	for _, pool := range pools {
		for range pool.Config().MaxConns {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Release()
			conns = append(conns, conn)
		}
	}
	for _, conn := range conns {
		var n int
		err = conn.QueryRow(ctx, `SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'trestle\_apply\_%' AND generic_plans > 0`).Scan(&n)
		if err != nil {
			return nil, err
		}
		planned = append(planned, n)
	}
	return planned, nil
}
