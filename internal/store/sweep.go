package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/shard"
)

// The phases of an instance that no cluster knows of yet. They are written by
// others; a cluster's own phases are those of package status.
const (
	PhaseUnknown   status.Phase = "unknown"
	PhasePreparing status.Phase = "preparing"
	PhaseBuilding  status.Phase = "building"
)

// OpenInstance is a row of an instance that is not stopped, as it was read:
// what it takes to decide about it, and to find it unchanged later.
type OpenInstance struct {
	ID      status.InstanceID
	Version uint64
	Phase   status.Phase
}

// Limits say for how long an instance may be in a phase: since its creation,
// for stopping since it began to stop.
type Limits struct {
	Preparing, Building, Unknown, Pending, Stopping time.Duration
}

// Scope says which rows of a region are read.
type Scope int

// The scopes; openSQL knows their numbers.
const (
	// ScopeExpired are the rows in preparing, building or unknown beyond
	// their limit.
	ScopeExpired Scope = iota
	// ScopeDoubtful are these, and the rows that are to be stopped if their
	// cluster does not know them: running or interrupted; pending, creating
	// or initializing, or stopping, beyond their limit.
	ScopeDoubtful
	// ScopeAll are all rows that are not stopped.
	ScopeAll
)

// Two texts, since no index finds a value or null by one condition.
const (
	openSQL        = openColumnsSQL + `WHERE i.region = $1` + openConditionSQL
	openNowhereSQL = openColumnsSQL + `WHERE (i.region = $1 OR i.region IS NULL)` + openConditionSQL
)

const openColumnsSQL = `
SELECT i.id, i.status_version, i.phase
FROM workspace_instance i
`

const openConditionSQL = `
    AND i.stopped_time IS NULL
    AND i.phase <> 'stopped'
    AND (
        $2::int = 2
        OR i.phase = 'preparing' AND i.creation_time < now() - $3::interval
        OR i.phase = 'building' AND i.creation_time < now() - $4::interval
        OR i.phase = 'unknown' AND i.creation_time < now() - $5::interval
        OR $2::int = 1 AND (
            i.phase IN ('running', 'interrupted')
            OR i.phase IN ('pending', 'creating', 'initializing') AND i.creation_time < now() - $6::interval
            OR i.phase = 'stopping' AND coalesce(i.stopping_time, i.creation_time) < now() - $7::interval
        )
    )`

// openTimeout is more than other statements have: the rows of a region may be
// all that there are, and none of them in memory. PostgreSQL would obey a SET
// LOCAL in a pipeline too, but warn of it in its log each time.
const openTimeout = `SELECT set_config('statement_timeout', '2min', true)`

// OpenInstances gives the rows of a region, ordered by their ids, that are not
// stopped and in scope by these limits; ages are by the clock of the database.
// The empty region stands for rows without one, null or empty.
//
// It reads them in one go, in the order in which they lie: whoever looks for
// what is missing needs all of them at once, and in pages by id each row would
// be a page of the table to find.
func (s *Store) OpenInstances(ctx context.Context, region string, scope Scope, limits Limits) (open []OpenInstance, err error) {
	defer s.metrics.done("open instances", time.Now(), &err)
	sql := openSQL
	if region == "" {
		sql = openNowhereSQL
	}
	// A pipeline of two is one transaction and one round trip.
	var batch pgx.Batch
	batch.Queue(openTimeout)
	batch.Queue(sql, region, int(scope), limits.Preparing, limits.Building, limits.Unknown, limits.Pending, limits.Stopping).
		Query(func(rows pgx.Rows) error { return readOpen(rows, &open) })
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("read the instances of %q that are not stopped: %w", region, err)
	}
	slices.SortFunc(open, compareOpen)
	return open, nil
}

// readOpen reads rows as they come, in the binary format: the general decoder
// of the driver would leave some sixty megabytes of garbage behind a hundred
// thousand of them.
func readOpen(rows pgx.Rows, open *[]OpenInstance) error {
	for rows.Next() {
		row := fields(rows.RawValues())
		if len(row) != 3 || len(row[0]) != len(status.InstanceID{}) || len(row[1]) != 8 {
			return errors.New("a row came back in a format that was not asked for")
		}
		*open = append(*open, OpenInstance{ID: row.uuid(), Version: fromStored(row.int8()), Phase: phaseOf(row.next())})
	}
	return rows.Err()
}

// phaseOf gives the constant of a phase: many rows share few texts.
func phaseOf(phase []byte) status.Phase {
	for _, known := range [...]status.Phase{
		status.PhaseRunning, status.PhasePending, status.PhaseCreating, status.PhaseInitializing,
		status.PhaseInterrupted, status.PhaseStopping, PhaseUnknown, PhasePreparing, PhaseBuilding,
	} {
		if string(known) == string(phase) {
			return known
		}
	}
	return status.Phase(phase)
}

// CountOpen counts the rows of a region that are not stopped, in any phase.
func (s *Store) CountOpen(ctx context.Context, region string) (n int, err error) {
	defer s.metrics.done("count open instances", time.Now(), &err)
	err = s.pool.QueryRow(ctx, `
		SELECT count(*)
		FROM workspace_instance i
		WHERE i.region = $1 AND i.stopped_time IS NULL AND i.phase <> 'stopped'`, region).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the instances of %q that are not stopped: %w", region, err)
	}
	return n, nil
}

// Deregistered is a cluster that was deregistered and still has rows that are
// not stopped.
type Deregistered struct {
	Name string
	// Due: that was longer ago than the time asked for.
	Due bool
}

// A registered cluster, governed by us or not, is no such one.
const deregisteredSQL = `
SELECT d.name, d.deregistered_at < now() - $1::interval AS due
FROM trestle_deregistered_cluster d
WHERE EXISTS (
        SELECT FROM workspace_instance i
        WHERE i.region = d.name AND i.stopped_time IS NULL
    )
    AND NOT EXISTS (SELECT FROM workspace_cluster c WHERE c.name = d.name)
ORDER BY d.name`

// Deregistered gives the clusters that were deregistered and have rows that
// are not stopped, by name.
func (s *Store) Deregistered(ctx context.Context, after time.Duration) (gone []Deregistered, err error) {
	defer s.metrics.done("deregistered", time.Now(), &err)
	rows, err := s.pool.Query(ctx, deregisteredSQL, after)
	if err == nil {
		gone, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Deregistered])
	}
	if err != nil {
		return nil, fmt.Errorf("read the deregistered clusters: %w", err)
	}
	return gone, nil
}

// ErrNotLeader is the error of a leader that another one has replaced.
var ErrNotLeader = errors.New("another leader holds the fence")

// leaderShard is the name under which the leader's fence, and what it has to
// tell, are kept: that of the zero shard.ID, which no shard can have.
const leaderShard = ""

// RaiseLeader begins a new term of the leader for this owner, which ends the
// one before. It waits until the statements under way of that one are
// committed; those that come later are refused. The fence is that of the zero
// shard.
//
// After an error the term may have begun nevertheless. Raising again is safe.
func (s *Store) RaiseLeader(ctx context.Context, owner string) (fence shard.Fence, err error) {
	defer s.metrics.done("raise leader", time.Now(), &err)
	if owner == "" {
		return shard.Fence{}, errors.New("raise the fence of the leader: the owner has no name")
	}
	fence = shard.Fence{Owner: owner}
	err = s.pool.QueryRow(ctx, `
		INSERT INTO trestle_fence AS f (shard, epoch, owner)
		VALUES ($1, 1, $2)
		ON CONFLICT (shard) DO UPDATE SET epoch = f.epoch + 1, owner = excluded.owner, updated_at = now()
		RETURNING f.epoch`, leaderShard, owner).Scan(&fence.Epoch)
	if err != nil {
		return shard.Fence{}, fmt.Errorf("raise the fence of the leader: %w", err)
	}
	return fence, nil
}

// CheckLeader says whether a leader's term goes on; its error wraps
// ErrNotLeader if it has ended. What it says may be over when it is heard:
// every statement that stops rows checks again.
func (s *Store) CheckLeader(ctx context.Context, fence shard.Fence) (err error) {
	defer s.metrics.done("check leader", time.Now(), &err)
	var holds bool
	err = s.pool.QueryRow(ctx, holdsSQL, leaderShard, int64(fence.Epoch), fence.Owner).Scan(&holds)
	if err != nil {
		return fmt.Errorf("check the fence of the leader: %w", err)
	}
	if !holds {
		return fmt.Errorf("check the fence of the leader: %w", ErrNotLeader)
	}
	return nil
}
