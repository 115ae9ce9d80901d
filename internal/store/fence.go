package store

import (
	"context"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/shard"
)

// The advisory lock makes the writers that come next wait behind this one; see
// apply.sql.
const raiseSQL = `
WITH queued AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))
)
INSERT INTO trestle_fence AS f (shard, epoch, owner)
SELECT $1::text, $3::bigint + 1, $2::text
FROM queued
ON CONFLICT (shard) DO UPDATE
SET epoch = greatest(f.epoch, $3::bigint) + 1, owner = excluded.owner, updated_at = now()
RETURNING f.epoch, f.generation`

// Raise begins a new epoch of a shard for this owner, above both the stored
// one and the one given. It waits until the batches under way of the epoch
// before are committed; those that come later are refused.
//
// After an error the epoch may have begun nevertheless. Raising again is safe.
func (s *Store) Raise(ctx context.Context, id shard.ID, owner string, above shard.Epoch) (fence shard.Fence, err error) {
	defer s.metrics.done("raise", time.Now(), &err)
	if !id.Valid() || owner == "" {
		return shard.Fence{}, fmt.Errorf("raise the fence of %q for %q: both must be named", id, owner)
	}
	fence = shard.Fence{Shard: id, Owner: owner}
	err = s.pool.QueryRow(ctx, raiseSQL, id.String(), owner, int64(above)).Scan(&fence.Epoch, &fence.Generation)
	if err != nil {
		return shard.Fence{}, fmt.Errorf("raise the fence of %s: %w", id, err)
	}
	return fence, nil
}
