package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/shard"
)

// OutboxRef names a row of the outbox: what one batch has to tell of one shard.
type OutboxRef struct {
	Shard shard.ID
	Epoch shard.Epoch
	Owner string
	Lane  int
	Seq   int64
}

// sortedRefs gives references in the order in which everybody deletes them, so
// that two who delete the same rows do not deadlock.
func sortedRefs(refs []OutboxRef) []OutboxRef {
	sorted := slices.Clone(refs)
	slices.SortFunc(sorted, func(a, b OutboxRef) int {
		return cmp.Or(a.Shard.Compare(b.Shard), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq),
			cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Owner, b.Owner))
	})
	return sorted
}

// OutboxRow is a row of the outbox.
type OutboxRow struct {
	Ref OutboxRef
	// CreatedAt is zero in the rows of a Commit.
	CreatedAt time.Time
	Events    event.Set
}

const outboxSQL = `
SELECT o.shard, o.epoch, o.owner, o.lane, o.seq, o.created_at, told.instances, o.prebuilds
FROM (
    SELECT shard, epoch, owner, lane, seq, created_at, instances, prebuilds
    FROM trestle_outbox
    WHERE shard = $1
    ORDER BY epoch, seq, lane, owner
    LIMIT $2
) o
LEFT JOIN LATERAL (
    SELECT json_agg(json_build_object('ownerID', coalesce(w.owner_id, ''), 'instanceID', i.id, 'workspaceID', i.workspace_id)
        ORDER BY u.ordinal) AS instances
    FROM unnest(o.instances) WITH ORDINALITY AS u (id, ordinal)
    JOIN workspace_instance i ON i.id = u.id
    LEFT JOIN workspace w ON w.id = i.workspace_id
) told ON true
ORDER BY o.epoch, o.seq, o.lane, o.owner`

// ErrFenced is the error of one who does not hold a shard's fence.
var ErrFenced = errors.New("another owner holds the shard's fence")

// Outbox gives the oldest rows of a shard's outbox, whoever wrote them, to who
// holds the shard's fence: epoch after epoch and, within one, in the order of the
// commits in each lane. To others it says ErrFenced: what they would publish
// might come after something newer of the owner's.
func (s *Store) Outbox(ctx context.Context, fence shard.Fence, limit int) (out []OutboxRow, err error) {
	defer s.metrics.done("outbox", time.Now(), &err)
	var holds bool
	var batch pgx.Batch
	batch.Queue(holdsSQL, fence.Shard.String(), int64(fence.Epoch), fence.Owner).QueryRow(func(row pgx.Row) error { return row.Scan(&holds) })
	batch.Queue(outboxSQL, fence.Shard.String(), limit).Query(func(rows pgx.Rows) error {
		var err error
		out, err = pgx.CollectRows(rows, scanOutbox)
		return err
	})
	err = s.pool.SendBatch(ctx, &batch).Close()
	if err == nil && !holds {
		err = ErrFenced
	}
	if err != nil {
		return nil, fmt.Errorf("read the outbox of %s: %w", fence.Shard, err)
	}
	return out, nil
}

func scanOutbox(row pgx.CollectableRow) (OutboxRow, error) {
	var out OutboxRow
	var name string
	var instances, prebuilds []byte
	if err := row.Scan(&name, &out.Ref.Epoch, &out.Ref.Owner, &out.Ref.Lane, &out.Ref.Seq, &out.CreatedAt, &instances, &prebuilds); err != nil {
		return OutboxRow{}, err
	}
	var err error
	if out.Ref.Shard, err = shard.ParseID(name); err != nil {
		return OutboxRow{}, err
	}
	if instances != nil {
		if err := json.Unmarshal(instances, &out.Events.Instances); err != nil {
			return OutboxRow{}, fmt.Errorf("decode the instances of %s: %w", name, err)
		}
	}
	if prebuilds != nil {
		var told []struct {
			event.Prebuild
			Headless string `json:"headless"`
		}
		if err := json.Unmarshal(prebuilds, &told); err != nil {
			return OutboxRow{}, fmt.Errorf("decode the prebuilds of %s: %w", name, err)
		}
		for _, p := range told {
			out.Events.Prebuilds = append(out.Events.Prebuilds, p.Prebuild)
			out.Events.Headless = append(out.Events.Headless, event.Headless{Type: p.Headless, WorkspaceID: p.WorkspaceID})
		}
	}
	return out, nil
}

// By its place, since the planner knows the size of neither side: see
// apply.sql.
const deleteOutboxSQL = `
DELETE FROM trestle_outbox o
USING unnest($1::text[], $2::bigint[], $3::bigint[], $4::int[], $5::text[]) AS p (shard, epoch, seq, lane, owner)
CROSS JOIN LATERAL (
    SELECT k.ctid AS place
    FROM trestle_outbox k
    WHERE k.shard = p.shard AND k.epoch = p.epoch AND k.seq = p.seq AND k.lane = p.lane AND k.owner = p.owner
    LIMIT 1
) found
WHERE o.ctid = found.place`

// lazySQL lets its transaction commit without waiting for the disk.
const lazySQL = `SELECT set_config('synchronous_commit', 'off', true)`

// DeleteOutbox deletes rows that have been published; rows that are gone are
// none of its concern. It does not wait for the disk: a delete that is lost
// makes a publish come again, no more.
func (s *Store) DeleteOutbox(ctx context.Context, refs []OutboxRef) (err error) {
	if len(refs) == 0 {
		return nil
	}
	defer s.metrics.done("delete outbox", time.Now(), &err)
	shards, owners := make([]string, len(refs)), make([]string, len(refs))
	epochs, seqs, lanes := make([]int64, len(refs)), make([]int64, len(refs)), make([]int32, len(refs))
	for i, ref := range sortedRefs(refs) {
		shards[i], owners[i] = ref.Shard.String(), ref.Owner
		epochs[i], seqs[i], lanes[i] = int64(ref.Epoch), ref.Seq, int32(ref.Lane)
	}
	// A pipeline of two is one transaction and one round trip.
	var batch pgx.Batch
	batch.Queue(lazySQL)
	batch.Queue(deleteOutboxSQL, shards, epochs, seqs, lanes, owners)
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("delete %d published rows of the outbox: %w", len(refs), err)
	}
	return nil
}

// OutboxStats gives how many rows wait to be published, and since when the
// oldest does; the zero time if none.
func (s *Store) OutboxStats(ctx context.Context) (rows int64, oldest time.Time, err error) {
	defer s.metrics.done("outbox stats", time.Now(), &err)
	var since *time.Time
	err = s.pool.QueryRow(ctx, `SELECT count(*), min(created_at) FROM trestle_outbox`).Scan(&rows, &since)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("count the rows of the outbox: %w", err)
	}
	if since != nil {
		oldest = since.UTC()
	}
	return rows, oldest, nil
}
