package coordinator

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/coordinator/term"
)

// runElection leads whenever nobody else does. There is one key, under the lease
// of who has it; no queue, in which a member whose lease has expired would wait
// for ever without noticing.
func (c *Coordinator) runElection(ctx context.Context) error {
	for ctx.Err() == nil {
		guard, stands := c.stands()
		if !stands {
			// Trust in the lease comes and goes without a wake-up.
			wait(ctx, c.cfg.Timing.Renew, c.elect)
			continue
		}
		lease, _ := c.link.Lease()
		value := table.Encode(table.Leader{Incarnation: c.me(), Name: c.cfg.Replica.ID, Since: time.Now().UTC()})
		// The first to see the key go asks at once, the others would ask in vain.
		limited, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
		result, err := c.link.Txn(limited, []kv.Guard{guard}, []kv.Op{kv.Put(c.layout.Leader(), value, lease)})
		cancel()
		switch {
		case errors.Is(err, kv.ErrNoLease):
			c.link.Lost(lease)
			continue
		case err != nil:
			// If it happened nevertheless, the mirror shows our own key, which no
			// term belongs to.
			if ctx.Err() == nil {
				c.cfg.Logger.Warn("this replica cannot stand for leader", "error", err)
			}
			wait(ctx, jitter(300*time.Millisecond), nil)
			continue
		case !result.OK:
			if err := c.link.Caught(ctx, result.Revision); err != nil && ctx.Err() == nil {
				wait(ctx, jitter(300*time.Millisecond), nil)
			}
			continue
		}
		c.runTerm(ctx, lease, value, result.Revision)
	}
	return nil
}

// stands says whether this replica should try to lead now, and on which
// condition.
func (c *Coordinator) stands() (kv.Guard, bool) {
	if !c.link.Trusted() {
		return kv.Guard{}, false
	}
	guard, stands := kv.Guard{}, false
	c.link.Look(func(v *table.View) {
		if _, registered := v.Members[c.me()]; v.Revision == 0 || !registered {
			return
		}
		if c.draining.Load() && c.others(v) {
			return
		}
		guard = kv.Modified(c.layout.Leader(), v.Leader.Mod)
		leader := v.Leader.Value.Incarnation
		// Our own key without a term is one whose writing ended without an answer.
		stands = !v.Leader.Exists() || leader == c.me() || v.Dead(leader)
	})
	return guard, stands
}

// others says whether there is another living member that takes shards.
func (c *Coordinator) others(v *table.View) bool {
	for who, m := range v.Members {
		drain, drained := v.Drains[m.Value.Name]
		if who != c.me() && !m.Value.Draining && !v.Dead(who) && !(drained && drain.Value.Active(time.Now())) {
			return true
		}
	}
	return false
}

// runTerm leads until the key is lost, or the trust in the lease.
func (c *Coordinator) runTerm(ctx context.Context, lease kv.LeaseID, value []byte, created int64) {
	log := c.cfg.Logger
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A key that we overwrote keeps the revision of its creation.
	if err := c.link.Caught(ctx, created); err != nil {
		return
	}
	ours := false
	modified := created
	c.link.Look(func(v *table.View) {
		ours = v.Leader.Mod == modified && v.Leader.Value.Incarnation == c.me()
		created = v.Leader.Create
	})
	if !ours {
		return
	}
	log.Info("this replica leads", "revision", modified)
	c.leading.Store(true)
	c.metrics.leading.Set(1)
	c.metrics.terms.Inc()
	var parts sync.WaitGroup
	defer func() {
		cancel()
		parts.Wait()
		c.leading.Store(false)
		c.metrics.leading.Set(0)
		log.Info("this replica leads no more", "revision", modified)
		c.resign(context.WithoutCancel(ctx), created, value)
	}()
	parts.Go(func() {
		defer cancel()
		c.guardTerm(ctx, lease, modified)
	})
	if c.cfg.Lead != nil {
		parts.Go(func() { c.cfg.Lead(ctx) })
	}
	// Who has lost its lease is seldom the only one, and the others come back as
	// soon as they notice.
	mercy := time.Time{}
	if again := c.link.Returned(); !again.IsZero() {
		mercy = again.Add(2 * c.cfg.Timing.Renew)
	}
	t := term.New(term.Config{
		Table: c.link, Layout: c.layout, Leader: value, Created: created, Wake: c.lead, Mercy: mercy,
		Clusters: c.cfg.Clusters, Fences: c.cfg.Fences, Sweep: c.cfg.Sweep,
		Limits: c.cfg.Timing.Limits, Planner: c.cfg.Timing.Planner, MovesAtOnce: c.cfg.Timing.MovesAtOnce,
		WeighEvery: c.cfg.Timing.WeighEvery, Gather: c.cfg.Timing.Gather, CallTimeout: c.cfg.Timing.Call, Metrics: c.leader, Logger: log,
	})
	if err := t.Run(ctx); err != nil && ctx.Err() == nil {
		log.Warn("the term has ended", "error", err)
	}
}

// guardTerm returns when the lease is not trusted any more, or the key is seen
// to be gone or another's.
func (c *Coordinator) guardTerm(ctx context.Context, lease kv.LeaseID, modified int64) {
	for ctx.Err() == nil {
		changed := c.link.Changed()
		lost := false
		c.link.Look(func(v *table.View) { lost = v.Leader.Mod != modified })
		id, until := c.link.Lease()
		left := time.Until(until)
		if lost || id != lease || left <= 0 {
			return
		}
		wait(ctx, left, changed)
	}
}

// resign takes the key away, so that another leads at once. If that fails it
// goes with the lease.
func (c *Coordinator) resign(ctx context.Context, created int64, value []byte) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
	defer cancel()
	guards := []kv.Guard{kv.Created(c.layout.Leader(), created), kv.Equal(c.layout.Leader(), value)}
	if _, err := c.link.Txn(ctx, guards, []kv.Op{kv.Delete(c.layout.Leader())}); err != nil {
		c.cfg.Logger.Warn("the leadership could not be given back; it goes with the lease", "error", err)
	}
}
