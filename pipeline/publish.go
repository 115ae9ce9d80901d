package pipeline

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

const (
	// maxPending bounds the messages that wait for Redis; beyond it they stay in the
	// outbox alone. It counts messages and not rows of the outbox: one batch has as
	// many rows as shards.
	maxPending = 10_000
	// acknowledgeAfter is how long after the last publish its row lies in the
	// outbox if no batch comes that removes it.
	acknowledgeAfter = 500 * time.Millisecond
	// recoveryRows is how many rows of an outbox a recovery takes at once, and
	// recoveryTime how long it may take for them: where it takes longer, it takes
	// fewer. Otherwise nothing of a slow database would be published before the
	// attempt's time is over.
	recoveryRows = 200
	recoveryTime = publish.Trust / 2
)

// nextPage is how many rows a recovery takes next, when so many have taken so long.
func nextPage(rows int, took time.Duration) int {
	switch {
	case took > recoveryTime:
		return max(1, rows/2)
	case took < recoveryTime/4:
		return min(2*rows, recoveryRows)
	default:
		return rows
	}
}

// outlet holds what the lanes have committed and not yet published, in the order
// of the commits of each instance. Rows beyond the limit, rows of a shard
// that is behind, and rows whose publish failed are not here: they are in the
// outbox, and the shard's recovery publishes them.
type outlet struct {
	p *Pipeline
	// wake has size 1, so that wake-ups coalesce.
	wake chan struct{}

	// mu guards what follows. It is never held together with another mutex.
	mu      sync.Mutex
	pending []publication
	waiting int // messages in pending
	// acknowledged are rows that were published and are to be deleted, by the next
	// batch or when quiet ends.
	acknowledged acknowledgements
	quiet        *time.Timer
}

func newOutlet(p *Pipeline) *outlet {
	o := &outlet{p: p, wake: make(chan struct{}, 1)}
	o.quiet = idleTimer(func() { p.start(o.acknowledge) })
	return o
}

type publication struct {
	in  *Intake
	row store.OutboxRow
	at  time.Time // when its write began
}

type acknowledgement struct {
	in  *Intake
	ref store.OutboxRef
}

// publish takes what a commit has to tell whose write began at a time.
func (o *outlet) publish(rows []store.OutboxRow, shares map[shard.ID]share, at time.Time) {
	if len(rows) == 0 {
		return
	}
	o.mu.Lock()
	room := o.waiting < maxPending
	o.mu.Unlock()
	var direct []publication
	messages := 0
	for _, row := range rows {
		of := shares[row.Ref.Shard]
		if !room {
			of.in.fallBehind()
		}
		if of.in.announce(of.recoveries) {
			direct = append(direct, publication{of.in, row, at})
			messages += row.Events.Len()
		}
	}
	if len(direct) == 0 {
		return
	}
	o.mu.Lock()
	o.pending = append(o.pending, direct...)
	o.waiting += messages
	o.mu.Unlock()
	wakeUp(o.wake)
}

// run publishes until ctx ends.
func (o *outlet) run(ctx context.Context) {
	for {
		select {
		case <-o.wake:
		case <-ctx.Done():
			return
		}
		o.mu.Lock()
		pending := o.pending
		o.pending, o.waiting = nil, 0
		o.mu.Unlock()

		var sets []event.Set
		direct := pending[:0]
		since := time.Now()
		for _, p := range pending {
			if p.in.beginPublish() {
				direct = append(direct, p)
				sets = append(sets, p.row.Events)
				if p.at.Before(since) {
					since = p.at
				}
			}
		}
		if len(direct) == 0 {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, o.p.cfg.AttemptTimeout)
		err := o.p.cfg.Publisher.Publish(attempt, sets, publish.While(since, func(ctx context.Context) error {
			return o.p.cfg.Store.CheckFences(ctx, fencesOf(direct))
		}))
		cancel()
		if err != nil && ctx.Err() == nil {
			o.p.cfg.Logger.Warn("a publish failed; it is repeated from the outbox", "rows", len(direct), "error", err)
		}
		if err == nil {
			o.published(direct)
		}
		for _, p := range direct {
			p.in.endPublish(err == nil)
		}
	}
}

// fencesOf gives the fences under which rows were written, each once.
func fencesOf(rows []publication) []shard.Fence {
	seen := make(map[shard.ID]struct{})
	var fences []shard.Fence
	for _, p := range rows {
		ref := p.row.Ref
		if _, ok := seen[ref.Shard]; !ok {
			seen[ref.Shard] = struct{}{}
			fences = append(fences, shard.Fence{Shard: ref.Shard, Epoch: ref.Epoch, Owner: ref.Owner})
		}
	}
	return fences
}

// published notes rows that are to be deleted now. A drain finds them here as
// soon as their publish has ended.
func (o *outlet) published(direct []publication) {
	rows := make(acknowledgements, len(direct))
	for i, p := range direct {
		p.in.notePublished(p.row.Ref)
		rows[i] = acknowledgement{p.in, p.row.Ref}
	}
	o.giveAcknowledged(rows)
}

// acknowledge deletes the rows that were published. Those that could not be
// deleted are tried again.
func (o *outlet) acknowledge(ctx context.Context) {
	rows := o.takeAcknowledged()
	if len(rows) == 0 {
		return
	}
	attempt, cancel := context.WithTimeout(ctx, o.p.cfg.AttemptTimeout)
	defer cancel()
	if err := o.p.cfg.Store.DeleteOutbox(attempt, rows.refs()); err != nil {
		o.giveAcknowledged(rows)
		if ctx.Err() == nil {
			o.p.cfg.Logger.Warn("published rows could not be removed from the outbox; it is tried again", "rows", len(rows), "error", err)
		}
		return
	}
	rows.confirm()
}

type acknowledgements []acknowledgement

func (a acknowledgements) refs() []store.OutboxRef {
	refs := make([]store.OutboxRef, len(a))
	for i := range a {
		refs[i] = a[i].ref
	}
	return refs
}

// confirm notes that published rows are gone.
func (a acknowledgements) confirm() {
	for _, row := range a {
		row.in.lessen(func() { delete(row.in.published, row.ref) })
	}
}

func (o *outlet) takeAcknowledged() acknowledgements {
	o.mu.Lock()
	defer o.mu.Unlock()
	rows := o.acknowledged
	o.acknowledged = nil
	return rows
}

func (o *outlet) giveAcknowledged(rows acknowledgements) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acknowledged = append(o.acknowledged, rows...)
	o.quiet.Reset(acknowledgeAfter)
}

// announce notes that a row was committed, and that so many recoveries had ended
// before. It reports whether the outlet is to publish it; if not, the recovery does,
// or the successor. One that has ended since may have found the row and published
// it, so that another has to look whether it is still there.
func (in *Intake) announce(recoveries uint64) bool {
	in.mu.Lock()
	ended := in.recoveries.Load() != recoveries
	direct := !ended && !in.behind && !in.ended
	if direct {
		in.unpublished++
	} else {
		in.dirty = true
	}
	in.mu.Unlock()
	if ended {
		in.fallBehind()
	}
	return direct
}

// beginPublish is asked before a row that was announced is published: the
// shard may have fallen behind since, or its term may be over.
func (in *Intake) beginPublish() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.unpublished--
	if in.behind || in.ended {
		in.dirty = true
		return false
	}
	in.publishing++
	return true
}

// notePublished keeps a recovery from publishing a row again.
func (in *Intake) notePublished(ref store.OutboxRef) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.published[ref] = struct{}{}
}

// endPublish notes how that ended.
func (in *Intake) endPublish(published bool) {
	in.lessen(func() { in.publishing-- })
	if !published {
		in.fallBehind()
	}
}

// fallBehind leaves the publishing of the shard to a recovery until the
// outbox is empty.
func (in *Intake) fallBehind() {
	in.mu.Lock()
	if in.ended {
		in.mu.Unlock()
		return
	}
	in.behind, in.dirty = true, true
	start := !in.recovering
	in.recovering = true
	in.mu.Unlock()
	if start && !in.p.start(in.recover) {
		in.mu.Lock()
		in.recovering = false // Run starts it
		in.mu.Unlock()
	}
}

// markBehind makes the shard behind before it has a fence, without which nothing
// can be recovered yet.
func (in *Intake) markBehind() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.behind, in.dirty = !in.ended, true
}

// recoverIfBehind starts the recovery that could not start before Run.
func (in *Intake) recoverIfBehind() {
	in.mu.Lock()
	behind := in.behind
	in.mu.Unlock()
	if behind {
		in.fallBehind()
	}
}

// recover publishes what the outbox holds of the shard, in order, until there
// is nothing left; only then is published again as it is committed.
func (in *Intake) recover(ctx context.Context) {
	backoff := minBackoff
	page := recoveryRows
	for {
		// A publish under way could otherwise end after a newer one of ours.
		err := in.await(ctx, func() bool {
			in.dirty = false
			return in.publishing == 0
		})
		if err == nil {
			err = in.publishOutbox(ctx, &page)
		}
		if ctx.Err() != nil || in.hasEnded() {
			return
		}
		if errors.Is(err, store.ErrFenced) {
			in.refuse()
			return
		}
		if err == nil {
			done := false
			in.lessen(func() {
				if done = !in.dirty || in.ended; done {
					in.behind, in.recovering = false, false
					in.recoveries.Add(1)
				}
			})
			if done {
				return
			}
			backoff = minBackoff
			continue
		}
		in.log.Warn("the outbox could not be published; it is tried again", "error", err)
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
			backoff = min(2*backoff, maxBackoff)
		case <-ctx.Done():
			return
		}
	}
}

// publishOutbox publishes and removes the rows of the outbox, page after page, until
// it finds none that was not published yet.
func (in *Intake) publishOutbox(ctx context.Context, page *int) error {
	for {
		rows, began := *page, time.Now()
		found, err := in.publishOldest(ctx, rows)
		*page = nextPage(rows, time.Since(began))
		if err != nil || found < rows {
			return err
		}
	}
}

// forgetGone is called with all that the outbox holds of the shard. What was
// published and is not there has been removed, be it by an attempt that seemed
// to fail. Nothing can be added meanwhile: while the shard is behind, the outlet
// publishes nothing of it.
func (in *Intake) forgetGone(rows []store.OutboxRow) {
	there := make(map[store.OutboxRef]struct{}, len(rows))
	for _, row := range rows {
		there[row.Ref] = struct{}{}
	}
	in.lessen(func() {
		for ref := range in.published {
			if _, still := there[ref]; !still {
				delete(in.published, ref)
			}
		}
	})
}

// publishOldest deals with the oldest rows, up to a limit, and gives their number.
func (in *Intake) publishOldest(ctx context.Context, limit int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, in.p.cfg.AttemptTimeout)
	defer cancel()
	fence := in.fence.Load()
	if fence == nil {
		return 0, errors.New("the shard is only about to be owned")
	}
	// What was published may be removed, and forgotten, once it has been read.
	in.mu.Lock()
	published := maps.Clone(in.published)
	in.mu.Unlock()
	asked := time.Now()
	rows, err := in.p.cfg.Store.Outbox(ctx, *fence, limit)
	if err != nil {
		return 0, err
	}
	if len(rows) < limit {
		in.forgetGone(rows)
	}
	if len(rows) == 0 {
		return 0, nil
	}
	refs := make([]store.OutboxRef, 0, len(rows))
	sets := make([]event.Set, 0, len(rows))
	for _, row := range rows {
		refs = append(refs, row.Ref)
		if _, told := published[row.Ref]; !told {
			sets = append(sets, row.Events)
		}
	}
	if in.hasEnded() {
		return 0, ErrClosed // the successor publishes them
	}
	if len(sets) > 0 {
		may := publish.While(asked, func(ctx context.Context) error {
			return in.p.cfg.Store.CheckFences(ctx, []shard.Fence{*fence})
		})
		if err := in.p.cfg.Publisher.Publish(ctx, sets, may); err != nil {
			return 0, err
		}
	}
	in.mu.Lock()
	for _, ref := range refs {
		in.published[ref] = struct{}{}
	}
	in.mu.Unlock()
	if err := in.p.cfg.Store.DeleteOutbox(ctx, refs); err != nil {
		return 0, err
	}
	in.lessen(func() {
		for _, ref := range refs {
			delete(in.published, ref)
		}
	})
	return len(rows), nil
}
