package store

import (
	"bytes"
	"context"
	_ "embed" // sweep_stop.sql
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/shard"
)

//go:embed sweep_stop.sql
var stopSQL string

// StopLimit is how many rows one statement stops at most.
const StopLimit = 500

// Stop is an order to stop rows that nobody else will stop.
type Stop struct {
	// Leader is what the one who orders claims to hold; see RaiseLeader.
	Leader shard.Fence
	// Seq names, with the fence, the row of the outbox. It is never used
	// twice in a term.
	Seq int64
	// Region is that of all the rows.
	Region string
	// Deregistered: only while the region is that of a cluster that was
	// deregistered and not registered again.
	Deregistered bool
	// Instances are the rows as they were read, each at most once, StopLimit
	// at most.
	Instances []OpenInstance
}

// Stopped is what a Stop has done.
type Stopped struct {
	// Instances are the rows that were stopped, as they were before, ordered
	// by their ids. The others have moved on.
	Instances []OpenInstance
	// Outbox is the row that was written to the outbox. Its events are empty,
	// and there is no row, if nothing was stopped.
	Outbox OutboxRow
	// Lifecycle counts the events for analytics that were recorded.
	Lifecycle int
}

// StopInstances stops those rows that are still as they were read: version,
// phase and region. Their tokens are deleted, their prebuilds aborted unless
// they have ended, and what there is to publish is recorded, all in one commit
// that is only made while the leader's fence is held; otherwise the error
// wraps ErrNotLeader and nothing has changed.
//
// After another error the rows may have been stopped nevertheless, if the
// connection broke before the answer. Ordering the same again is safe.
func (s *Store) StopInstances(ctx context.Context, order Stop) (stopped Stopped, err error) {
	if len(order.Instances) == 0 {
		return Stopped{}, nil
	}
	defer s.metrics.done("stop instances", time.Now(), &err)
	if len(order.Instances) > StopLimit {
		return Stopped{}, fmt.Errorf("stop %d instances at once: the limit is %d", len(order.Instances), StopLimit)
	}
	// Locks are taken in this order, so it is the same for everybody.
	instances := slices.Clone(order.Instances)
	slices.SortFunc(instances, compareOpen)
	ids, versions, phases := make([][16]byte, len(instances)), make([]int64, len(instances)), make([]string, len(instances))
	read := make(map[status.InstanceID]OpenInstance, len(instances))
	for i, instance := range instances {
		ids[i], versions[i], phases[i] = instance.ID, toStored(instance.Version), string(instance.Phase)
		read[instance.ID] = instance
	}
	if len(read) != len(instances) {
		return Stopped{}, fmt.Errorf("stop %d instances: one of them is there twice", len(instances))
	}
	rows, err := s.pool.Query(ctx, stopSQL, leaderShard, int64(order.Leader.Epoch), order.Leader.Owner,
		order.Deregistered, order.Region, ids, versions, phases, s.lifecycle, order.Seq)
	if err != nil {
		return Stopped{}, fmt.Errorf("stop %d instances of %q: %w", len(instances), order.Region, err)
	}
	leads := false
	var told event.Set
	var kind int
	var leading *bool
	var id *[16]byte
	var phase, owner, workspace, project, organization *string
	_, err = pgx.ForEachRow(rows, []any{&kind, &leading, &id, &phase, &owner, &workspace, &project, &organization}, func() error {
		switch kind {
		case 0:
			leads = *leading
		case 1:
			stopped.Instances = append(stopped.Instances, read[*id])
			told.Instances = append(told.Instances, event.Instance{
				OwnerID: *owner, InstanceID: status.InstanceID(*id).String(), WorkspaceID: *workspace,
			})
		case 2:
			told.Prebuilds = append(told.Prebuilds, event.Prebuild{
				Status: string(status.PrebuildAborted), PrebuildID: status.InstanceID(*id).String(), WorkspaceID: *workspace,
				ProjectID: *project, OrganizationID: *organization,
			})
			told.Headless = append(told.Headless, event.Headless{Type: string(status.HeadlessAborted), WorkspaceID: *workspace})
		}
		return nil
	})
	if err == nil && !leads {
		err = ErrNotLeader
	}
	if err != nil {
		return Stopped{}, fmt.Errorf("stop %d instances of %q: %w", len(instances), order.Region, err)
	}
	if s.lifecycle {
		stopped.Lifecycle = len(stopped.Instances)
	}
	stopped.Outbox = OutboxRow{
		Ref:    OutboxRef{Epoch: order.Leader.Epoch, Owner: order.Leader.Owner, Seq: order.Seq},
		Events: told,
	}
	return stopped, nil
}

func compareOpen(a, b OpenInstance) int { return bytes.Compare(a.ID[:], b.ID[:]) }

const outboxShardsSQL = `
SELECT o.shard
FROM trestle_outbox o
WHERE o.created_at < now() - $1::interval
GROUP BY o.shard
ORDER BY o.shard`

// OutboxShards names the shards that have rows in the outbox older than this.
// The zero ID stands for the leader.
func (s *Store) OutboxShards(ctx context.Context, older time.Duration) (ids []shard.ID, err error) {
	defer s.metrics.done("outbox shards", time.Now(), &err)
	rows, err := s.pool.Query(ctx, outboxShardsSQL, older)
	if err == nil {
		ids, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (shard.ID, error) {
			var name string
			if err := row.Scan(&name); err != nil || name == leaderShard {
				return shard.ID{}, err
			}
			return shard.ParseID(name)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read which shards have rows in the outbox: %w", err)
	}
	return ids, nil
}

// The order, and what is told, are those of outboxSQL. The name is that of the
// reader's choice: the leader's would not be read as that of a shard.
const orphansSQL = `
SELECT '-' AS shard, o.epoch, o.owner, o.lane, o.seq, o.created_at, told.instances, o.prebuilds
FROM (
    SELECT shard, epoch, owner, lane, seq, created_at, instances, prebuilds
    FROM trestle_outbox
    WHERE shard = $1 AND created_at < now() - $2::interval
    ORDER BY epoch, seq, lane, owner
    LIMIT $3
) o
LEFT JOIN LATERAL (
    SELECT json_agg(json_build_object('ownerID', coalesce(w.owner_id, ''), 'instanceID', i.id, 'workspaceID', i.workspace_id)
        ORDER BY u.ordinal) AS instances
    FROM unnest(o.instances) WITH ORDINALITY AS u (id, ordinal)
    JOIN workspace_instance i ON i.id = u.id
    LEFT JOIN workspace w ON w.id = i.workspace_id
) told ON true
ORDER BY o.epoch, o.seq, o.lane, o.owner`

// OrphanedOutbox gives the oldest rows of a shard's outbox that are older than
// this, in the order of Outbox. The zero ID stands for the leader.
func (s *Store) OrphanedOutbox(ctx context.Context, id shard.ID, older time.Duration, limit int) (out []OutboxRow, err error) {
	defer s.metrics.done("orphaned outbox", time.Now(), &err)
	rows, err := s.pool.Query(ctx, orphansSQL, id.String(), older, limit)
	if err == nil {
		out, err = pgx.CollectRows(rows, scanOutbox)
	}
	if err != nil {
		return nil, fmt.Errorf("read what is left in the outbox of %q: %w", id, err)
	}
	for i := range out {
		out[i].Ref.Shard = id
	}
	return out, nil
}
