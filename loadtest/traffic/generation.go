package traffic

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// generation is some instances with numbers in a row.
type generation struct {
	first   int
	ledger  *ledger.Ledger
	subject func(number int) ledger.Subject
	size    int
	// left are those that have not been played to their end. It belongs to the
	// sending goroutine until the generation is handed over.
	left int
	// deaf: publishes may have been missed; guarded by generations.mu.
	deaf bool
}

func (t *Traffic) newGeneration(first int) (*generation, error) {
	var names []string
	for _, c := range t.cfg.Clusters {
		names = append(names, c.Name())
	}
	l, err := ledger.New(ledger.Config{
		Clusters: names, Installation: t.cfg.Installation, Count: t.size,
		Subject: func(n int) ledger.Subject { return t.subject(first + n) },
	})
	if err != nil {
		return nil, err
	}
	return &generation{first: first, ledger: l, subject: t.subject, size: t.size, left: t.size}, nil
}

// seeded are the instances that have rows.
func (g *generation) seeded(yield func(seed.Instance) bool) {
	for n := range g.size {
		if s := g.subject(g.first + n); s.Script.Role != script.Unknown && !yield(s.Instance) {
			return
		}
	}
}

// forget takes the instances out of the clusters' live state, of which not all
// scripts take care, and their rows out of the tables.
func (g *generation) forget(ctx context.Context, clusters []*sim.Cluster, db *pgx.Conn) error {
	ids := make([][]sim.ID, len(clusters))
	for n := range g.size {
		s := g.subject(g.first + n)
		ids[s.Cluster] = append(ids[s.Cluster], s.ID.Instance)
	}
	for n, c := range clusters {
		if len(ids[n]) > 0 {
			c.Forget(ids[n]...)
		}
	}
	return seed.Remove(ctx, db, g.seeded)
}

// generations are those that are heard, and the sums of those that were.
type generations struct {
	// mu guards all.
	mu      sync.RWMutex
	current []*generation
	past    Counts
	// begun and ended are when sending began and ended; zero: not yet.
	begun, ended time.Time
}

func newGenerations() *generations { return &generations{} }

func (g *generations) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.begun = time.Now()
}

func (g *generations) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = time.Now()
}

func (g *generations) add(one *generation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current = append(g.current, one)
}

func (g *generations) all() []*generation {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return slices.Clone(g.current)
}

// retire ends the hearing of a generation, whose verdict is known.
func (g *generations) retire(one *generation, v *ledger.Verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current = slices.DeleteFunc(g.current, func(other *generation) bool { return other == one })
	g.past.add(one)
	past := &g.past.Checked
	past.Instances += v.Instances
	past.Exact += v.Exact
	past.Lost += v.Lost
	past.Regressed += v.Regressed
	past.Wrong += v.Wrong
	past.Unpublished += v.Unpublished
	past.Doubled += v.Doubled
	past.Early += v.Early
	past.Malformed += v.Malformed
	const most = 100
	past.Differences = append(past.Differences, v.Differences[:min(len(v.Differences), most-len(past.Differences))]...)
}

func (c *Counts) add(g *generation) {
	n, latency := g.ledger.Counts(), g.ledger.Latency()
	c.Sent += n.Sent
	c.Changes += n.Changes
	c.Repeats += n.Repeats
	c.Stale += n.Stale
	c.Invalid += n.Invalid
	c.Publishes += n.Publishes
	c.Waiting += n.Pending
	c.Latency.Merge(&latency)
}

func (g *generations) sums() Counts {
	g.mu.RLock()
	defer g.mu.RUnlock()
	c := g.past
	c.Checked.Differences = slices.Clone(c.Checked.Differences)
	// What a generation still waited for when it was given up is a difference.
	c.Waiting = 0
	switch {
	case !g.ended.IsZero():
		c.Sending = g.ended.Sub(g.begun)
	case !g.begun.IsZero():
		c.Sending = time.Since(g.begun)
	}
	for _, one := range g.current {
		c.add(one)
	}
	return c
}

func (g *generations) cut(cluster int) {
	for _, one := range g.all() {
		one.ledger.Cut(cluster)
	}
}

func (g *generations) overtaken(cluster int) {
	for _, one := range g.all() {
		one.ledger.Overtaken(cluster)
	}
}

func (g *generations) missed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, one := range g.current {
		one.deaf = true
	}
}

func (g *generations) deaf(one *generation) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return one.deaf
}

// listen hands what Redis says to the ledgers until ctx ends. ready is closed
// when it hears all channels.
func (g *generations) listen(ctx context.Context, url string, ready chan<- struct{}) error {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return fmt.Errorf("listen to Redis: %w", err)
	}
	opts.Protocol = 2
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	client := redis.NewClient(opts)
	defer client.Close()
	channels := []string{"chan:workspace-instances", "chan:prebuilds", "chan:headless"}
	sub := client.Subscribe(ctx, channels...)
	defer sub.Close()
	// A blocked Receive does not see the end of its context.
	stop := context.AfterFunc(ctx, func() { sub.Close() })
	defer stop()
	for {
		message, err := sub.Receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			g.missed()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		switch m := message.(type) {
		case *redis.Subscription:
			if m.Count == len(channels) && ready != nil {
				close(ready)
				ready = nil
			}
		case *redis.Message:
			at := time.Now()
			for _, one := range g.all() {
				if _, publish := one.ledger.Heard(m.Channel, m.Payload, at); publish > 0 {
					break
				}
			}
		}
	}
}

// backlog is a queue without a limit: whoever sends on time must not wait for
// those who check.
type backlog struct {
	// wake has size 1: a wake-up that waits stands for all.
	wake chan struct{}

	// mu guards the others.
	mu     sync.Mutex
	queue  []*generation
	closed bool
}

func newBacklog() *backlog { return &backlog{wake: make(chan struct{}, 1)} }

func (b *backlog) add(g *generation) {
	b.mu.Lock()
	b.queue = append(b.queue, g)
	b.mu.Unlock()
	b.signal()
}

func (b *backlog) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.signal()
}

func (b *backlog) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take waits for the next one; nil: there will be none.
func (b *backlog) take(ctx context.Context) (*generation, error) {
	for {
		b.mu.Lock()
		if len(b.queue) > 0 {
			g := b.queue[0]
			b.queue = b.queue[1:]
			b.mu.Unlock()
			return g, nil
		}
		closed := b.closed
		b.mu.Unlock()
		if closed {
			return nil, nil
		}
		select {
		case <-b.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// kept is how many checked generations stay in the tables, to be looked at.
const kept = 2

// check judges the generations that have been played.
func (t *Traffic) check(ctx context.Context, played *backlog) error {
	db, err := pgx.Connect(ctx, t.cfg.Postgres)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	var old []*generation
	for {
		g, err := played.take(ctx)
		if g == nil {
			return err
		}
		v, err := t.judge(ctx, g, db)
		if err != nil {
			return err
		}
		t.heard.retire(g, v)
		old = append(old, g)
		if len(old) > kept {
			if err := old[0].forget(ctx, t.cfg.Clusters, db); err != nil {
				return err
			}
			old = old[1:]
		}
	}
}

// judge waits until a generation is as it must be, or for as long as it may.
func (t *Traffic) judge(ctx context.Context, g *generation, db *pgx.Conn) (*ledger.Verdict, error) {
	limit, cancel := context.WithTimeout(ctx, t.cfg.Settle)
	defer cancel()
	// That something is still missing is what the check will say.
	_ = g.ledger.AwaitPublished(limit)
	const pause = 200 * time.Millisecond
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("settle: %w", ctx.Err())
		}
		v, err := g.ledger.Check(ctx, db)
		if err != nil {
			return nil, err
		}
		if t.heard.deaf(g) {
			// Nothing can be said of publishes.
			v.Unpublished, v.Doubled, v.Early = 0, 0, 0
		}
		if v.OK() || limit.Err() != nil {
			return v, nil
		}
	}
}
