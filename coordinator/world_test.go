package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/kv/kvtest"
	"github.com/trestle-bridge/trestle/shard"
)

// world is a fleet in a bubble: a store, a database with fences, clusters, and
// replicas that can be killed, paused and cut off.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	lease time.Duration
	store *kvtest.Fake
	// connect, if set, gives the replicas another store than the fake.
	connect func(*node) kv.Store
	db      *database
	log     *slog.Logger
	nodes   []*node
	born    int

	mu       sync.Mutex // guards what follows, and rng
	clusters map[string]bool
	rates    map[string]float64
	peers    map[string]bool
	swept    []string
	faults   []string // found by the oracle
}

func newWorld(t *testing.T, seed uint64, clusters int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 3)), lease: 5 * time.Second,
		store: kvtest.New(), clusters: make(map[string]bool), peers: make(map[string]bool), log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if os.Getenv("TRESTLE_SIM_LOG") != "" {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.db = &database{w: w, fences: make(map[shard.ID]shard.Fence), cuts: make(map[string]Known), last: make(map[shard.ID]written), at: make(map[string]time.Time)}
	w.store.Observe(w.check)
	for i := range clusters {
		w.clusters[fmt.Sprintf("c%02d", i)] = true
	}
	return w
}

func (w *world) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

func (w *world) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.clusters))
}

// check holds that only who leads writes what is the leader's, and that no epoch
// goes back or changes hands.
func (w *world) check(who kvtest.Faults, stored map[string]kv.Item, ops []kv.Op) {
	n, ours := who.(*node)
	if !ours {
		return // a test of its own accord
	}
	for _, op := range ops {
		kind, _, _ := strings.Cut(strings.TrimPrefix(op.Key, "/trestle/"), "/")
		if !slices.Contains([]string{"shards", "clusters", "roster", "fleet", "drains"}, kind) {
			continue
		}
		if leader := string(stored["/trestle/leader"].Value); !strings.Contains(leader, `"`+n.inc+`"`) {
			w.fault("%s writes %s, and the leader is %s", n.inc, op.Key, leader)
		}
		before, exists := stored[op.Key]
		if kind != "shards" || op.Delete || !exists {
			continue
		}
		var old, next shard.Record
		if json.Unmarshal(before.Value, &old) != nil || json.Unmarshal(op.Value, &next) != nil {
			continue
		}
		if next.Epoch < old.Epoch || next.Epoch == old.Epoch && next.Owner != old.Owner && old.Owner != "" && next.Owner != "" {
			w.fault("%s: from %+v to %+v", op.Key, old, next)
		}
	}
}

// database has the fences, and an oracle that does not believe in them.
type database struct {
	w  *world
	mu sync.Mutex // guards what follows

	away     bool
	unfenced bool // a deliberate fault: fences are not checked
	fences   map[shard.ID]shard.Fence
	cuts     map[string]Known
	refused  int

	// The oracle's: who wrote a shard last, and when which part of a cluster
	// was written last.
	last map[shard.ID]written
	at   map[string]time.Time
	gap  time.Duration
}

type written struct {
	fence shard.Fence
	at    time.Time
}

var errAway = errors.New("the database is away")

func (d *database) raise(f shard.Fence) (shard.Fence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return shard.Fence{}, errAway
	}
	stored := d.fences[f.Shard]
	if f.Generation >= d.cuts[f.Shard.Cluster].Generation && (f.Epoch > stored.Epoch || f.Epoch == stored.Epoch && f.Owner == stored.Owner) {
		d.fences[f.Shard] = f
		return f, nil
	}
	stored.Generation = max(stored.Generation, d.cuts[f.Shard.Cluster].Generation)
	return stored, nil
}

func (d *database) write(f shard.Fence) (ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return false, errAway
	}
	if !d.unfenced && (d.fences[f.Shard] != f || f.Generation < d.cuts[f.Shard.Cluster].Generation) {
		d.refused++
		return false, nil
	}
	now := time.Now()
	last := d.last[f.Shard]
	if last.fence.Epoch > f.Epoch || last.fence.Epoch == f.Epoch && last.fence.Owner != "" && last.fence.Owner != f.Owner {
		d.w.fault("%s: written by %s at epoch %d after %s at epoch %d", f.Shard, f.Owner, f.Epoch, last.fence.Owner, last.fence.Epoch)
	}
	for id, other := range d.last {
		if id.Cluster == f.Shard.Cluster && id.Slices != f.Shard.Slices && other.fence.Generation > f.Generation {
			d.w.fault("%s of generation %d is written after %s of generation %d", f.Shard, f.Generation, id, other.fence.Generation)
		}
	}
	if !last.at.IsZero() {
		d.gap = max(d.gap, now.Sub(last.at))
	}
	d.last[f.Shard] = written{f, now}
	return true, nil
}

func (d *database) refusals() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refused
}

// stalled lists shards that exist and have not been written for a while.
func (d *database) stalled(ids []shard.ID, within time.Duration) (stalled []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		if at := d.last[id].at; time.Since(at) > within {
			stalled = append(stalled, fmt.Sprintf("%s (fence %+v, last written %v ago)", id, d.fences[id], time.Since(at)))
		}
	}
	return stalled
}

// node is one replica: its coordinator, its worker, and what stands between them
// and the world.
type node struct {
	w       *world
	name    string
	inc     string
	peer    string
	c       *Coordinator
	cancel  context.CancelFunc
	done    chan struct{}
	signals chan Signal

	mu      sync.Mutex // guards what follows
	dead    bool
	paused  chan struct{} // closed when it goes on; nil while it runs
	cut     chan struct{} // the same for the way to the store
	lossy   int           // of a hundred calls to the store, how many are lost
	trapped bool          // the next write pauses the replica, and arrives when it goes on
	sick    bool
	workers map[shard.ID]*writer
	// unready makes Own begin as if nothing had been prepared.
	impatient bool
}

type writer struct {
	ready  bool
	fence  shard.Fence
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *world) start(name, revision string) *node {
	w.born++
	n := &node{
		w: w, name: name, inc: fmt.Sprintf("%s.%d", name, w.born), peer: fmt.Sprintf("10.0.0.%d:1", w.born),
		done: make(chan struct{}), signals: make(chan Signal), workers: make(map[shard.ID]*writer),
	}
	connect := w.connect
	if connect == nil {
		connect = func(n *node) kv.Store { return w.store.Client(n) }
	}
	c, err := New(Config{
		Store: connect(n), Prefix: "/trestle", Lease: w.lease,
		Replica:  Replica{ID: name, Incarnation: n.inc, Revision: revision, PeerAddress: n.peer},
		Worker:   n,
		Fences:   n,
		Clusters: n.clusters,
		Probe:    w.probe,
		Healthy: func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return !n.sick
		},
		Measure: n.measure,
		Sweep: func(cluster string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.swept = append(w.swept, cluster)
		},
		Logger:     w.log.With("node", n.inc),
		Registerer: prometheus.NewRegistry(),
		Timing:     Timing{Planner: shard.Settings{LevelEvery: 5 * time.Second}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n.c = c
	w.mu.Lock()
	w.peers[n.peer] = true
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() {
		defer close(n.done)
		if err := c.Run(ctx); err != nil {
			w.fault("%s: %v", n.inc, err)
		}
	}()
	w.nodes = append(w.nodes, n)
	return n
}

func (n *node) measure() map[shard.ID]Measured {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	measured := make(map[shard.ID]Measured)
	for cluster, rate := range n.w.rates {
		measured[shard.Whole(cluster)] = Measured{Rate: rate, Live: 100}
	}
	return measured
}

func (n *node) clusters() ([]Cluster, bool) {
	var list []Cluster
	for _, name := range n.w.names() {
		list = append(list, Cluster{Name: name})
	}
	return list, true
}

// stop ends a replica at once, as a crash does.
func (n *node) stop() {
	n.resume()
	n.heal()
	n.mu.Lock()
	n.dead = true
	n.mu.Unlock()
	n.w.mu.Lock()
	delete(n.w.peers, n.peer)
	n.w.mu.Unlock()
	n.cancel()
	<-n.done
	n.mu.Lock()
	ids := slices.Collect(maps.Keys(n.workers))
	n.mu.Unlock()
	for _, id := range ids {
		n.Drop(id)
	}
	n.w.nodes = slices.DeleteFunc(n.w.nodes, func(x *node) bool { return x == n })
}

// leave ends it in order.
func (n *node) leave(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	err := n.c.Leave(ctx)
	n.stop()
	return err
}

func (n *node) pause() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paused == nil {
		n.paused = make(chan struct{})
	}
}

func (n *node) trap() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trapped = true
}

func (n *node) resume() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trapped = false
	if n.paused != nil {
		close(n.paused)
		n.paused = nil
	}
}

func (n *node) partition() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut == nil {
		n.cut = make(chan struct{})
	}
}

func (n *node) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut != nil
}

func (n *node) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut != nil {
		close(n.cut)
		n.cut = nil
	}
	n.lossy, n.sick, n.trapped = 0, false, false
}

// pass stands for all that a paused process cannot do: it holds whoever passes,
// whatever their context says.
func (n *node) pass() {
	for {
		n.mu.Lock()
		paused := n.paused
		n.mu.Unlock()
		if paused == nil {
			return
		}
		<-paused
	}
}

func (n *node) Request(ctx context.Context, what string) error { return n.network(ctx, what) }
func (n *node) Answer(ctx context.Context, what string) error  { return n.network(ctx, what) }

func (n *node) network(ctx context.Context, what string) error {
	n.pass()
	n.mu.Lock()
	cut, lossy := n.cut, n.lossy
	trapped := n.trapped && what == "txn" && n.paused == nil
	if trapped {
		n.trapped, n.paused = false, make(chan struct{})
	}
	n.mu.Unlock()
	if trapped {
		n.pass()
		return nil
	}
	if cut != nil {
		select {
		case <-cut:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	delay := time.Duration(n.w.random(2000)) * time.Microsecond
	if lossy > 0 {
		if what != "watch" && n.w.random(100) < lossy {
			return kvtest.ErrAway
		}
		delay = time.Duration(n.w.random(300)) * time.Millisecond
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	n.pass()
	return nil
}

func (w *world) probe(ctx context.Context, address string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.peers[address]
}

func (n *node) query(ctx context.Context) error {
	n.pass()
	select {
	case <-time.After(time.Duration(n.w.random(2000)) * time.Microsecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	n.pass()
	return nil
}

func (n *node) Raise(ctx context.Context, f shard.Fence) (shard.Fence, error) {
	if err := n.query(ctx); err != nil {
		return shard.Fence{}, err
	}
	stored, err := n.w.db.raise(f)
	if err != nil {
		return shard.Fence{}, err
	}
	return stored, n.query(ctx)
}

func (n *node) Known(ctx context.Context, clusters []string) (map[string]Known, error) {
	if err := n.query(ctx); err != nil {
		return nil, err
	}
	d := n.w.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, errAway
	}
	known := make(map[string]Known)
	for _, name := range clusters {
		k, is := d.cuts[name]
		if !is {
			k.Slices = 1
		}
		for id, f := range d.fences {
			if id.Cluster == name {
				k.Fences = append(k.Fences, f)
			}
		}
		if is || len(k.Fences) > 0 {
			known[name] = k
		}
	}
	return known, nil
}

func (n *node) Cut(ctx context.Context, cluster string, generation int64, slices int) error {
	if err := n.query(ctx); err != nil {
		return err
	}
	d := n.w.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return errAway
	}
	if generation > d.cuts[cluster].Generation {
		d.cuts[cluster] = Known{Slices: slices, Generation: generation}
	}
	return nil
}

// The worker. To subscribe takes a while, to be told a little, and updates come
// every 20 ms.
const subscribing = 400 * time.Millisecond

func (n *node) writer(id shard.ID) *writer {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.workers[id] == nil {
		n.workers[id] = &writer{}
	}
	return n.workers[id]
}

func (n *node) Prepare(ctx context.Context, id shard.ID) error {
	n.pass()
	x := n.writer(id)
	select {
	case <-time.After(subscribing):
	case <-ctx.Done():
		return ctx.Err()
	}
	n.pass()
	n.mu.Lock()
	defer n.mu.Unlock()
	x.ready = true
	return nil
}

func (n *node) Own(ctx context.Context, f shard.Fence) error {
	n.pass()
	n.halt(f.Shard)
	x := n.writer(f.Shard)
	writing, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	wait := time.Duration(0)
	if !x.ready || n.impatient {
		wait = subscribing
	}
	x.ready, x.fence, x.cancel, x.done = true, f, cancel, make(chan struct{})
	done := x.done
	n.mu.Unlock()
	go func() {
		defer close(done)
		n.write(writing, f, wait)
	}()
	return nil
}

func (n *node) write(ctx context.Context, f shard.Fence, wait time.Duration) {
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = 20 * time.Millisecond
		n.pass()
		if n.isDead() {
			return
		}
		ok, err := n.w.db.write(f)
		if err == nil && !ok {
			select {
			case n.signals <- Signal{Shard: f.Shard, Fenced: true, Epoch: f.Epoch}:
			case <-ctx.Done():
			}
			return
		}
	}
}

func (n *node) isDead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead
}

// halt ends the writing of a shard and waits for it.
func (n *node) halt(id shard.ID) {
	n.mu.Lock()
	x := n.workers[id]
	var done chan struct{}
	if x != nil && x.cancel != nil {
		x.cancel()
		done = x.done
	}
	n.mu.Unlock()
	if done != nil {
		<-done
	}
}

func (n *node) Release(ctx context.Context, id shard.ID) error {
	n.pass()
	select {
	case <-time.After(15 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	n.halt(id)
	n.mu.Lock()
	defer n.mu.Unlock()
	if x := n.workers[id]; x != nil {
		x.ready = false
	}
	return nil
}

func (n *node) Drop(id shard.ID) {
	n.halt(id)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.workers, id)
}

func (n *node) Signals() <-chan Signal { return n.signals }

// shards lists all shards that should be there, as some replica sees it.
func (w *world) shards() []shard.ID {
	var ids []shard.ID
	s, _ := w.nodes[0].c.State()
	for _, name := range w.names() {
		ids = append(ids, shard.Slices(name, s.Clusters[name].Slices)...)
	}
	return ids
}

func (w *world) end() {
	for len(w.nodes) > 0 {
		w.nodes[0].stop()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.faults) > 0 {
		w.t.Errorf("%s", strings.Join(w.faults[:min(len(w.faults), 10)], "\n"))
	}
}
