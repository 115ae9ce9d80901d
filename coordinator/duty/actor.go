package duty

import (
	"context"
	"log/slog"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// actor brings one shard from what is held to what is wanted.
type actor struct {
	d   *Duties
	id  shard.ID
	log *slog.Logger

	// Guarded by Duties.mu.
	want   wanted
	have   held
	answer table.Answer
	// refused is the highest epoch that the database refused.
	refused shard.Epoch
	// unready is the attempt that could not be made ready, and is not tried
	// again.
	unready int64
	// stop ends the action under way.
	stop context.CancelFunc

	// wake is poked when want or have has changed from outside.
	wake chan struct{}
}

func newActor(d *Duties, id shard.ID) *actor {
	return &actor{
		d: d, id: id, log: d.cfg.Logger.With("cluster", id.Cluster, "shard", id.String()),
		wake: make(chan struct{}, 1),
	}
}

// set is called with mu held.
func (a *actor) set(w wanted) {
	if a.want == w {
		return
	}
	a.want = w
	a.poke()
}

func (a *actor) poke() {
	if a.stop != nil {
		a.stop()
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// signal is called with mu held.
func (a *actor) signal(s Signal) {
	if s.Fenced {
		a.refused = max(a.refused, s.Epoch)
	}
	switch {
	case s.Fenced && a.have.writes() && a.have.fence.Epoch <= s.Epoch:
		a.log.Warn("another owner holds the shard's fence", "epoch", s.Epoch)
		a.have = held{}
		if a.want.kind == wantKeep {
			a.want = wanted{}
		}
		a.say(table.Answer{})
		a.poke()
	case !s.Fenced && a.have.kind == haveReady:
		a.log.Warn("the shard is ready no more")
		a.have = held{}
		if a.want.kind == wantReady {
			a.unready = a.want.attempt
			a.say(table.Answer{Kind: table.Unready, Attempt: a.want.attempt})
		}
		a.poke()
	}
}

// say is called with mu held.
func (a *actor) say(answer table.Answer) {
	if a.answer != answer {
		a.answer = answer
		a.d.fresh[a.id] = answer
		a.d.noted()
	}
}

// run ends when the shard is of no concern any more, or with ctx.
func (a *actor) run(ctx context.Context) {
	failures := 0
	for {
		do, acting, end := a.next(ctx)
		if end {
			return
		}
		if do == nil {
			failures = 0
			select {
			case <-a.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := do(acting)
		switched := acting.Err() != nil
		a.d.mu.Lock()
		a.stop()
		a.stop = nil
		a.d.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil || switched:
			failures = 0
			continue
		}
		a.log.Warn("the shard is not where it is wanted yet", "error", err)
		pause := time.NewTimer(jitter(a.d.cfg.Retry << min(failures, 3)))
		failures++
		select {
		case <-pause.C:
		case <-a.wake:
			pause.Stop()
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// next chooses the next action; nil when there is none for now.
func (a *actor) next(ctx context.Context) (do func(context.Context) error, acting context.Context, end bool) {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	w := a.want
	switch w.kind {
	case wantNothing:
		if a.have.kind == haveNothing && a.answer == (table.Answer{}) && a.unready == 0 {
			delete(a.d.actors, a.id)
			return nil, nil, true
		}
		do = a.drop
	case wantKeep:
		switch a.have.kind {
		case haveFence:
			a.say(table.Answer{Kind: table.Holds, Epoch: a.have.fence.Epoch})
			return nil, nil, false
		case haveHalf:
			fence := a.have.fence
			do = func(ctx context.Context) error { return a.own(ctx, fence) }
		default:
			do = a.drop
		}
	case wantReady:
		switch {
		case a.have.kind == haveReady:
			a.say(table.Answer{Kind: table.Ready, Attempt: w.attempt})
			return nil, nil, false
		case a.have.kind != haveNothing:
			do = a.drop
		case a.unready == w.attempt:
			return nil, nil, false
		default:
			do = func(ctx context.Context) error { return a.prepare(ctx, w.attempt) }
		}
	case wantFence:
		if a.have.kind == haveFence && a.have.fence == w.fence {
			a.say(table.Answer{Kind: table.Holds, Epoch: w.fence.Epoch})
			return nil, nil, false
		}
		do = func(ctx context.Context) error { return a.own(ctx, w.fence) }
	case wantReleased:
		if !a.have.writes() {
			a.say(table.Answer{Kind: table.Released, Attempt: w.attempt, Epoch: a.have.fence.Epoch})
			return nil, nil, false
		}
		do = a.release
	}
	acting, a.stop = context.WithCancel(ctx)
	// What woke us is seen to by this action; a later change ends it.
	select {
	case <-a.wake:
	default:
	}
	return do, acting, false
}

func (a *actor) drop(context.Context) error {
	a.d.cfg.Worker.Drop(a.id)
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	a.have, a.unready = held{}, 0
	a.say(table.Answer{})
	return nil
}

func (a *actor) prepare(ctx context.Context, attempt int64) error {
	err := a.d.cfg.Worker.Prepare(ctx, a.id)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	if err != nil {
		a.log.Warn("the shard cannot be made ready", "error", err)
		a.unready = attempt
		a.say(table.Answer{Kind: table.Unready, Attempt: attempt})
		return nil
	}
	a.have = held{kind: haveReady}
	a.say(table.Answer{Kind: table.Ready, Attempt: attempt})
	return nil
}

func (a *actor) own(ctx context.Context, fence shard.Fence) error {
	begun := time.Now()
	current, err := a.d.cfg.Fences.Raise(ctx, fence)
	if err != nil {
		return err
	}
	if current != fence {
		a.d.mu.Lock()
		a.say(table.Answer{Kind: table.Behind, Epoch: current.Epoch, Holder: current.Owner, Generation: current.Generation})
		a.d.mu.Unlock()
		a.log.Warn("the database has a newer fence", "epoch", fence.Epoch, "stored", current.Epoch, "holder", current.Owner)
		// The answer gets another epoch, or another owner; until then the
		// question is asked again, as the answer may change.
		again := time.NewTimer(jitter(5 * a.d.cfg.Retry))
		defer again.Stop()
		select {
		case <-again.C:
		case <-ctx.Done():
		}
		return nil
	}
	// The database has just granted it, so what it refused before is past.
	a.d.mu.Lock()
	a.refused = 0
	a.d.mu.Unlock()
	if err := a.d.cfg.Worker.Own(ctx, fence); err != nil {
		return err
	}
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	if a.refused >= fence.Epoch {
		// It was refused while it was being owned.
		a.have = held{}
		return nil
	}
	a.have, a.unready = held{kind: haveFence, fence: fence}, 0
	a.say(table.Answer{Kind: table.Holds, Epoch: fence.Epoch})
	a.d.cfg.Raised(time.Since(begun))
	return nil
}

func (a *actor) release(ctx context.Context) error {
	begun := time.Now()
	a.d.mu.Lock()
	if a.have.kind == haveFence {
		a.have.kind = haveHalf
	}
	a.d.mu.Unlock()
	if err := a.d.cfg.Worker.Release(ctx, a.id); err != nil {
		return err
	}
	a.log.Info("the shard is released: what was heard of it is written and published", "took", time.Since(begun))
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	if a.have.kind == haveHalf {
		a.have.kind = haveReleased
	}
	a.d.noted()
	return nil
}
