package store

import (
	"context"
	"encoding/json"
	"fmt"
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

// OutboxRow is a row of the outbox.
type OutboxRow struct {
	Ref OutboxRef
	// CreatedAt is zero in the rows of a Commit.
	CreatedAt time.Time
	Events    event.Set
}

const outboxSQL = `
SELECT shard, epoch, owner, lane, seq, created_at, payload
FROM trestle_outbox
WHERE shard = $1
ORDER BY epoch, seq, lane, owner
LIMIT $2`

// Outbox gives the oldest rows of a shard's outbox, whoever wrote them: epoch
// after epoch and, within one, in the order of the commits in each lane.
func (s *Store) Outbox(ctx context.Context, id shard.ID, limit int) (out []OutboxRow, err error) {
	defer s.metrics.done("outbox", time.Now(), &err)
	rows, err := s.pool.Query(ctx, outboxSQL, id.String(), limit)
	if err == nil {
		out, err = pgx.CollectRows(rows, scanOutbox)
	}
	if err != nil {
		return nil, fmt.Errorf("read the outbox of %s: %w", id, err)
	}
	return out, nil
}

func scanOutbox(row pgx.CollectableRow) (OutboxRow, error) {
	var out OutboxRow
	var name string
	var payload []byte
	if err := row.Scan(&name, &out.Ref.Epoch, &out.Ref.Owner, &out.Ref.Lane, &out.Ref.Seq, &out.CreatedAt, &payload); err != nil {
		return OutboxRow{}, err
	}
	var err error
	if out.Ref.Shard, err = shard.ParseID(name); err != nil {
		return OutboxRow{}, err
	}
	if err := json.Unmarshal(payload, &out.Events); err != nil {
		return OutboxRow{}, fmt.Errorf("decode what %s has to tell: %w", name, err)
	}
	return out, nil
}

// By its place, since the planner knows the size of neither side: see
// apply.sql.
const deleteOutboxSQL = `
DELETE FROM trestle_outbox o
USING unnest($1::text[], $2::int[], $3::bigint[], $4::text[]) AS p (owner, lane, seq, shard)
CROSS JOIN LATERAL (
    SELECT k.ctid AS place
    FROM trestle_outbox k
    WHERE k.owner = p.owner AND k.lane = p.lane AND k.seq = p.seq AND k.shard = p.shard
    LIMIT 1
) found
WHERE o.ctid = found.place`

// DeleteOutbox deletes rows that have been published; rows that are gone are
// none of its concern. It does not wait for the disk: a delete that is lost
// makes a publish come again, no more.
func (s *Store) DeleteOutbox(ctx context.Context, refs []OutboxRef) (err error) {
	if len(refs) == 0 {
		return nil
	}
	defer s.metrics.done("delete outbox", time.Now(), &err)
	owners, lanes := make([]string, len(refs)), make([]int32, len(refs))
	seqs, shards := make([]int64, len(refs)), make([]string, len(refs))
	for i, ref := range refs {
		owners[i], lanes[i], seqs[i], shards[i] = ref.Owner, int32(ref.Lane), ref.Seq, ref.Shard.String()
	}
	// A pipeline of two is one transaction and one round trip.
	var batch pgx.Batch
	batch.Queue("SET LOCAL synchronous_commit = off")
	batch.Queue(deleteOutboxSQL, owners, lanes, seqs, shards)
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
