package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// installation makes the round of the rows that no cluster answers for: those
// that wait for a cluster, and those of clusters that were deregistered.
func (t *term) installation(ctx context.Context) error {
	known := t.known()
	var errs []error
	for _, region := range []string{t.cfg.Installation, ""} {
		if !slices.Contains(known, region) { // a cluster of that name has rounds of its own
			// Any cluster may be about to be written into such a row.
			errs = append(errs, t.region(ctx, region, known, store.ScopeExpired, false))
		}
	}
	var gone []store.Deregistered
	errs = append(errs, t.attempt(ctx, func(ctx context.Context) (err error) {
		gone, err = t.cfg.Store.Deregistered(ctx, t.cfg.Limits.Stopping)
		return err
	}))
	for _, d := range gone {
		if slices.Contains(known, d.Name) {
			continue // as a static one
		}
		scope := store.ScopeExpired
		if d.Due {
			scope = store.ScopeAll
		}
		errs = append(errs, t.region(ctx, d.Name, []string{d.Name}, scope, d.Due))
	}
	err := errors.Join(errs...)
	if err == nil {
		t.metrics.rounds.WithLabelValues(outcomeDone).Inc()
	}
	return err
}

// region stops the rows of a region that are in scope, whatever anybody says,
// once those clusters' owners have written what they have heard.
func (t *term) region(ctx context.Context, region string, clusters []string, scope store.Scope, deregistered bool) error {
	rows, err := t.read(ctx, region, scope)
	if err != nil || len(rows) == 0 {
		return err
	}
	heard := time.Now()
	for _, cluster := range clusters {
		switch ready, err := t.ready(ctx, cluster, heard); {
		case err != nil:
			return err
		case !ready:
			t.cfg.Logger.Info("rows are to be stopped once a cluster's owner has written what it has heard",
				"region", region, "instances", len(rows), "cluster", cluster)
			return nil
		}
	}
	return t.stop(ctx, region, clusters, deregistered, rows)
}

// stop stops the rows of a region that are still as they were read, in as many
// commits as it takes.
func (t *term) stop(ctx context.Context, region string, clusters []string, deregistered bool, rows []store.OpenInstance) error {
	for part := range slices.Chunk(rows, store.StopLimit) {
		err := t.commit(ctx, clusters, store.Stop{Leader: t.fence, Region: region, Deregistered: deregistered, Instances: part})
		if err != nil {
			return err
		}
	}
	return nil
}

// grace is how long what follows a commit may take. It goes on when the term
// ends, and then somebody waits for it.
const grace = 5 * time.Second

// commit stops rows in one commit, and tells of it. If the database refuses
// one of them for its own sake, the others are stopped.
func (t *term) commit(ctx context.Context, clusters []string, order store.Stop) error {
	order.Seq = t.seq.Add(1)
	var stopped store.Stopped
	began := time.Now()
	err := t.attempt(ctx, func(ctx context.Context) (err error) {
		stopped, err = t.cfg.Store.StopInstances(ctx, order)
		return err
	})
	if errors.Is(err, store.ErrNotLeader) {
		return err
	}
	if fault, is := store.RowFault(err); is {
		half := len(order.Instances) / 2
		if half == 0 {
			t.cfg.Logger.Error("a row cannot be stopped: the database refuses it for its own sake",
				"instance", order.Instances[0].ID, "sqlstate", fault.SQLState, "reason", fault.Reason)
			return nil
		}
		first, second := order, order
		first.Instances, second.Instances = order.Instances[:half], order.Instances[half:]
		return errors.Join(t.commit(ctx, clusters, first), t.commit(ctx, clusters, second))
	}
	// What was committed is told, also if the term ends meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err != nil {
		// Whether it was committed is not known. To forget costs a statement;
		// what there is to tell is in the outbox.
		t.forget(ctx, clusters, order.Instances)
		return err
	}
	t.forget(ctx, clusters, stopped.Instances)
	t.account(order.Region, stopped)
	t.tell(ctx, stopped.Outbox, began)
	return nil
}

func (t *term) forget(ctx context.Context, clusters []string, rows []store.OpenInstance) {
	if len(rows) == 0 {
		return
	}
	ids := make([]status.InstanceID, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	for _, cluster := range clusters {
		if err := t.cfg.Owners.Forget(ctx, cluster, ids); err != nil {
			t.cfg.Logger.Warn("an owner could not be told to forget the instances that were stopped; should they be alive, only a new status will show it",
				"cluster", cluster, "instances", len(ids), "error", err)
		}
	}
}

// account counts and logs what was stopped.
func (t *term) account(region string, stopped store.Stopped) {
	if len(stopped.Instances) == 0 {
		return
	}
	phases := make(map[string]int)
	for _, row := range stopped.Instances {
		phases[string(row.Phase)]++
		t.metrics.stopped(row.Phase).Inc()
	}
	for _, prebuild := range stopped.Outbox.Events.Prebuilds {
		t.cfg.PrebuildEnded(prebuild.Status)
	}
	if stopped.Lifecycle > 0 {
		t.cfg.Lifecycle()
	}
	const named = 10 // ids in a log entry, at most
	var ids []string
	for _, row := range stopped.Instances[:min(named, len(stopped.Instances))] {
		ids = append(ids, row.ID.String())
	}
	t.cfg.Logger.Info("instances were stopped that nobody else would have stopped", "region", region,
		"instances", len(stopped.Instances), "phases", phases, "first", ids,
		"prebuilds", len(stopped.Outbox.Events.Prebuilds))
}

// tell publishes what a commit has to tell that began at a time. What fails is
// left to the round of the orphans.
func (t *term) tell(ctx context.Context, row store.OutboxRow, began time.Time) {
	if row.Events.Len() == 0 {
		return
	}
	if err := t.cfg.Publisher.Publish(ctx, []event.Set{row.Events}, t.while(began)); err != nil {
		t.cfg.Logger.Warn("what a sweep has stopped could not be published; it will be from the outbox", "error", err)
		return
	}
	if err := t.cfg.Outbox.DeleteOutbox(ctx, []store.OutboxRef{row.Ref}); err != nil {
		t.cfg.Logger.Warn("a published row of a sweep could not be removed from the outbox; it will be published once more", "error", err)
	}
}

// while permits to publish for as long as the term goes on, as it did at a moment
// since.
func (t *term) while(since time.Time) publish.Permit {
	return publish.While(since, func(ctx context.Context) error { return t.cfg.Store.CheckLeader(ctx, t.fence) })
}

// orphanRows is how many rows of an outbox are published at once.
const orphanRows = 200

// publishOrphans publishes, now and then, what is left in the outbox of shards
// that nobody owns, and of sweeps.
func (t *term) publishOrphans(ctx context.Context) error {
	for {
		err := t.orphans(ctx)
		switch {
		case errors.Is(err, store.ErrNotLeader):
			return err
		case err != nil && ctx.Err() == nil:
			t.cfg.Logger.Warn("orphans in the outbox could not be published; it is tried again", "error", err)
		}
		select {
		case <-time.After(jitter(t.cfg.Timing.Interval)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (t *term) orphans(ctx context.Context) error {
	var ids []shard.ID
	err := t.attempt(ctx, func(ctx context.Context) (err error) {
		if err := t.cfg.Store.CheckLeader(ctx, t.fence); err != nil {
			return err
		}
		ids, err = t.cfg.Outbox.OutboxShards(ctx, t.cfg.Timing.Orphan)
		return err
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if t.cfg.Owners.Owned(id) {
			continue // its owner publishes it
		}
		for found := orphanRows; found == orphanRows; {
			var err error
			if found, err = t.publishOldest(ctx, id); err != nil {
				errs = append(errs, fmt.Errorf("publish what is left of %q: %w", id, err))
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (t *term) publishOldest(ctx context.Context, id shard.ID) (found int, err error) {
	var rows []store.OutboxRow
	asked := time.Now()
	err = t.attempt(ctx, func(ctx context.Context) (err error) {
		rows, err = t.cfg.Outbox.OrphanedOutbox(ctx, id, t.cfg.Timing.Orphan, orphanRows)
		return err
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	refs, sets := make([]store.OutboxRef, len(rows)), make([]event.Set, len(rows))
	for i, row := range rows {
		refs[i], sets[i] = row.Ref, row.Events
	}
	leads := t.while(asked)
	may := func(ctx context.Context) error {
		if t.cfg.Owners.Owned(id) {
			return errors.New("it has found an owner, who publishes it")
		}
		return leads(ctx)
	}
	publishing, cancel := context.WithTimeout(ctx, t.cfg.Timing.Attempt)
	defer cancel()
	if err := t.cfg.Publisher.Publish(publishing, sets, may); err != nil {
		return 0, err
	}
	t.metrics.orphans.Add(float64(len(rows)))
	// What was published goes, also if the term ends meanwhile: the next
	// leader would publish it again.
	deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	return len(rows), t.cfg.Outbox.DeleteOutbox(deleting, refs)
}
