// Package pipeline carries what replicas hear of instances into the store and
// on to the platform: dedup, fold, batch, commit, publish.
//
// What all shards of the replica have waiting lies in one backlog, from which a
// fixed number of lanes take: a batch is whatever waits, up to a limit, and one
// instance is in one batch at a time, so its changes are written and published
// in the order in which they were heard. While a batch is under way, what is
// heard gathers and folds: small and quick when quiet, large when busy, without a
// timer. A second batch begins beside the first only if much waits, or the first
// takes long.
//
// Invariants:
//   - Offer never waits for the store or the publisher.
//   - What waits is bounded by the number of instances, not of updates.
//   - An instance is remembered as written only after the commit.
//   - Nothing is published before its commit, and what was committed but not
//     published is in the outbox, from which it is taken up again.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// Store is what the pipeline needs of the database. All of it is safe for
// concurrent use.
type Store interface {
	// Apply writes a batch in one commit; see store.Store.
	Apply(context.Context, store.Batch) (store.Commit, error)
	// Quarantine keeps what the database refuses for its own sake.
	Quarantine(context.Context, []store.Poison) error
	// Outbox gives the oldest rows of a shard's outbox, whoever wrote them,
	// in the order in which they are to be published; store.ErrFenced to who
	// does not hold the fence.
	Outbox(ctx context.Context, fence shard.Fence, limit int) ([]store.OutboxRow, error)
	// DeleteOutbox removes rows that were published.
	DeleteOutbox(context.Context, []store.OutboxRef) error
	// CheckFences gives store.ErrFenced unless all these fences are held.
	CheckFences(context.Context, []shard.Fence) error
}

// Publisher tells the platform. It asks may right before it sends anything, as
// often as it does, and ends with its error. An error means that an unknown part,
// from the beginning on, was published.
type Publisher interface {
	Publish(ctx context.Context, sets []event.Set, may publish.Permit) error
}

// Config is what a Pipeline needs.
type Config struct {
	// Owner names this incarnation of the replica.
	Owner string
	// Lanes is the number of batches that may be in flight; 2 if 0. See Allot.
	Lanes int
	// BatchLimit bounds the instances in a batch; 500 if 0.
	BatchLimit int
	// DedupEntries bounds the instances that are remembered; 131,072 if 0.
	DedupEntries int
	// MaxWaiting bounds the instances of a shard that wait; 50,000 if 0.
	// Beyond it a stream ends. Of entries of snapshots only as many wait as keep
	// the lanes busy: they can be asked for at leisure.
	MaxWaiting int
	// MaxWaitingTotal bounds the instances of all shards that wait; four
	// times MaxWaiting if 0. It holds a shard back only while something of
	// that shard waits, so that none is shut out by the others.
	MaxWaitingTotal int
	// TraceBytes bounds the memory in which the last decisions on instances are
	// remembered; 13.5 MiB if 0.
	TraceBytes int
	// AttemptTimeout bounds one attempt to write or to publish; 20 s if 0.
	AttemptTimeout time.Duration

	Rules     status.Rules
	Store     Store
	Publisher Publisher

	// Lifecycle is called after a commit that recorded lifecycle events. It
	// must not block. May be nil.
	Lifecycle func()
	// Tracer gets a span for each change whose update carried a trace
	// context, which Extract turns into the span's parent. May be nil.
	Tracer  trace.Tracer
	Extract func(context.Context, string) context.Context

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// snapshotShards is how many shards may fill their share of entries of snapshots
// before it becomes smaller for all.
const snapshotShards = 4

// snapshotLimit bounds the entries of a shard's snapshots that wait: two batches
// for each lane, so that none waits for the reading.
func (c *Config) snapshotLimit() int64 {
	return int64(max(min(2*c.Lanes*c.BatchLimit, c.MaxWaiting/5), 1))
}

func (c *Config) setDefaults() error {
	if c.Lanes == 0 {
		c.Lanes = 2
	}
	if c.BatchLimit == 0 {
		c.BatchLimit = 500
	}
	if c.DedupEntries == 0 {
		c.DedupEntries = 131072
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 50000
	}
	if c.MaxWaitingTotal == 0 {
		c.MaxWaitingTotal = 4 * c.MaxWaiting
	}
	if c.TraceBytes == 0 {
		c.TraceBytes = 27 << 19
	}
	if c.AttemptTimeout == 0 {
		c.AttemptTimeout = 20 * time.Second
	}
	switch {
	case c.Owner == "":
		return errors.New("pipeline: the owner has no name")
	case c.Lanes < 0 || c.BatchLimit < 0 || c.DedupEntries < 0 || c.MaxWaiting < 0 || c.TraceBytes < 0 || c.AttemptTimeout < 0:
		return errors.New("pipeline: lanes, limits and timeouts must not be negative")
	case c.Store == nil || c.Publisher == nil || c.Logger == nil || c.Registerer == nil:
		return errors.New("pipeline: store, publisher, logger and registerer are required")
	}
	return nil
}

// Pipeline is described in the package comment. Its methods are safe for
// concurrent use.
type Pipeline struct {
	cfg     Config
	metrics *metrics
	backlog *backlog
	lanes   []*lane
	outlet  *outlet
	// seq numbers batches: unique for this incarnation, and ascending for the
	// batches of an instance.
	seq atomic.Int64
	// tags gives every intake a number of its own, under which the backlog
	// remembers: what was remembered for an earlier term of the same shard is
	// out of reach.
	tags atomic.Uint32
	// waiting is the sum of the intakes' waiting, entries that of those that came
	// from snapshots.
	waiting, entries atomic.Int64

	// mu guards intakes, terms and running. It is never held together with the
	// backlog's or an intake's mutex.
	mu      sync.Mutex
	intakes map[shard.ID]*Intake
	terms   terms
	// running is set while Run runs; recoveries belong to it.
	running *errgroup.Group
	runCtx  context.Context
}

// New makes a pipeline that owns no shard. Nothing runs before Run.
func New(cfg Config) (*Pipeline, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	p := &Pipeline{cfg: cfg, intakes: make(map[shard.ID]*Intake)}
	p.metrics = newMetrics(cfg.Registerer, p)
	var err error
	if p.backlog, err = newBacklog(p); err != nil {
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	for i := range cfg.Lanes {
		p.lanes = append(p.lanes, newLane(p, i))
	}
	p.outlet = newOutlet(p)
	return p, nil
}

// Run writes and publishes until ctx ends. What waits then is left unwritten:
// drain the intakes before. It returns nil once everything it started has
// ended.
func (p *Pipeline) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	p.mu.Lock()
	if p.running != nil {
		p.mu.Unlock()
		return errors.New("pipeline: Run was called twice")
	}
	p.running, p.runCtx = group, ctx
	waiting := make([]*Intake, 0, len(p.intakes))
	for _, in := range p.intakes {
		waiting = append(waiting, in)
	}
	for _, l := range p.lanes {
		group.Go(func() error { l.run(ctx); return nil })
	}
	group.Go(func() error { p.outlet.run(ctx); return nil })
	p.mu.Unlock()

	for _, in := range waiting {
		in.recoverIfBehind()
	}
	<-ctx.Done()
	return group.Wait()
}

// start runs f as a part of Run, if Run runs.
func (p *Pipeline) start(f func(context.Context)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil || p.runCtx.Err() != nil {
		return false
	}
	ctx := p.runCtx
	p.running.Go(func() error { f(ctx); return nil })
	return true
}

// Open takes a shard up. What is offered waits until Own; the shard's earlier
// Intake, if any, must have been closed.
func (p *Pipeline) Open(id shard.ID) (*Intake, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.intakes[id] != nil {
		return nil, fmt.Errorf("pipeline: open shard %s: it is open already", id)
	}
	in := newIntake(p, id, p.tags.Add(1))
	p.intakes[id] = in
	p.terms.begin(in)
	return in, nil
}

// Healthy gives an error that names the lane if a loop has not turned for
// longer than an attempt may take. A failing attempt is a turn.
func (p *Pipeline) Healthy() error {
	limit := 2*p.cfg.AttemptTimeout + 5*time.Second
	for _, l := range p.lanes {
		if since := p.backlog.attemptedSince(l); !since.IsZero() && time.Since(since) > limit {
			return fmt.Errorf("lane %d: one attempt has been under way since %s, longer than its deadline allows", l.index, since.Format(time.RFC3339))
		}
	}
	return nil
}

// Allot says how many large batches may be in flight from now on, since the database
// is the same for all replicas: one at least, and Config.Lanes at most, as from the
// beginning. One that takes very long has another beside it even so.
func (p *Pipeline) Allot(lanes int) { p.backlog.allot(min(max(lanes, 1), p.cfg.Lanes)) }

// Waiting gives the number of instances with updates that are not committed.
func (p *Pipeline) Waiting() int { return int(p.waiting.Load()) }

// Owner names this incarnation of the replica.
func (p *Pipeline) Owner() string { return p.cfg.Owner }

func (p *Pipeline) snapshotIntakes() []*Intake {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*Intake, 0, len(p.intakes))
	for _, in := range p.intakes {
		out = append(out, in)
	}
	return out
}

func (p *Pipeline) remove(in *Intake) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.intakes[in.id] == in {
		delete(p.intakes, in.id)
		p.terms.end(in)
	}
}
