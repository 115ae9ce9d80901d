package store

import "context"

// Planned gives for each of so many connections how many statements the database
// has planned on it.
func (s *Store) Planned(ctx context.Context, connections int) (planned []int, err error) {
	for range connections {
		conn, err := s.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Release()
		var n int
		err = conn.QueryRow(ctx, `SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'trestle\_apply\_%' AND generic_plans > 0`).Scan(&n)
		if err != nil {
			return nil, err
		}
		planned = append(planned, n)
	}
	return planned, nil
}
