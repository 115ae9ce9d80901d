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

// Quarantine, as operators look at it.

// QuarantineFilter says which refused changes are meant; empty fields are all.
type QuarantineFilter struct {
	Cluster  string
	Instance *status.InstanceID
}

// QuarantinedChange is a change in quarantine, and what its row has come to.
type QuarantinedChange struct {
	Poison
	// First is when it was refused first.
	First time.Time
	// HasRow says that there is a row, which is at version Stored.
	HasRow bool
	Stored uint64
}

// Past says that the row is beyond the change: nothing is lacking.
func (c *QuarantinedChange) Past() bool { return c.HasRow && c.Version > 0 && c.Stored > c.Version }

const listQuarantineSQL = `
SELECT q.instance_id, q.hash, q.cluster, q.kind, q.status_version, q.sqlstate, q.reason, q.first_seen, q.last_seen, q.times,
       i.status_version, count(*) OVER ()
FROM trestle_quarantine q
LEFT JOIN workspace_instance i ON i.id = q.instance_id
WHERE ($1 = '' OR q.cluster = $1) AND ($2::uuid IS NULL OR q.instance_id = $2)
ORDER BY q.last_seen DESC, q.instance_id, q.hash
LIMIT $3`

// ListQuarantine gives changes that were refused, the last refused first, at
// most limit, and how many there are.
func (s *Store) ListQuarantine(ctx context.Context, f QuarantineFilter, limit int) (changes []QuarantinedChange, total int64, err error) {
	defer s.metrics.done("list quarantine", time.Now(), &err)
	var instance *[16]byte
	if f.Instance != nil {
		instance = (*[16]byte)(f.Instance)
	}
	rows, err := s.pool.Query(ctx, listQuarantineSQL, f.Cluster, instance, limit)
	if err == nil {
		changes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (QuarantinedChange, error) {
			var c QuarantinedChange
			var hash, version int64
			var stored *int64
			err := row.Scan((*[16]byte)(&c.Instance), &hash, &c.Cluster, &c.Kind, &version, &c.SQLState, &c.Reason,
				&c.First, &c.At, &c.Times, &stored, &total)
			c.Hash, c.Version, c.First, c.At = uint64(hash), fromStored(version), c.First.UTC(), c.At.UTC()
			if stored != nil {
				c.HasRow, c.Stored = true, fromStored(*stored)
			}
			return c, err
		})
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list the quarantine: %w", err)
	}
	return changes, total, nil
}

const dropQuarantineSQL = `
DELETE FROM trestle_quarantine q
USING unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS d (instance_id, hash, times)
WHERE q.instance_id = d.instance_id AND q.hash = d.hash AND q.times = d.times`

// DropQuarantine removes these changes, but for those that were refused again
// since they were read, and says how many it removed.
func (s *Store) DropQuarantine(ctx context.Context, changes []QuarantinedChange) (dropped int64, err error) {
	if len(changes) == 0 {
		return 0, nil
	}
	defer s.metrics.done("drop quarantine", time.Now(), &err)
	ids, hashes, times := make([][16]byte, len(changes)), make([]int64, len(changes)), make([]int64, len(changes))
	for i, c := range changes {
		ids[i], hashes[i], times[i] = c.Instance, int64(c.Hash), c.Times
	}
	tag, err := s.pool.Exec(ctx, dropQuarantineSQL, ids, hashes, times)
	if err != nil {
		return 0, fmt.Errorf("drop %d changes from the quarantine: %w", len(changes), err)
	}
	return tag.RowsAffected(), nil
}
