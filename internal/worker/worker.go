// Package worker does the work of shards on one replica: it hears their clusters
// and feeds what they say into the pipeline, as the coordinator asks for it.
//
// Invariants:
//   - What a shard's cluster says goes into one intake of the pipeline for one
//     term of ownership; a new term begins with an empty one. A client that is
//     replaced, because the cluster's address or TLS has changed, feeds the same.
//   - A shard that is being left is left in this order: its stream, what waits,
//     what is to be published.
//   - Whether a cluster exists is not decided here. One whose registration is
//     gone or cannot be used is heard on as it was heard before.
//
// Owner: internal/app, which runs it for as long as the pipeline runs.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
)

// publishLimit is how long a release that has written everything waits for the
// shard's outbox to be empty. What is left then the next owner publishes.
const publishLimit = 2 * time.Second

// readyInterval is how often a prepared shard's stream is looked at.
const readyInterval = 250 * time.Millisecond

// Config is what a Worker needs; all of it is required.
type Config struct {
	Pipeline *pipeline.Pipeline
	// Quarantined gives what the database has refused of a cluster.
	Quarantined func(ctx context.Context, cluster string) ([]store.Poison, error)
	// Versions gives the versions of a cluster's rows, at most limit.
	Versions func(ctx context.Context, cluster string, limit int) ([]store.InstanceVersion, error)
	// VersionsOf gives those of some of them.
	VersionsOf func(ctx context.Context, cluster string, ids []status.InstanceID) ([]store.InstanceVersion, error)
	// Client is what every upstream client has in common; Cluster and Sink are
	// filled in.
	Client upstream.Config
	// Succeeded says whether another replica would publish what this one leaves
	// in the outbox.
	Succeeded func() bool
	// OwnerDeaf says whether the owner of a shard cannot hear its cluster.
	OwnerDeaf func(id shard.ID) bool
	// HandedOver says whether the owner before has released a shard.
	HandedOver func(id shard.ID) bool
	Logger     *slog.Logger
}

// Worker is a coordinator.Worker. All methods may be called at once, as far as
// that interface allows.
type Worker struct {
	cfg     Config
	signals chan coordinator.Signal

	// mu guards what follows; nothing waits under it.
	mu       sync.Mutex
	clusters map[string]upstream.Cluster
	members  map[shard.ID]*member
	// ctx is Run's while it runs, and goroutines belong to it.
	ctx        context.Context
	goroutines sync.WaitGroup
	// measured is when Measure was called last.
	measured time.Time
}

var _ coordinator.Worker = (*Worker)(nil)

// errStopped is what a call gets before Run and after it.
var errStopped = errors.New("the worker does not run")

// New checks the configuration and starts nothing.
func New(cfg Config) (*Worker, error) {
	if cfg.Pipeline == nil || cfg.Quarantined == nil || cfg.Versions == nil || cfg.VersionsOf == nil || cfg.Succeeded == nil || cfg.OwnerDeaf == nil || cfg.HandedOver == nil || cfg.Logger == nil {
		return nil, errors.New("worker: pipeline, quarantined, versions, succeeded, owner deaf, handed over and logger are required")
	}
	return &Worker{
		cfg:      cfg,
		signals:  make(chan coordinator.Signal),
		clusters: make(map[string]upstream.Cluster),
		members:  make(map[shard.ID]*member),
		measured: time.Now(),
	}, nil
}

// Run hears what is asked for until ctx ends, and returns when every stream has
// been left. What waits in the pipeline then stays there.
func (w *Worker) Run(ctx context.Context) error {
	w.mu.Lock()
	if w.ctx != nil {
		w.mu.Unlock()
		return errors.New("worker: Run was called twice")
	}
	w.ctx = ctx
	w.mu.Unlock()
	<-ctx.Done()
	w.goroutines.Wait()
	return nil
}

// start runs f as a part of Run. mu is held.
func (w *Worker) start(f func(context.Context)) error {
	if w.ctx == nil || w.ctx.Err() != nil {
		return errStopped
	}
	ctx := w.ctx
	w.goroutines.Go(func() { f(ctx) })
	return nil
}

// SetClusters tells where the clusters are that can be heard. A member whose
// cluster has another address or TLS than before leaves its stream and takes it
// up there.
func (w *Worker) SetClusters(clusters map[string]upstream.Cluster) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clusters = clusters
	for id, m := range w.members {
		if cluster, known := clusters[id.Cluster]; known {
			m.retarget(cluster)
		}
	}
}

// Signals tells what happens to shards by itself.
func (w *Worker) Signals() <-chan coordinator.Signal { return w.signals }

func (w *Worker) signal(ctx context.Context, s coordinator.Signal) {
	select {
	case w.signals <- s:
	case <-ctx.Done():
	}
}

func (w *Worker) member(id shard.ID) *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members[id]
}

// Prepare begins to hear a shard's cluster and returns when a snapshot of it has
// been buffered. A cluster that neither this replica nor the owner can reach is
// ready as it is: a cluster that is down must not keep a replica from leaving.
func (w *Worker) Prepare(ctx context.Context, id shard.ID) error {
	m := w.member(id)
	if m != nil && m.owned() {
		return fmt.Errorf("prepare %s: it is owned already", id)
	}
	if m == nil {
		var err error
		if m, err = w.open(ctx, id); err != nil {
			return fmt.Errorf("prepare %s: %w", id, err)
		}
		if err := w.hear(m); err != nil {
			return fmt.Errorf("prepare %s: %w", id, err)
		}
	}
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for ready := false; !ready; {
		select {
		case <-m.synced:
			ready = true
		case <-tick.C:
			ready = m.deaf() && w.cfg.OwnerDeaf(id)
		case <-m.left():
			return fmt.Errorf("prepare %s: %w", id, errStopped)
		case <-ctx.Done():
			return fmt.Errorf("prepare %s: %w", id, ctx.Err())
		}
	}
	select {
	case <-m.synced:
		// Without a database nothing is handed over, but whoever prepares may wait
		// for it.
		if err := w.shed(ctx, m); err != nil && ctx.Err() == nil {
			m.log.Warn("it is not known what of a snapshot the rows have: all that it brings will be written", "error", err)
		}
	default:
	}
	m.watchReady()
	return nil
}

// Own writes the shard under this fence from now on. A shard that is written
// under it already, or whose release was given up, goes on.
func (w *Worker) Own(ctx context.Context, fence shard.Fence) error {
	id := fence.Shard
	m := w.member(id)
	if m != nil && m.owned() {
		if m.resume(fence) {
			return nil
		}
		// Another term: what the old one remembers may be past.
		w.Drop(id)
		m = nil
	}
	// Where a snapshot is ahead, the owner before may have written most of it.
	var err error
	switch {
	case m == nil:
		m, err = w.openRecalled(ctx, id)
	case m.intake.Partial():
		err = w.recall(ctx, m, true)
	}
	if err != nil {
		return fmt.Errorf("own %s: %w", id, err)
	}
	return m.own(fence)
}

// openRecalled makes a member that knows what the rows have, and hears.
func (w *Worker) openRecalled(ctx context.Context, id shard.ID) (*member, error) {
	m, err := w.open(ctx, id)
	if err != nil {
		return nil, err
	}
	if err = w.recall(ctx, m, true); err == nil {
		err = w.hear(m)
	}
	if err != nil {
		w.Drop(id)
		return nil, err
	}
	return m, nil
}

// recall makes a member's intake know what the rows have, or had before the fence
// was raised.
func (w *Worker) recall(ctx context.Context, m *member, raised bool) error {
	return m.intake.Recall(raised, func(limit int) ([]store.InstanceVersion, error) {
		begun := time.Now()
		versions, err := w.cfg.Versions(ctx, m.id.Cluster, limit)
		m.log.Debug("versions of the cluster's rows read", "rows", len(versions), "took", time.Since(begun))
		return versions, err
	})
}

// shed drops what a member has buffered of a snapshot that the rows have already,
// so that at the hand-over nothing has to be written before what is heard then. If
// there was no room for all of the snapshot, another is taken, of which only what
// the rows lack takes room.
func (w *Worker) shed(ctx context.Context, m *member) error {
	read := func(ids []status.InstanceID) ([]store.InstanceVersion, error) {
		begun := time.Now()
		versions, err := w.cfg.VersionsOf(ctx, m.id.Cluster, ids)
		m.log.Debug("versions of what a snapshot has brought read", "entries", len(ids), "rows", len(versions), "took", time.Since(begun))
		return versions, err
	}
	if err := m.intake.Shed(read); err != nil || !m.intake.Partial() {
		return err
	}
	if err := w.recall(ctx, m, false); err != nil {
		return err
	}
	if err := m.intake.Complete(func() error { return m.refresh(ctx) }); err != nil {
		return err
	}
	return m.intake.Shed(read)
}

// Release leaves the stream, writes out what it has said and publishes it. Once
// all is written and another replica is there to publish the rest, it waits for
// the outbox to be empty only so long.
func (w *Worker) Release(ctx context.Context, id shard.ID) error {
	m := w.member(id)
	if m == nil {
		return nil
	}
	m.leave()
	if err := m.drain(ctx); err != nil {
		return err
	}
	w.Drop(id)
	return nil
}

// Drop forgets the shard and what waits of it.
func (w *Worker) Drop(id shard.ID) {
	w.mu.Lock()
	m := w.members[id]
	delete(w.members, id)
	w.mu.Unlock()
	if m == nil {
		return
	}
	m.leave()
	m.intake.Close()
	close(m.dropped)
}

// open makes a member that does not hear yet.
func (w *Worker) open(ctx context.Context, id shard.ID) (*member, error) {
	poison, err := w.cfg.Quarantined(ctx, id.Cluster)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil || w.ctx.Err() != nil {
		return nil, errStopped
	}
	intake, err := w.cfg.Pipeline.Open(id)
	if err != nil {
		return nil, err
	}
	intake.Remember(poison)
	m := newMember(w, id, intake)
	if cluster, known := w.clusters[id.Cluster]; known {
		m.retarget(cluster)
	}
	w.members[id] = m
	return m, nil
}

// hear begins to hear a member's cluster, and buffers. An error means that it was
// dropped, or that all ends.
func (w *Worker) hear(m *member) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil || w.ctx.Err() != nil || w.members[m.id] != m {
		return errStopped
	}
	m.hear(w.ctx)
	return nil
}

// Forget makes the shards of a cluster forget what they have heard of these
// instances.
func (w *Worker) Forget(cluster string, ids []status.InstanceID) {
	for _, m := range w.of(cluster) {
		m.intake.Forget(ids)
	}
}

// CaughtUp says whether all that was heard of these shards before since is
// written. A shard that is not owned here is an error.
func (w *Worker) CaughtUp(shards []shard.ID, since time.Time) (bool, error) {
	for _, id := range shards {
		m := w.member(id)
		if m == nil || !m.intake.Owns() {
			return false, fmt.Errorf("whether %s has caught up: it is not owned here", id)
		}
		if !m.intake.CaughtUp(since) {
			return false, nil
		}
	}
	return true, nil
}

func (w *Worker) of(cluster string) []*member {
	w.mu.Lock()
	defer w.mu.Unlock()
	var members []*member
	for id, m := range w.members {
		if id.Cluster == cluster {
			members = append(members, m)
		}
	}
	return members
}

// Left says how many instances have updates that are not written, and how many
// shards have messages that are not published. What was heard of shards that are
// only prepared here is for whoever gets them.
func (w *Worker) Left() (unwritten, unpublished int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.members {
		if !m.owned() {
			continue
		}
		unwritten += m.intake.Waiting()
		if m.intake.Behind() {
			unpublished++
		}
	}
	return unwritten, unpublished
}

// Measure gives what there is to say of each shard that is written here. Rates
// are of the time since it was called last, smoothed.
func (w *Worker) Measure() map[shard.ID]coordinator.Measured {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	since := now.Sub(w.measured)
	w.measured = now
	all := make(map[shard.ID]coordinator.Measured, len(w.members))
	for id, m := range w.members {
		if measured, owned := m.measure(now, since); owned {
			all[id] = measured
		}
	}
	return all
}
