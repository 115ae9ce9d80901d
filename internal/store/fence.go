package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/shard"
)

// A raise is a pipeline of statements, which is one transaction: each sees what
// was committed before it began, so what is read after a lock was waited for is
// what the lock's last holder left. It does not wait for the disk, as the first
// batch that is written under the fence does for both: a fence that is lost when
// PostgreSQL crashes before that refuses the batch, and is raised again.
const (
	// Cuts keep raises of the same cluster out, and raises the writers that
	// come next, which would otherwise pass a waiting update; see apply.sql.
	// The seed keeps a cluster's lock apart from that of the shard of its name.
	raiseLockSQL = `
SELECT pg_advisory_xact_lock_shared(hashtextextended($1::text, 1)), pg_advisory_xact_lock(hashtextextended($2::text, 0))`

	raiseSQL = `
INSERT INTO trestle_fence AS f (shard, cluster, epoch, owner, generation)
SELECT $1::text, $2::text, $3::bigint, $4::text, $5::bigint
WHERE NOT EXISTS (SELECT FROM trestle_cut c WHERE c.cluster = $2::text AND c.generation > $5::bigint)
ON CONFLICT (shard) DO UPDATE
SET epoch = excluded.epoch, owner = excluded.owner, generation = excluded.generation, cluster = excluded.cluster, updated_at = now()
WHERE f.epoch < excluded.epoch OR f.epoch = excluded.epoch AND f.owner = excluded.owner`

	holderSQL = `
SELECT coalesce(f.epoch, 0), coalesce(f.owner, ''), greatest(f.generation, c.generation, 0)
FROM (VALUES ($1::text, $2::text)) AS asked (shard, cluster)
LEFT JOIN trestle_fence f ON f.shard = asked.shard
LEFT JOIN trestle_cut c ON c.cluster = asked.cluster`
)

// Raise makes a fence the one that holds, if its epoch is above the stored one,
// or is the stored one and its owner's already, and its generation is not below
// the cluster's. It waits until the batches under way of the fence before are
// committed; those that come later are refused.
//
// It returns the fence that holds then, with the generation of the cluster if
// that is higher: another than the given one means that this one was refused.
// After an error it may have been raised nevertheless. Raising again is safe.
func (s *Store) Raise(ctx context.Context, fence shard.Fence) (holds shard.Fence, err error) {
	defer s.metrics.done("raise", time.Now(), &err)
	if !fence.Shard.Valid() || fence.Owner == "" || fence.Epoch <= 0 {
		return shard.Fence{}, fmt.Errorf("raise the fence of %q to epoch %d for %q: shard and owner must be named, and the epoch positive", fence.Shard, fence.Epoch, fence.Owner)
	}
	name, cluster := fence.Shard.String(), fence.Shard.Cluster
	holds = shard.Fence{Shard: fence.Shard}
	var batch pgx.Batch
	batch.Queue(lazySQL)
	batch.Queue(raiseLockSQL, cluster, name)
	batch.Queue(raiseSQL, name, cluster, int64(fence.Epoch), fence.Owner, fence.Generation)
	batch.Queue(holderSQL, name, cluster).QueryRow(func(row pgx.Row) error {
		return row.Scan(&holds.Epoch, &holds.Owner, &holds.Generation)
	})
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return shard.Fence{}, fmt.Errorf("raise the fence of %s: %w", fence.Shard, err)
	}
	return holds, nil
}

// holdsSQL says whether one fence is held.
const holdsSQL = `SELECT EXISTS (SELECT FROM trestle_fence f WHERE f.shard = $1 AND f.epoch = $2 AND f.owner = $3)`

const checkFencesSQL = `
SELECT p.shard
FROM unnest($1::text[], $2::bigint[], $3::text[]) AS p (shard, epoch, owner)
WHERE NOT EXISTS (
    SELECT FROM trestle_fence f WHERE f.shard = p.shard AND f.epoch = p.epoch AND f.owner = p.owner
)`

// CheckFences gives ErrFenced unless all these fences are held: under their epochs,
// and by their owners.
func (s *Store) CheckFences(ctx context.Context, fences []shard.Fence) (err error) {
	defer s.metrics.done("check fences", time.Now(), &err)
	shards, epochs, owners := make([]string, len(fences)), make([]int64, len(fences)), make([]string, len(fences))
	for i, fence := range fences {
		shards[i], epochs[i], owners[i] = fence.Shard.String(), int64(fence.Epoch), fence.Owner
	}
	rows, err := s.pool.Query(ctx, checkFencesSQL, shards, epochs, owners)
	if err != nil {
		return fmt.Errorf("check %d fences: %w", len(fences), err)
	}
	lost, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		return fmt.Errorf("check %d fences: %w", len(fences), err)
	case len(lost) > 0:
		return fmt.Errorf("check %d fences: %w: %s", len(fences), ErrFenced, strings.Join(lost, ", "))
	}
	return nil
}

// Known is what the database knows of how a cluster is carried.
type Known struct {
	// Slices and Generation are those of the last Cut; 1 and 0 if there was
	// none.
	Slices     int
	Generation int64
	// Fences are the last ones of its shards, those of former cuts included.
	// A fence that a cut has ended has no owner.
	Fences []shard.Fence
}

// Known gives what the database knows of these clusters, by name; those that it
// knows nothing of are missing.
func (s *Store) Known(ctx context.Context, clusters []string) (known map[string]Known, err error) {
	defer s.metrics.done("known", time.Now(), &err)
	known = make(map[string]Known)
	of := func(cluster string) Known {
		if k, ok := known[cluster]; ok {
			return k
		}
		return Known{Slices: 1}
	}
	var batch pgx.Batch
	batch.Queue(`SELECT c.cluster, c.generation, c.slices FROM trestle_cut c WHERE c.cluster = ANY ($1::text[])`, clusters).
		Query(func(rows pgx.Rows) error {
			var cluster string
			var generation int64
			var slices int
			_, err := pgx.ForEachRow(rows, []any{&cluster, &generation, &slices}, func() error {
				known[cluster] = Known{Slices: slices, Generation: generation}
				return nil
			})
			return err
		})
	batch.Queue(`SELECT f.cluster, f.shard, f.epoch, f.owner, f.generation FROM trestle_fence f
		WHERE f.cluster = ANY ($1::text[]) AND f.shard <> ''`, clusters).
		Query(func(rows pgx.Rows) error {
			var cluster, name string
			var fence shard.Fence
			_, err := pgx.ForEachRow(rows, []any{&cluster, &name, &fence.Epoch, &fence.Owner, &fence.Generation}, func() error {
				var err error
				if fence.Shard, err = shard.ParseID(name); err != nil {
					return err
				}
				k := of(cluster)
				k.Fences = append(k.Fences, fence)
				known[cluster] = k
				return nil
			})
			return err
		})
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("read the fences of %d clusters: %w", len(clusters), err)
	}
	return known, nil
}

const (
	cutLockSQL = `SELECT pg_advisory_xact_lock(hashtextextended($1::text, 1))`

	// In the order of writers, who claim several shards at once.
	cutQueueSQL = `
SELECT pg_advisory_xact_lock(hashtextextended(f.shard, 0))
FROM (
    SELECT f.shard
    FROM trestle_fence f
    WHERE f.cluster = $1 AND f.generation < $2
    ORDER BY f.shard COLLATE "C"
) f`

	// The generation decides, whoever else cuts meanwhile: a fence is ended
	// only by a cut that is the last one.
	cutSQL = `
INSERT INTO trestle_cut AS c (cluster, generation, slices)
VALUES ($1, $2, $3)
ON CONFLICT (cluster) DO UPDATE
SET generation = excluded.generation, slices = excluded.slices, updated_at = now()
WHERE c.generation < excluded.generation`

	cutFencesSQL = `
UPDATE trestle_fence f
SET owner = '', generation = c.generation, updated_at = now()
FROM trestle_cut c
WHERE c.cluster = $1 AND c.generation = $2 AND f.cluster = $1 AND f.generation < $2`
)

// Cut notes that a cluster has so many slices from this generation on, and ends
// all its fences of lower ones: it waits until the batches under way are
// committed, and later ones are refused. A generation that is not above the
// cluster's changes nothing. After an error it may have happened nevertheless;
// cutting again is safe.
func (s *Store) Cut(ctx context.Context, cluster string, generation int64, slices int) (err error) {
	defer s.metrics.done("cut", time.Now(), &err)
	if cluster == "" || generation <= 0 || slices < 1 || slices > shard.MaxSlices {
		return fmt.Errorf("cut %q into %d slices in generation %d: the cluster must be named, slices be from 1 to %d, and the generation positive", cluster, slices, generation, shard.MaxSlices)
	}
	var batch pgx.Batch
	batch.Queue(cutLockSQL, cluster)
	batch.Queue(cutQueueSQL, cluster, generation)
	batch.Queue(cutSQL, cluster, generation, slices)
	batch.Queue(cutFencesSQL, cluster, generation)
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("cut %s into %d slices: %w", cluster, slices, err)
	}
	return nil
}
