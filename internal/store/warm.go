package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Warm opens the connections for batches and has the database plan on each of them
// every statement that a batch may need, which takes it some 30 ms a connection.
// Otherwise the first batches wait for it: those just after a hand-over. It begins
// nothing more once that has taken as long as limit. It writes nothing; after an
// error the store works as well, but begins slowly.
func (s *Store) Warm(ctx context.Context, limit time.Duration) (err error) {
	begun := time.Now()
	defer s.metrics.done("warm", begun, &err)
	// All at once, so that they are different ones.
	for range s.writers.Config().MaxConns {
		conn, err := s.writers.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer conn.Release()
		if err := s.warm(ctx, conn, begun.Add(limit)); err != nil {
			return fmt.Errorf("plan statements ahead: %w", err)
		}
	}
	return nil
}

// warm executes the statements with nothing to do, until a time.
func (s *Store) warm(ctx context.Context, conn *pgxpool.Conn, until time.Time) error {
	arrays := newEntryArrays()
	none := func() [][]byte {
		fences, _ := encodeFences(nil)
		return fences
	}
	inputs := []input{s.rowsInput(Batch{}, none(), arrays)}
	for _, parts := range applyVariants {
		arrays.needs = parts
		inputs = append(inputs, s.statementInput(Batch{}, none(), arrays))
	}
	for _, in := range inputs {
		if !time.Now().Before(until) {
			return nil
		}
		if _, err := in.execute(ctx, conn.Conn(), 0); err != nil {
			return err
		}
	}
	return nil
}
