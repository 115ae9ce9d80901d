package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/status"
)

// Poison is a change that the database refused for its own sake.
type Poison struct {
	Instance status.InstanceID
	Cluster  string
	Kind     status.Kind
	Version  uint64
	// Hash tells this change from others of the instance.
	Hash uint64
	Fault
	// At is when it was last refused.
	At time.Time
	// Times counts the refusals. Quarantine adds one.
	Times int64
}

const quarantineSQL = `
INSERT INTO trestle_quarantine AS q (instance_id, hash, cluster, kind, status_version, sqlstate, reason, first_seen, last_seen)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
ON CONFLICT (instance_id, hash) DO UPDATE
SET cluster = excluded.cluster, kind = excluded.kind, status_version = excluded.status_version, sqlstate = excluded.sqlstate,
    reason = excluded.reason, last_seen = excluded.last_seen, times = q.times + 1`

// Quarantine records changes, in one commit.
func (s *Store) Quarantine(ctx context.Context, poisons []Poison) (err error) {
	if len(poisons) == 0 {
		return nil
	}
	defer s.metrics.done("quarantine", time.Now(), &err)
	var batch pgx.Batch
	for _, p := range poisons {
		// Hashes use all 64 bits; only that they are the same counts.
		batch.Queue(quarantineSQL, [16]byte(p.Instance), int64(p.Hash), p.Cluster, string(p.Kind), toStored(p.Version), p.SQLState, p.Reason, p.At)
	}
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("quarantine %d changes: %w", len(poisons), err)
	}
	return nil
}

const quarantinedSQL = `
SELECT instance_id, hash, cluster, kind, status_version, sqlstate, reason, last_seen, times
FROM trestle_quarantine
WHERE cluster = $1
ORDER BY last_seen DESC
LIMIT $2`

// maxQuarantined bounds what is read of a cluster's quarantine. What is not
// read is refused once more.
const maxQuarantined = 10_000

// Quarantined gives the changes of a cluster that were refused, the newest
// 10,000, the last refused first.
func (s *Store) Quarantined(ctx context.Context, cluster string) ([]Poison, error) {
	return s.LastQuarantined(ctx, cluster, maxQuarantined)
}

// LastQuarantined gives the changes of a cluster that were refused last, the
// last one first.
func (s *Store) LastQuarantined(ctx context.Context, cluster string, limit int) (poisons []Poison, err error) {
	defer s.metrics.done("quarantined", time.Now(), &err)
	rows, err := s.pool.Query(ctx, quarantinedSQL, cluster, limit)
	if err == nil {
		poisons, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Poison, error) {
			var p Poison
			var hash, version int64
			err := row.Scan((*[16]byte)(&p.Instance), &hash, &p.Cluster, &p.Kind, &version, &p.SQLState, &p.Reason, &p.At, &p.Times)
			p.Hash, p.Version, p.At = uint64(hash), fromStored(version), p.At.UTC()
			return p, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read the quarantine of %s: %w", cluster, err)
	}
	return poisons, nil
}

// QuarantineCount is how many changes of a cluster were refused.
type QuarantineCount struct {
	Cluster string
	Changes int64
	Last    time.Time
}

const quarantineCountsSQL = `
SELECT cluster, count(*), max(last_seen)
FROM trestle_quarantine
GROUP BY cluster
ORDER BY max(last_seen) DESC
LIMIT $1`

// maxQuarantineCounts bounds how many clusters are told.
const maxQuarantineCounts = 1000

// QuarantineCounts gives, for the 1,000 clusters a change of which was refused
// last, how many were; the last refused first.
func (s *Store) QuarantineCounts(ctx context.Context) (counts []QuarantineCount, err error) {
	defer s.metrics.done("quarantine_counts", time.Now(), &err)
	rows, err := s.pool.Query(ctx, quarantineCountsSQL, maxQuarantineCounts)
	if err == nil {
		counts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (QuarantineCount, error) {
			var c QuarantineCount
			err := row.Scan(&c.Cluster, &c.Changes, &c.Last)
			c.Last = c.Last.UTC()
			return c, err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("count what is in quarantine: %w", err)
	}
	return counts, nil
}
