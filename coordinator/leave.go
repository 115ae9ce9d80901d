package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

var (
	// ErrNotHandedOver means that others will find some shards without an owner:
	// all was written, but nobody had taken them over in time.
	ErrNotHandedOver = errors.New("not all shards were handed over")
	// ErrNotReleased means that not everything that was heard has been written.
	ErrNotReleased = errors.New("not all shards were released")
)

// Leave hands all shards over and gives the lease up, within ctx, a little later
// if other shards are changing hands. What cannot be handed over in three quarters
// of the time, or because nobody else is there, or because all moves are frozen,
// is written out and released.
// Afterwards this replica takes nothing more; Run is to be ended then. Errors:
// ErrNotHandedOver (unless there was nobody to hand over to, or a freeze),
// ErrNotReleased.
func (c *Coordinator) Leave(ctx context.Context) error {
	c.draining.Store(true)
	c.link.Say(c.layout.Member(c.me()), c.member())
	handing, cancel := ctx, context.CancelFunc(func() {})
	if deadline, limited := ctx.Deadline(); limited {
		handing, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/4))
	}
	defer cancel()
	c.announced(handing)
	left, alone := c.handOver(handing)
	unreleased := c.duties.End(ctx)
	if !alone {
		c.quiet(handing)
	}
	c.left.Store(true)
	// The keys go at once, so that the others need not wait for the lease.
	err := c.link.GiveUp(context.WithoutCancel(ctx))
	if err != nil {
		err = fmt.Errorf("give the lease up: %w", err)
	}
	switch {
	case len(unreleased) > 0:
		return errors.Join(fmt.Errorf("leave with %v: %w", unreleased, ErrNotReleased), err)
	case len(left) > 0 && !alone:
		return errors.Join(fmt.Errorf("leave with %v: %w", left, ErrNotHandedOver), err)
	case err != nil && !alone:
		return err
	}
	return nil
}

// announced waits a moment for the roster to say that this replica is about to
// leave: who knows that takes what follows for no loss, also where there is
// nobody to hand over to.
func (c *Coordinator) announced(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
	defer cancel()
	c.until(ctx, func(v *table.View) bool {
		roster, listed := v.Roster[c.me()]
		return !v.Leader.Exists() || !listed || roster.Value.Draining
	})
}

// until waits for the table to be as wanted, as long as it can be trusted and ctx
// lasts.
func (c *Coordinator) until(ctx context.Context, wanted func(*table.View) bool) {
	for ctx.Err() == nil {
		changed := c.link.Changed()
		reached := false
		c.link.Look(func(v *table.View) { reached = wanted(v) })
		if reached || !c.link.Trusted() {
			return
		}
		wait(ctx, 100*time.Millisecond, changed)
	}
}

// quiet waits until others have handed over, too, or for as long as that should
// take. When a process ends, what it ran in is taken down, and that costs its
// machine processor time just when updates wait for shards that change hands. A
// moment passes in any case, as several are often told to stop at once.
func (c *Coordinator) quiet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Quiet)
	defer cancel()
	if c.link.Trusted() {
		wait(ctx, c.cfg.Timing.Quiet/5, nil)
	}
	c.until(ctx, calm)
}

// calm says that no shard changes hands, or is about to.
func calm(v *table.View) bool {
	for _, stored := range v.Shards {
		switch r := &stored.Value.Record; r.Phase {
		case shard.PhasePrepare, shard.PhaseRelease, shard.PhaseRaise:
			return false
		default:
			if v.Members[r.Owner].Value.Draining {
				return false
			}
		}
	}
	return true
}

// handOver waits until no shard is here any more, or nobody else could take
// one; then it returns what is left.
func (c *Coordinator) handOver(ctx context.Context) (left []shard.ID, alone bool) {
	for {
		changed := c.link.Changed()
		left = nil
		read := false
		c.link.Look(func(v *table.View) {
			read = v.Revision != 0
			for id, stored := range v.Shards {
				if r := stored.Value.Record; r.Owner == c.me() || r.Next == c.me() {
					left = append(left, id)
				}
			}
			// A freeze leaves alone what has an owner; what has none is taken at
			// once.
			freeze := v.Fleet.Value.Freeze
			frozen := freeze.On && (freeze.Until.IsZero() || time.Now().Before(freeze.Until))
			alone = frozen || !c.others(v)
		})
		if read && len(left) == 0 {
			for id := range c.duties.Held() {
				left = append(left, id)
			}
		}
		if len(left) == 0 || alone {
			return left, alone
		}
		// What is held shrinks without a change of the table.
		wait(ctx, 100*time.Millisecond, changed)
		if ctx.Err() != nil {
			return left, alone
		}
	}
}
