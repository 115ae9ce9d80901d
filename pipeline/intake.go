package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/shard"
)

// ErrClosed is what Offer says after the intake was stopped.
var ErrClosed = errors.New("the shard is not taken care of here any more")

// Intake is one shard's way into the pipeline, for one term of ownership. It
// begins in buffering: what is offered waits, and folds, until Own. Its
// methods are safe for concurrent use.
type Intake struct {
	p       *Pipeline
	id      shard.ID
	tag     uint32
	metrics *intakeMetrics
	log     *slog.Logger
	// says limits how often one cluster's oddities are logged.
	says *rate.Limiter

	// queue is guarded by the backlog's mutex.
	queue queue
	// generation counts the subscriptions of the stream.
	generation atomic.Uint32
	// fence is nil while buffering. It is set under mu.
	fence atomic.Pointer[shard.Fence]
	// seamless: see Seamless.
	seamless atomic.Bool
	stopped  atomic.Bool
	// waiting counts the instances with a change that is not committed, entries
	// those of them that came from a snapshot; offered the statuses that were
	// offered of this shard's instances.
	waiting, entries atomic.Int64
	offered          atomic.Uint64
	// recoveries counts those that have ended. It changes under mu.
	recoveries atomic.Uint64
	fenced     chan struct{}

	// mu guards what follows. It may be taken under the backlog's mutex, never
	// the other way round.
	mu sync.Mutex
	// behind says that the outbox holds rows of this shard that are to be
	// published before anything else of it; who commits leaves the outbox
	// to the recovery and says so in dirty.
	behind, dirty, recovering bool
	// publishing counts the publishes under way past the outbox, unpublished
	// those that wait in the outlet.
	publishing, unpublished int
	// published are outbox rows that were published and may still be there.
	published map[store.OutboxRef]struct{}
	// partial: see Partial.
	partial bool
	// recalling says that Recall or Shed is under way, forgotten what was to be
	// forgotten since it began.
	recalling bool
	forgotten []status.InstanceID
	// ended says that the term is over: the fence was refused, or Close was
	// called. What is unpublished is the successor's then.
	ended bool
	// changed is closed and replaced when something that somebody may wait
	// for has become less, and awaited says that somebody does.
	changed chan struct{}
	awaited bool
}

var _ upstream.Sink = (*Intake)(nil)

func newIntake(p *Pipeline, id shard.ID, tag uint32) *Intake {
	return &Intake{
		p:         p,
		id:        id,
		tag:       tag,
		metrics:   p.metrics.intake(id.Cluster),
		log:       p.cfg.Logger.With("cluster", id.Cluster, "shard", id.String()),
		says:      rate.NewLimiter(10, 50),
		fenced:    make(chan struct{}),
		published: make(map[store.OutboxRef]struct{}),
		changed:   make(chan struct{}),
	}
}

// Shard names the shard.
func (in *Intake) Shard() shard.ID { return in.id }

// Waiting gives the number of instances with updates that are not committed.
func (in *Intake) Waiting() int { return int(in.waiting.Load()) }

// Offered gives the number of statuses that were offered so far, repeats
// included.
func (in *Intake) Offered() uint64 { return in.offered.Load() }

// Oldest gives when the oldest update was heard that is not committed yet;
// zero if there is none.
func (in *Intake) Oldest() time.Time { return in.p.backlog.oldest(in) }

// Behind says whether the shard's messages are published from the outbox
// rather than as they are committed.
func (in *Intake) Behind() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.behind
}

// Fenced is closed when the store refused a write because another owner has
// raised the fence. What waited is gone then: the other owner has heard it.
func (in *Intake) Fenced() <-chan struct{} { return in.fenced }

// Subscribed says that a new subscription begins.
func (in *Intake) Subscribed() { in.generation.Add(1) }

// Invalid counts and logs a status that cannot be used.
func (in *Intake) Invalid(err error) {
	in.metrics.invalid(err)
	in.logOdd(slog.LevelWarn, "an invalid status was skipped", "error", err)
}

// Offer takes one status, or skips it. It does not wait for anything but
// short sections of memory. The errors are upstream.ErrFull, when too many
// instances wait, and ErrClosed.
func (in *Intake) Offer(h status.Heard) error {
	if in.stopped.Load() {
		return ErrClosed
	}
	if in.id.Slices > 1 && !in.id.Contains(h.ID) {
		return nil
	}
	in.offered.Add(1)
	b := in.p.backlog
	verdict, kind := b.judge(in, h)
	switch verdict {
	case verdictFresh:
	case verdictFull:
		if h.Snapshot && in.passOver() {
			return nil
		}
		return upstream.ErrFull
	default:
		in.metrics.skipped(verdict, kind, h.At)
		return nil
	}
	change, err := in.p.cfg.Rules.Change(h)
	if err != nil {
		in.Invalid(err)
		b.noteInvalid(in, h)
		return nil
	}
	decoded := kindOf(change.Kind)
	in.metrics.started(decoded)
	if !b.add(in, h, change) {
		in.metrics.known(true, 1)
		in.metrics.completed(decoded, outcomeSkipped, h.At)
		return nil
	}
	return nil
}

// Drained waits until so little is waiting that a stream may be taken up
// again, or ctx ends.
func (in *Intake) Drained(ctx context.Context) error {
	return in.await(ctx, func() bool {
		return in.Waiting() <= in.p.cfg.MaxWaiting/10 || in.stopped.Load()
	})
}

// crowded says whether so many entries of snapshots wait that another has to
// stay outside. A few shards may fill what all have together, but none is shut
// out by the others.
func (in *Intake) crowded(limit int64) bool {
	own := in.entries.Load()
	return own >= limit || own > 0 && in.p.entries.Load() >= snapshotShards*limit
}

// Room waits until an entry of a snapshot may be offered again, or ctx ends.
func (in *Intake) Room(ctx context.Context) error {
	return in.await(ctx, func() bool {
		return !in.crowded(max(in.p.cfg.snapshotLimit()/2, 1)) && in.Waiting() < in.p.cfg.MaxWaiting || in.stopped.Load()
	})
}

// passOver says whether an entry of a snapshot for which there is no room may be
// left out: as long as the shard is not owned, nothing would ever make room. Its
// owner writes what the entry says, and once that one has left, Partial tells
// that it has to be asked for again.
func (in *Intake) passOver() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fence.Load() != nil {
		return false
	}
	in.partial = true
	return true
}

// Partial says whether entries of snapshots were left out before Own, so that
// another snapshot is needed.
func (in *Intake) Partial() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.partial
}

// Complete has another snapshot taken, and offered, of a shard that is Partial; it
// is so no more unless that fails, or there is no room for all of it either. The
// error is that of take.
func (in *Intake) Complete(take func() error) error {
	in.setPartial(false)
	err := take()
	if err != nil {
		in.setPartial(true)
	}
	return err
}

func (in *Intake) setPartial(partial bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.partial = partial
}

// Remember tells of instances whose last status was refused by the database,
// so that the same one is not tried again; the last refused come first. Call it
// before the first Offer.
func (in *Intake) Remember(poison []store.Poison) {
	for _, row := range slices.Backward(poison) {
		in.p.backlog.remember(in, row)
	}
}

// recallRows is how many rows are recalled before others have their turn.
const recallRows = 4096

// Recall tells which version each row of the cluster has, as read says, so that
// what a snapshot brings of those that have not changed is stale at once. Call it
// before that snapshot is offered. Raised says that the fence was raised, and that
// nobody else writes the rows any more. Before that, whoever forgets rows because a
// sweep has stopped them has to forget them here too: all others are at least at
// what they were. What is forgotten meanwhile stays forgotten. Read is told how many
// there is room for; an error is its own.
func (in *Intake) Recall(raised bool, read func(limit int) ([]store.InstanceVersion, error)) error {
	in.recalls()
	// The other half is for what the other shards have heard.
	rows, err := read(max(in.p.cfg.DedupEntries/2, 1))
	rows = slices.DeleteFunc(rows, func(row store.InstanceVersion) bool { return !in.id.Contains(row.ID) })
	for part := range slices.Chunk(rows, recallRows) {
		in.p.backlog.recall(in, part, !raised)
	}
	in.Forget(in.recalled())
	return err
}

// Shed drops what waits of a snapshot for the fence and is in the rows already, as
// read says, which is given the instances: most of all those that have stopped,
// which Recall knows nothing of. What it says of forgetting holds here too. Call it
// when the snapshot has been offered; once the shard is owned it does nothing.
func (in *Intake) Shed(read func([]status.InstanceID) ([]store.InstanceVersion, error)) error {
	ids := in.p.backlog.buffered(in)
	if len(ids) == 0 {
		return nil
	}
	in.recalls()
	rows, err := read(ids)
	in.p.backlog.shed(in, rows)
	return err
}

// recalls begins to remember what is to be forgotten, until recalled gives that.
func (in *Intake) recalls() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.recalling = true
}

func (in *Intake) recalled() (forgotten []status.InstanceID) {
	in.mu.Lock()
	defer in.mu.Unlock()
	forgotten = in.forgotten
	in.recalling, in.forgotten = false, nil
	return forgotten
}

// Forget makes the pipeline forget what it has heard of these instances, so
// that the same status heard again is written again. What waits, waits on.
func (in *Intake) Forget(ids []status.InstanceID) {
	in.mu.Lock()
	if in.recalling {
		in.forgotten = append(in.forgotten, ids...)
	}
	in.mu.Unlock()
	for _, id := range ids {
		in.p.backlog.forget(in, id)
	}
}

// Seamless says that what is heard here follows without a gap on what the owner
// before has written: the first status of an instance may be a repeat of that.
// Call it before Own.
func (in *Intake) Seamless() { in.seamless.Store(true) }

// Own begins to write, under this fence. What earlier owners have left in the
// outbox is published before anything that is written from now on.
func (in *Intake) Own(fence shard.Fence) error {
	if fence.Shard != in.id {
		return fmt.Errorf("pipeline: own shard %s: the fence is that of %s", in.id, fence.Shard)
	}
	in.markBehind()
	in.mu.Lock()
	in.fence.Store(&fence)
	in.mu.Unlock()
	in.fallBehind()
	in.p.backlog.admit(in)
	return nil
}

// Written stops taking statuses and waits until everything that waits is
// written. If ctx ends before, the error says what is left.
func (in *Intake) Written(ctx context.Context) error {
	in.stopped.Store(true)
	if in.fence.Load() == nil {
		if n := in.waiting.Load(); n > 0 {
			return fmt.Errorf("drain shard %s: %d instances have updates that were not written: the shard was never taken over", in.id, n)
		}
		return nil
	}
	err := in.await(ctx, func() bool { return in.ended || in.waiting.Load() == 0 })
	if err != nil {
		return fmt.Errorf("drain shard %s: %d instances have updates that were not written: %w", in.id, in.waiting.Load(), err)
	}
	return nil
}

// Resume takes statuses again after a Written or Drain that was given up. It
// reports false if the term is over.
func (in *Intake) Resume() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return false
	}
	in.stopped.Store(false)
	return true
}

// Drain stops taking statuses and waits until everything that waits is
// written and published. If ctx ends before, the error says what is left.
func (in *Intake) Drain(ctx context.Context) error {
	if err := in.Written(ctx); err != nil || in.fence.Load() == nil {
		return err
	}
	err := in.await(ctx, func() bool {
		return in.ended || !in.behind && in.unpublished == 0 && in.publishing == 0
	})
	if err == nil {
		// What is left in the outbox the next owner would publish again.
		in.p.outlet.acknowledge(ctx)
		err = in.await(ctx, func() bool { return in.ended || len(in.published) == 0 })
	}
	if err != nil {
		return fmt.Errorf("drain shard %s: everything was written, but not all of it published: the rest is in the outbox: %w", in.id, err)
	}
	return nil
}

// Close ends the intake and forgets what waits in it.
func (in *Intake) Close() {
	in.end()
	in.p.backlog.drop(in)
	in.p.remove(in)
}

// refuse is called when the store has refused the fence.
func (in *Intake) refuse() {
	first := in.end()
	in.p.backlog.noteFenced(in)
	in.p.backlog.drop(in)
	if first {
		in.metrics.fencedWrites.Inc()
		in.log.Warn("another owner holds the shard's fence; what waited here is left to it")
		close(in.fenced)
	}
}

// end ends the term, and says whether it had not ended before.
func (in *Intake) end() (first bool) {
	in.lessen(func() {
		first = !in.ended
		in.ended, in.behind = true, false
		in.stopped.Store(true) // under mu, lest a Resume comes in between
	})
	return first
}

// hasEnded says whether the term is over.
func (in *Intake) hasEnded() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ended
}

// await waits until done, which is called under mu, says so.
func (in *Intake) await(ctx context.Context, done func() bool) error {
	for {
		in.mu.Lock()
		if done() {
			in.mu.Unlock()
			return nil
		}
		in.awaited = true
		changed := in.changed
		in.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lessen changes what somebody may wait for, and wakes them.
func (in *Intake) lessen(change func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	change()
	if in.awaited {
		in.awaited = false
		close(in.changed)
		in.changed = make(chan struct{})
	}
}

// begins counts an entry among those that wait.
func (in *Intake) begins(e *entry) {
	in.waiting.Add(1)
	in.p.waiting.Add(1)
	if e.listed {
		in.entries.Add(1)
		in.p.entries.Add(1)
	}
}

// settlement counts entries that wait no more.
type settlement struct{ all, listed int64 }

func (s settlement) with(e *entry) settlement {
	s.all++
	if e.listed {
		s.listed++
	}
	return s
}

// settled takes entries off those that wait.
func (in *Intake) settled(s settlement) {
	if s.all == 0 {
		return
	}
	in.waiting.Add(-s.all)
	in.p.waiting.Add(-s.all)
	in.entries.Add(-s.listed)
	in.p.entries.Add(-s.listed)
	in.lessen(func() {})
}

// logOdd logs what a cluster may cause at will, within limits.
func (in *Intake) logOdd(level slog.Level, message string, args ...any) {
	if in.says.Allow() {
		in.log.Log(context.Background(), level, message, args...)
	}
}
