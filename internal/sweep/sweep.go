// Package sweep makes the rounds of the leader: it stops the rows of instances
// that nobody else will stop, and publishes what nobody else will publish.
//
// A row is stopped for what is missing, so the package errs on the side of
// leaving it:
//
//   - The rows are read before the cluster is asked, so that whoever started
//     in between is on the list.
//   - A row is stopped after two looks, some time apart, that both miss it and
//     find it unchanged.
//   - Before that, the owner of the shard has written all that it had heard by
//     the second look: it may hold the truth.
//   - A cluster that cannot be reached is no evidence. One that misses many
//     rows at once is held back, for a while or until it is confirmed.
//   - Nothing is done while a shard changes hands.
//   - The database stops a row only if it still is as it was read, and only
//     under the leader's fence. Two leaders at once, or one that was paused,
//     cannot do more than either alone.
//
// Each cluster has a loop of its own: a slow one delays no other. What is
// remembered between two rounds is bounded by the rows that are missing.
//
// Owner: whoever is the leader. Leadership is the caller's: it gives Run a
// context that ends with it, and the fence that it has raised.
package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// Store is what the rounds need of the rows; see store.Store. All of it is
// safe for concurrent use.
type Store interface {
	OpenInstances(ctx context.Context, region string, scope store.Scope, limits store.Limits) ([]store.OpenInstance, error)
	CountOpen(ctx context.Context, region string) (int, error)
	Deregistered(ctx context.Context, after time.Duration) ([]store.Deregistered, error)
	CheckLeader(ctx context.Context, fence shard.Fence) error
	StopInstances(ctx context.Context, order store.Stop) (store.Stopped, error)
}

// Outbox is what is left to be published; see store.Store.
type Outbox interface {
	OutboxShards(ctx context.Context, older time.Duration) ([]shard.ID, error)
	OrphanedOutbox(ctx context.Context, id shard.ID, older time.Duration, limit int) ([]store.OutboxRow, error)
	DeleteOutbox(ctx context.Context, refs []store.OutboxRef) error
}

// Publisher tells the platform. It asks may right before it sends anything, as
// often as it does, and ends with its error. An error means that an unknown part,
// from the beginning on, was published.
type Publisher interface {
	Publish(ctx context.Context, sets []event.Set, may publish.Permit) error
}

// Owners are those who hear the clusters and write their rows. All methods are
// safe for concurrent use.
type Owners interface {
	// Settled says whether no shard of the cluster is changing hands. A
	// cluster that nobody is to own is settled.
	Settled(cluster string) bool
	// CaughtUp says whether the owners of all shards of the cluster have
	// written everything that they had heard before since; those on other
	// machines judge that by when they were asked, which is later. A cluster
	// that nobody is to own has nothing unwritten.
	CaughtUp(ctx context.Context, cluster string, since time.Time) (bool, error)
	// Forget makes the cluster's owners forget what they have heard of these
	// instances, so that the same status heard again is written again.
	Forget(ctx context.Context, cluster string, ids []status.InstanceID) error
	// Owned says whether the shard has, or is about to have, an owner, who
	// will publish what its outbox holds. The zero ID, which stands for the
	// leader, has none.
	Owned(id shard.ID) bool
}

// Cluster is a workspace cluster that exists.
type Cluster struct {
	Name string
	// Address is where it is. Looks at two addresses do not count together:
	// they may be two clusters.
	Address string
	// Workspaces asks it for all the instances that it knows. An error means
	// that the list is not known in full.
	Workspaces func(context.Context) ([]status.InstanceID, error)
}

// Timing says when something is done unasked. Intervals are jittered by a
// tenth either way.
type Timing struct {
	// Interval is the time between two rounds; default 1 min.
	Interval time.Duration
	// MaxDisconnect is how long a cluster may be out of reach before every
	// round warns of it; default 150 s.
	MaxDisconnect time.Duration
	// SecondLook is how far apart the two looks are, at least, that a row has
	// to be missed by; default 10 s.
	SecondLook time.Duration
	// Hold is how long a cluster is held back that misses too many rows;
	// default 15 min.
	Hold time.Duration
	// Ask is how long a cluster may take to answer; default 2 min.
	Ask time.Duration
	// Attempt is how long one statement or publish may take; default 20 s.
	Attempt time.Duration
	// Orphan is how old a row of the outbox is before it can be an orphan;
	// default 1 min. It is longer than those who wrote it take to publish it
	// themselves: twice Attempt, at least.
	Orphan time.Duration
}

func (t Timing) withDefaults() Timing {
	t.Interval = cmp.Or(t.Interval, time.Minute)
	t.MaxDisconnect = cmp.Or(t.MaxDisconnect, 150*time.Second)
	t.SecondLook = cmp.Or(t.SecondLook, 10*time.Second)
	t.Hold = cmp.Or(t.Hold, 15*time.Minute)
	t.Ask = cmp.Or(t.Ask, 2*time.Minute)
	t.Attempt = cmp.Or(t.Attempt, 20*time.Second)
	t.Orphan = cmp.Or(t.Orphan, time.Minute)
	return t
}

// Config is what a Sweeper needs. All but Timing, Lifecycle and PrebuildEnded
// is required.
type Config struct {
	// Installation is the region of the rows that no cluster runs yet.
	Installation string
	Limits       store.Limits
	Timing       Timing

	Store     Store
	Outbox    Outbox
	Publisher Publisher
	Owners    Owners
	// Clusters gives the clusters that exist. After an error those known from
	// before stay.
	Clusters func(context.Context) ([]Cluster, error)

	// Lifecycle is called after a commit that recorded lifecycle events. It
	// must not block.
	Lifecycle func()
	// PrebuildEnded is called for each prebuild that a sweep has ended, with
	// its state. It must not block.
	PrebuildEnded func(state string)

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

func (c *Config) check() error {
	l := c.Limits
	switch {
	case c.Store == nil || c.Outbox == nil || c.Publisher == nil || c.Owners == nil || c.Clusters == nil:
		return errors.New("sweep: store, outbox, publisher, owners and clusters are required")
	case c.Logger == nil || c.Registerer == nil:
		return errors.New("sweep: logger and registerer are required")
	case c.Installation == "":
		return errors.New("sweep: the installation has no name")
	case min(l.Preparing, l.Building, l.Unknown, l.Pending, l.Stopping) <= 0:
		return errors.New("sweep: every limit must be positive")
	}
	t := c.Timing
	if min(t.Interval, t.MaxDisconnect, t.SecondLook, t.Hold, t.Ask, t.Attempt, t.Orphan) < 0 {
		return errors.New("sweep: times must not be negative")
	}
	c.Timing = t.withDefaults()
	if c.Lifecycle == nil {
		c.Lifecycle = func() {}
	}
	if c.PrebuildEnded == nil {
		c.PrebuildEnded = func(string) {}
	}
	return nil
}

var (
	// ErrUnknownCluster is the error of a request for a cluster that has no
	// rounds: it does not exist, or somebody else leads.
	ErrUnknownCluster = errors.New("there are no rounds of this cluster here")
	// ErrNotLeading is the error of whoever has no rounds because it does not
	// lead; it has done nothing.
	ErrNotLeading = errors.New("no replica leads at the moment, or the one that does has only just begun")
	// ErrNotHeld is the error of a confirmation that nothing waits for.
	ErrNotHeld = errors.New("the cluster is not held back")
)

// Sweeper makes the rounds. Run is for one caller at a time; the other methods
// may be called at any time by anybody, whether it runs or not.
type Sweeper struct {
	cfg     Config
	metrics *metrics

	// mu guards term.
	mu   sync.Mutex
	term *term // nil while Run does not run
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Sweeper, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Sweeper{cfg: cfg, metrics: m}, nil
}

// Run makes the rounds of one term of leadership until ctx, which ends with
// it, ends; it returns nil then. Its error wraps store.ErrNotLeader if another
// leader has raised the fence. Everything it started has ended when it
// returns.
func (s *Sweeper) Run(ctx context.Context, fence shard.Fence) error {
	t := &term{
		cfg:     s.cfg,
		metrics: s.metrics,
		fence:   fence,
		watches: make(map[string]*watch),
		// Two statements at a time: however many clusters there are, most
		// connections stay with those who write what they hear.
		turns: make(chan struct{}, 2),
		again: make(chan struct{}, 1),
	}
	s.mu.Lock()
	if s.term != nil {
		s.mu.Unlock()
		return errors.New("sweep: Run was called while it runs")
	}
	s.term = t
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.term = nil
		s.metrics.reset()
	}()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.supervise(ctx, group) })
	group.Go(func() error { return t.publishOrphans(ctx) })
	err := group.Wait()
	if errors.Is(err, store.ErrNotLeader) {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil // ctx has ended; everything else was dealt with
}

// Request asks for a round of one cluster now. The errors are
// ErrUnknownCluster and ErrNotLeading.
func (s *Sweeper) Request(cluster string) error {
	w, err := s.watch(cluster)
	if err != nil {
		return err
	}
	w.request()
	return nil
}

// Confirm says that the rows for which a cluster is held back are to be
// stopped, those of its last look, and asks for a round of it. The errors are
// ErrUnknownCluster, ErrNotLeading and ErrNotHeld.
func (s *Sweeper) Confirm(cluster string) error {
	w, err := s.watch(cluster)
	if err != nil {
		return err
	}
	return w.confirm()
}

// ClustersChanged says that other clusters exist than before: those that are new
// need not wait for the next round.
func (s *Sweeper) ClustersChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != nil {
		select {
		case s.term.again <- struct{}{}:
		default:
		}
	}
}

func (s *Sweeper) watch(cluster string) (*watch, error) {
	s.mu.Lock()
	t := s.term
	s.mu.Unlock()
	if t == nil {
		return nil, ErrNotLeading
	}
	if w := t.find(cluster); w != nil {
		return w, nil
	}
	return nil, ErrUnknownCluster
}

// term is one term of leadership.
type term struct {
	cfg     Config
	metrics *metrics
	fence   shard.Fence
	// seq numbers the statements that stop rows.
	seq atomic.Int64
	// turns bounds the statements at once.
	turns chan struct{}
	// again wakes supervise; size 1, so that wake-ups coalesce.
	again chan struct{}

	// mu guards watches. Those who change it belong to supervise.
	mu      sync.Mutex
	watches map[string]*watch
}

func (t *term) find(cluster string) *watch {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.watches[cluster]
}

// known names the clusters that exist.
func (t *term) known() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := make([]string, 0, len(t.watches))
	for name := range t.watches {
		names = append(names, name)
	}
	return names
}

// supervise keeps one loop for each cluster that exists, and makes the rounds
// of the rows that belong to none.
func (t *term) supervise(ctx context.Context, group *errgroup.Group) error {
	for read := false; ; {
		err := t.attempt(ctx, func(ctx context.Context) error { return t.cfg.Store.CheckLeader(ctx, t.fence) })
		if err == nil {
			err = t.reconcile(ctx, group)
		}
		if err == nil {
			read = true
		}
		if err == nil {
			err = t.installation(ctx)
		}
		switch {
		case errors.Is(err, store.ErrNotLeader):
			return err
		case err != nil && ctx.Err() == nil:
			t.metrics.rounds.WithLabelValues(outcomeFailed).Inc()
			t.cfg.Logger.Warn("the round of the installation could not be made; the next one will be", "error", err)
		}
		pause := jitter(t.cfg.Timing.Interval)
		if !read { // no cluster has a loop yet
			pause = min(pause, 5*time.Second)
		}
		select {
		case <-time.After(pause):
		case <-t.again:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *term) reconcile(ctx context.Context, group *errgroup.Group) error {
	clusters, err := t.cfg.Clusters(ctx)
	if err != nil {
		return fmt.Errorf("read which clusters exist: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	exists := make(map[string]bool, len(clusters))
	for _, c := range clusters {
		exists[c.Name] = true
		if w := t.watches[c.Name]; w != nil {
			w.update(c)
			continue
		}
		w := newWatch(t, c)
		t.watches[c.Name] = w
		loop, cancel := context.WithCancel(ctx)
		w.cancel = cancel
		group.Go(func() error {
			defer cancel()
			defer t.metrics.drop(c.Name)
			return w.run(loop)
		})
	}
	for name, w := range t.watches {
		if !exists[name] {
			w.cancel()
			delete(t.watches, name)
		}
	}
	return nil
}

// attempt gives a statement its turn and its time.
func (t *term) attempt(ctx context.Context, do func(context.Context) error) error {
	select {
	case t.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.turns }()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timing.Attempt)
	defer cancel()
	return do(ctx)
}

func jitter(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) }
