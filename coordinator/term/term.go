// Package term is one term of leadership: it reads what the replicas answer,
// decides with package shard and writes the assignment.
//
// Invariants:
//   - Every write is guarded by the leader's key and by the revision of each
//     key that it changes. Who is not the leader any more writes nothing.
//   - A decision counts once it is stored. If that fails, or is in doubt,
//     everything is read anew and decided again.
//   - Everything is decided from the state of the table, not from the changes
//     that led to it, so a message that is lost, late or repeated does no harm
//     and another leader goes on where this one stopped.
//
// Owner: the coordinator.
package term

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/duty"
	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// ErrDeposed ends a term whose leader's key is not ours any more.
var ErrDeposed = errors.New("another replica leads")

// Cluster is one cluster that exists.
type Cluster struct {
	Name string
	// Weight is taken until it has been measured; 0 means 1.
	Weight float64
}

// Fences are those of package duty, as far as the leader needs them.
type Fences interface {
	Known(ctx context.Context, clusters []string) (map[string]duty.Known, error)
	Cut(ctx context.Context, cluster string, generation int64, slices int) error
}

// Table is how the leader reads and writes.
type Table interface {
	// Txn writes, as that of kv.Keys.
	Txn(ctx context.Context, guards []kv.Guard, ops []kv.Op) (kv.Result, error)
	// Look lets do read the view; do must neither wait nor keep it.
	Look(do func(*table.View))
	// Refresh reads the whole table anew.
	Refresh(ctx context.Context) error
	// Caught waits until the view is complete up to a revision, or for as long
	// as that should take at most; then it refreshes.
	Caught(ctx context.Context, revision int64) error
}

// Config of a Term.
type Config struct {
	Table  Table
	Layout table.Layout
	// Leader is the value of the leader's key, Created its revision.
	Leader  []byte
	Created int64
	// Wake is poked when the table, or what Clusters gives, has changed.
	Wake <-chan struct{}
	// Clusters gives those that exist; false while that is not known.
	Clusters func() ([]Cluster, bool)
	Fences   Fences
	// Sweep is told of clusters whose owner crashed, and must not wait.
	Sweep   func(cluster string)
	Limits  shard.Limits
	Planner shard.Settings
	// MovesAtOnce is how many planned moves to one replica go on at once; 0
	// means 8. Their snapshots share that replica's budget.
	MovesAtOnce int
	// WeighEvery is how often weights are reckoned; 0 means 15 s.
	WeighEvery time.Duration
	// Mercy is until when replicas that are missing are expected to come back:
	// their shards are left alone.
	Mercy time.Time
	// Gather is how long a plan waits after a replica has said that it drains: often
	// several are told to stop at once, and none of them is to be given what another
	// hands over.
	Gather time.Duration
	// CallTimeout bounds a call to the store or the database; 0 means 3 s.
	CallTimeout time.Duration
	Metrics     *Metrics
	Logger      *slog.Logger
}

// Term is one term. Its methods, Run apart, are Run's own.
type Term struct {
	cfg     Config
	started time.Time
	shards  map[shard.ID]*entry
	// queue holds moves that have not begun yet.
	queue map[shard.ID]shard.Move
	// written is the revision of our last write.
	written int64
	planDue bool
	planAt  time.Time
	braked  bool
	// mercy is Config.Mercy, or later after a loss of many.
	mercy time.Time
	// gather is until when others may be told to stop, too.
	gather  time.Time
	weighAt time.Time

	// mu guards what the questions to the database have brought.
	mu      sync.Mutex
	asking  map[string]bool
	known   map[string]duty.Known
	ended   map[string]int64
	answers chan struct{} // coalesces wake-ups
}

// entry is one shard's assignment as it is stored.
type entry struct {
	h     shard.Handover
	mod   int64
	value table.Shard
	// weight is the moving average that value.Weight follows.
	weight float64
	// hold is until when an owner that the database knows may still come back.
	hold time.Time
}

// New starts nothing; Run does.
func New(cfg Config) *Term {
	if cfg.MovesAtOnce <= 0 {
		cfg.MovesAtOnce = 8
	}
	if cfg.WeighEvery <= 0 {
		cfg.WeighEvery = 15 * time.Second
	}
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = 3 * time.Second
	}
	if cfg.Planner.Lease <= 0 {
		cfg.Planner.Lease = 10 * time.Second
	}
	return &Term{
		cfg: cfg, shards: make(map[shard.ID]*entry), queue: make(map[shard.ID]shard.Move), planDue: true,
		asking: make(map[string]bool), known: make(map[string]duty.Known),
		ended: make(map[string]int64), answers: make(chan struct{}, 1),
	}
}

// Run leads until ctx ends, or until it finds that another does (ErrDeposed).
func (t *Term) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var questions sync.WaitGroup
	defer questions.Wait()
	defer cancel()
	defer t.cfg.Metrics.reset()
	t.started = time.Now()
	t.mercy = t.cfg.Mercy
	t.written = t.cfg.Created
	for ctx.Err() == nil {
		if err := t.cfg.Table.Caught(ctx, t.written); err != nil {
			return ended(ctx, err)
		}
		wake, err := t.pass(ctx, &questions)
		if err != nil {
			return ended(ctx, err)
		}
		timer := time.NewTimer(max(time.Until(wake), 0))
		select {
		case <-t.cfg.Wake:
		case <-t.answers:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pass decides once and writes what it decided. It returns when it is to be
// made again at the latest.
func (t *Term) pass(ctx context.Context, questions *sync.WaitGroup) (time.Time, error) {
	var b *batch
	deposed := false
	t.cfg.Table.Look(func(v *table.View) {
		if v.Leader.Create != t.cfg.Created {
			deposed = true
			return
		}
		b = t.decide(v, time.Now())
	})
	if deposed {
		return time.Time{}, ErrDeposed
	}
	for _, q := range b.questions {
		questions.Go(func() { q(ctx) })
	}
	if err := t.commit(ctx, b); err != nil {
		return time.Time{}, err
	}
	t.observe(b.now)
	wake := b.now.Add(time.Second)
	if t.planDue {
		return b.now, nil
	}
	for _, e := range t.shards {
		if w := e.h.Wake(); !w.IsZero() && w.Before(wake) {
			wake = w
		}
	}
	return wake, nil
}

func (t *Term) decide(v *table.View, now time.Time) *batch {
	b := &batch{t: t, v: v, now: now, drafts: make(map[shard.ID]*draft), fleet: v.Fleet.Value, roster: make(map[string]table.Roster), drains: make(map[string]table.Drain), adopted: make(map[string]bool)}
	t.sync(v, now)
	b.readRoster()
	b.readDrains()
	b.commands()
	b.clusters()
	b.events()
	b.weigh()
	b.plan()
	b.finish()
	return b
}

// sync takes up what others, or a write of ours whose outcome was in doubt, have
// changed in the table.
func (t *Term) sync(v *table.View, now time.Time) {
	for id, stored := range v.Shards {
		e := t.shards[id]
		if e != nil && e.mod == stored.Mod {
			continue
		}
		fresh := &entry{
			h: shard.Resume(stored.Value.Record, t.cfg.Limits, now), mod: stored.Mod,
			value: stored.Value, weight: stored.Value.Weight,
		}
		if e != nil {
			fresh.weight, fresh.hold = e.weight, e.hold
		}
		t.shards[id] = fresh
	}
	for id := range t.shards {
		if _, exists := v.Shards[id]; !exists {
			delete(t.shards, id)
			delete(t.queue, id)
			t.planDue = true
		}
	}
}

// ask puts a question to the database once at a time; what it brings is stored
// under mu.
func (b *batch) ask(name string, question func(context.Context) error) {
	t := b.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asking[name] {
		return
	}
	t.asking[name] = true
	b.questions = append(b.questions, func(ctx context.Context) {
		limited, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
		defer cancel()
		err := question(limited)
		if err != nil && ctx.Err() == nil {
			t.cfg.Logger.Warn("the database was asked in vain", "question", name, "error", err)
			// Asked again soon, not at once.
			timer := time.NewTimer(time.Second)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		t.mu.Lock()
		delete(t.asking, name)
		t.mu.Unlock()
		select {
		case t.answers <- struct{}{}:
		default:
		}
	})
}

// commit writes a batch, as few transactions as that takes.
func (t *Term) commit(ctx context.Context, b *batch) error {
	for _, part := range b.parts() {
		guards := []kv.Guard{kv.Created(t.cfg.Layout.Leader(), t.cfg.Created), kv.Equal(t.cfg.Layout.Leader(), t.cfg.Leader)}
		ops := make([]kv.Op, len(part))
		for i, c := range part {
			guards = append(guards, kv.Modified(c.op.Key, c.mod))
			ops[i] = c.op
		}
		limited, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
		result, err := t.cfg.Table.Txn(limited, guards, ops)
		cancel()
		if err == nil && result.OK {
			t.written = result.Revision
			for _, c := range part {
				c.stored(result.Revision)
			}
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			t.cfg.Logger.Warn("whether the assignment was written is not known; it is read anew", "error", err)
			for _, c := range part {
				c.doubtful()
			}
		}
		t.planDue, t.written = true, 0
		return t.reread(ctx)
	}
	return nil
}

// reread tries until the table has been read, or the term ends.
func (t *Term) reread(ctx context.Context) error {
	for wait := 50 * time.Millisecond; ; wait = 200 * time.Millisecond {
		err := t.cfg.Table.Refresh(ctx)
		if ctx.Err() == nil && err != nil {
			t.cfg.Logger.Warn("the assignment cannot be read", "error", err)
		}
		// Even after success: a write that fails each time must not spin.
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("read the assignment: %w", ctx.Err())
		}
		if err == nil {
			return nil
		}
	}
}
