// Package coordinator decides which replica carries which shard, and sees to it
// on this one: membership, election, the assignment table in etcd, hand-overs.
//
// It is never what keeps rows right; the fence in the database is. So
// everything here may be late, repeated or lost:
//
//   - A replica is a member while it renews its lease, which it does while it is
//     healthy. It trusts the lease from before the request that renewed it, less
//     a margin.
//   - One member leads, by a key under its lease. Leadership is a context that
//     ends with the trust in the lease, or when the key is seen to be another's;
//     each write of the leader is guarded by that key (package term).
//   - Replicas read the table and say where they stand in keys under their lease
//     (packages duty and table). Whatever they have said is said again whenever
//     the store does not show it.
//   - A replica that is cut off from the store goes on with what it holds until
//     the database refuses its fence.
//
// Package link is the way to the store, package kv the store underneath. Owner: whoever changes hand-overs.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/coordinator/duty"
	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/link"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/coordinator/term"
	"github.com/trestle-bridge/trestle/shard"
)

// What the coordinator asks of the rest of the replica, and gives to it.
type (
	// Worker does the work of shards on this replica.
	Worker = duty.Worker
	// Signal is what a Worker tells of a shard.
	Signal = duty.Signal
	// Fences are kept by the database.
	Fences = duty.Fences
	// Known is what the database knows of a cluster.
	Known = duty.Known
	// Cluster is one cluster that exists.
	Cluster = term.Cluster
	// Measured is what a replica measures of one shard.
	Measured = table.Measured
)

// Replica is this process.
type Replica struct {
	// ID stays over restarts; preferences and pins go by it.
	ID string
	// Incarnation is new at every start, and owns fences; no slash.
	Incarnation string
	Revision    string
	// PeerAddress is host:port, reachable by the other replicas. It must listen
	// from before Run until after Leave: who refuses connections is taken for
	// dead.
	PeerAddress string
	// PeerKey is the fingerprint of the key with which it proves there who it is.
	PeerKey string
	// Capacity relative to the others, 0 means 1. Cap is the most weight it may
	// carry, 0 for no limit.
	Capacity, Cap float64
}

// Timing of the coordinator; zero values mean the defaults.
type Timing struct {
	// Renew is how often the lease is renewed; a quarter of it.
	Renew time.Duration
	// Margin is how much sooner than the store we hold the lease for expired; a
	// tenth of it.
	Margin time.Duration
	// Call bounds a call to the store; a quarter of the lease, 3 s at most.
	Call time.Duration
	// Relist is how often the whole table is read anew; 5 minutes.
	Relist time.Duration
	// Stale is how long the store may take to show what was written; 2 s.
	Stale time.Duration
	// Report is how often loads are told; 5 s.
	Report time.Duration
	// Probe is how often the peers are probed; 500 ms.
	Probe time.Duration
	// Limits of the phases of a hand-over, and the planner's settings.
	Limits  shard.Limits
	Planner shard.Settings
	// WeighEvery is how often the leader reckons weights; 15 s.
	WeighEvery time.Duration
	// Quiet is how long a replica that has handed over stays at most while others
	// have not; 2.5 s.
	Quiet time.Duration
	// Gather is how long the leader waits for others to say that they drain after
	// one has; 750 ms.
	Gather time.Duration
	// MovesAtOnce is how many planned moves to one replica go on at once; 8.
	MovesAtOnce int
}

// Config of a Coordinator.
type Config struct {
	// Store is etcd, as kv.Etcd makes it of a client.
	Store   kv.Store
	Prefix  string
	Replica Replica
	// Lease is how long a replica may be silent; 0 means 10 s.
	Lease  time.Duration
	Worker Worker
	Fences Fences
	// Clusters gives those that exist; false while that is not known. It is
	// asked often and must not wait.
	Clusters func() ([]Cluster, bool)
	// Measure gives what is measured of the shards held; optional.
	Measure func() map[shard.ID]Measured
	// Healthy says that this replica's loops turn; optional.
	Healthy func() bool
	// Probe says whether a peer address refuses connections; silence is no
	// refusal. Optional; without it a crash is found when the lease expires.
	Probe func(ctx context.Context, address string) (refused bool)
	// Sweep is told, on the leader, of clusters whose owner crashed. It must not
	// wait. Optional.
	Sweep func(cluster string)
	// Lead runs while this replica leads; its context ends with leadership, and
	// then it must return. Optional.
	Lead       func(ctx context.Context)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Timing     Timing
}

func (cfg *Config) complete() error {
	switch {
	case cfg.Store == nil || cfg.Worker == nil || cfg.Fences == nil || cfg.Clusters == nil || cfg.Logger == nil || cfg.Registerer == nil:
		return errors.New("coordinator: store, worker, fences, clusters, logger and registerer are required")
	case cfg.Replica.ID == "" || cfg.Replica.Incarnation == "":
		return errors.New("coordinator: the replica needs an ID and an incarnation")
	case strings.Contains(cfg.Replica.Incarnation, "/"):
		return fmt.Errorf("coordinator: the incarnation %q has a slash", cfg.Replica.Incarnation)
	case cfg.Lease < 0 || cfg.Replica.Capacity < 0 || cfg.Replica.Cap < 0:
		return errors.New("coordinator: lease, capacity and cap must not be negative")
	}
	fill := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	t := &cfg.Timing
	fill(&cfg.Lease, 10*time.Second)
	fill(&t.Renew, cfg.Lease/4)
	fill(&t.Margin, cfg.Lease/10)
	fill(&t.Call, min(cfg.Lease/4, 3*time.Second))
	fill(&t.Relist, 5*time.Minute)
	fill(&t.Stale, 2*time.Second)
	fill(&t.Report, 5*time.Second)
	fill(&t.Probe, 500*time.Millisecond)
	fill(&t.Quiet, 2500*time.Millisecond)
	fill(&t.Gather, 750*time.Millisecond)
	fill(&t.Planner.Lease, cfg.Lease)
	if cfg.Measure == nil {
		cfg.Measure = func() map[shard.ID]Measured { return nil }
	}
	if cfg.Healthy == nil {
		cfg.Healthy = func() bool { return true }
	}
	if cfg.Sweep == nil {
		cfg.Sweep = func(string) {}
	}
	return nil
}

// Coordinator is one replica's part in the fleet. Its methods may be called at
// once.
type Coordinator struct {
	cfg     Config
	layout  table.Layout
	link    *link.Link
	duties  *duty.Duties
	metrics *metrics
	leader  *term.Metrics

	started time.Time
	// draining is set by Leave, left when it has done so.
	draining, left atomic.Bool
	leading        atomic.Bool
	// They wake the loops of these names, and coalesce.
	assign, answered, held, elect, lead chan struct{}
}

// New starts nothing; Run does.
func New(cfg Config) (*Coordinator, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Coordinator{
		cfg: cfg, layout: table.NewLayout(cfg.Prefix), started: time.Now(),
		assign: make(chan struct{}, 1), answered: make(chan struct{}, 1), held: make(chan struct{}, 1), elect: make(chan struct{}, 1), lead: make(chan struct{}, 1),
	}
	var err error
	if c.metrics, err = newMetrics(cfg.Registerer, c); err != nil {
		return nil, err
	}
	if c.leader, err = term.NewMetrics(cfg.Registerer); err != nil {
		return nil, err
	}
	t := cfg.Timing
	c.link, err = link.New(link.Config{
		Store: cfg.Store, Layout: c.layout, Incarnation: cfg.Replica.Incarnation, Healthy: cfg.Healthy,
		Wakes:  []chan struct{}{c.assign, c.elect, c.lead},
		Timing: link.Timing{Lease: cfg.Lease, Renew: t.Renew, Margin: t.Margin, Call: t.Call, Relist: t.Relist, Stale: t.Stale},
		Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	c.duties, err = duty.New(duty.Config{
		Incarnation: cfg.Replica.Incarnation, Worker: cfg.Worker, Fences: cfg.Fences, Logger: cfg.Logger,
		Answered: func() {
			poke(c.answered)
			poke(c.held)
		},
		Raised: func(d time.Duration) { c.metrics.raised.Observe(d.Seconds()) },
	})
	if err != nil {
		return nil, err
	}
	c.link.Say(c.layout.Member(cfg.Replica.Incarnation), c.member())
	return c, nil
}

func (c *Coordinator) me() string { return c.cfg.Replica.Incarnation }

func (c *Coordinator) member() []byte {
	r := c.cfg.Replica
	return table.Encode(table.Member{
		Name: r.ID, Revision: r.Revision, Peer: r.PeerAddress, PeerKey: r.PeerKey, Capacity: r.Capacity, Cap: r.Cap,
		Draining: c.draining.Load(), Started: c.started.UTC(),
	})
}

// Run takes part in the fleet until ctx ends and everything it started has. It
// does not give anything up then: without a Leave before, the others find this
// replica gone when its lease expires.
func (c *Coordinator) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context) error{
		c.link.Run, c.duties.Run, c.runAssign, c.runAnswers, c.runElection, c.runProbes, c.runReports,
	} {
		group.Go(func() error { return loop(ctx) })
	}
	return group.Wait()
}

// runAssign tells the duties what the table says.
func (c *Coordinator) runAssign(ctx context.Context) error {
	for ctx.Err() == nil {
		begun := time.Now()
		if assigned := c.assigned(); assigned != nil {
			c.duties.Assign(ctx, assigned)
		}
		// Where there are thousands of shards and all of them move, this leaves
		// half of the time to others.
		wait(ctx, time.Since(begun), nil)
		// Whether a cluster exists is nothing that anybody tells us of.
		wait(ctx, time.Second, c.assign)
	}
	return nil
}

// runAnswers says what the duties answer.
func (c *Coordinator) runAnswers(ctx context.Context) error {
	for ctx.Err() == nil {
		c.link.Answer(c.duties.Fresh())
		select {
		case <-c.answered:
		case <-ctx.Done():
		}
	}
	return nil
}

// assigned is what the table says of the shards that concern this replica; nil
// before it was read.
func (c *Coordinator) assigned() map[shard.ID]duty.Assigned {
	known := c.duties.Concerned()
	var assigned map[shard.ID]duty.Assigned
	var missing []shard.ID
	c.link.Look(func(v *table.View) {
		if v.Revision == 0 {
			return
		}
		assigned = make(map[shard.ID]duty.Assigned, len(known))
		for id := range known {
			_, found := v.Shards[id]
			assigned[id] = duty.Assigned{Record: c.record(v, id), Found: found, Exists: true}
			if !found {
				missing = append(missing, id)
			}
		}
		for id, stored := range v.Shards {
			if r := &stored.Value.Record; r.Owner == c.me() || r.Next == c.me() {
				assigned[id] = duty.Assigned{Record: c.record(v, id), Found: true, Exists: true}
			}
		}
	})
	if len(missing) > 0 {
		exists := c.exists()
		for _, id := range missing {
			assigned[id] = duty.Assigned{Exists: exists(id.Cluster)}
		}
	}
	return assigned
}

// record is a shard's assignment as it is stored or, for its next owner, as it
// will be once the leader has read that the owner has released. The owner goes by
// what is stored: it has to say so until the leader has read it.
func (c *Coordinator) record(v *table.View, id shard.ID) shard.Record {
	r := v.Shards[id].Value.Record
	if r.Next != c.me() {
		return r
	}
	if a := v.Answers[id][r.Owner].Value; a.Kind == table.Released {
		return r.Succeeded(a.Attempt)
	}
	return r
}

func (c *Coordinator) exists() func(cluster string) bool {
	list, known := c.cfg.Clusters()
	if !known {
		return func(string) bool { return true }
	}
	names := make(map[string]bool, len(list))
	for _, cluster := range list {
		names[cluster.Name] = true
	}
	return func(cluster string) bool { return names[cluster] }
}

// runReports tells what is measured, from time to time and soon after shards
// have come or gone: whether an owner hears its cluster decides about its next
// hand-over, which may be ordered right after it has taken over.
func (c *Coordinator) runReports(ctx context.Context) error {
	for ctx.Err() == nil {
		load := table.Load{At: time.Now().UTC(), Shards: make(map[string]table.Measured)}
		held := c.duties.Held()
		for id, m := range c.cfg.Measure() {
			if _, ours := held[id]; ours {
				load.Shards[id.String()] = m
			}
		}
		c.link.Say(c.layout.Load(c.me()), table.Encode(load))
		begun := time.Now()
		wait(ctx, jitter(c.cfg.Timing.Report), c.held)
		// One after the other, as in a hand-over of many shards.
		wait(ctx, c.cfg.Timing.Report/10-time.Since(begun), nil)
	}
	return nil
}

// poke wakes the reader of a channel of size 1.
func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// wait returns after d, when woken, or when ctx ends.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// jitter keeps periodic work of many replicas apart.
func jitter(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) }
