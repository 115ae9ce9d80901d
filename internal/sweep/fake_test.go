package sweep

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

var errAway = errors.New("connection refused")

// world is everything around a sweeper, in memory and without I/O, so that
// its time can be that of a bubble.
type world struct {
	t *testing.T

	mu       sync.Mutex
	rows     map[status.InstanceID]*fakeRow
	fence    shard.Fence
	gone     []store.Deregistered
	clusters map[string]*fakeCluster
	listFail error

	outbox    []store.OutboxRow
	published []event.Set
	forgotten map[string][]status.InstanceID
	lifecycle int
	prebuilds []string
	statuses  int // statements under way
	most      int // and the most of them ever

	// Faults.
	publishFail, readFail error
	stopFail              func(store.Stop) error
	unsettled, behind     map[string]bool
	movesWhenAsked        bool // a hand-over begins when an owner is asked
	owned                 map[shard.ID]bool
	// forgets, if set, is called when an owner was told to forget, and read, under
	// the mutex, when orphans were read.
	forgets, read func()
	// askedSince is what the owners were last asked about, by cluster.
	askedSince map[string]time.Time
	log        lines
}

type fakeRow struct {
	store.OpenInstance
	region            string
	created, stopping time.Time
	stopped           time.Time
}

type fakeCluster struct {
	address string
	known   []status.InstanceID
	fail    error
	hang    bool
	asked   []time.Time
	// during is called, if set, while the cluster is asked.
	during func()
}

// lines keeps the messages of a log.
type lines struct {
	slog.Handler
	mu  sync.Mutex
	all []slog.Record
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r)
	return nil
}
func (l *lines) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *lines) WithGroup(string) slog.Handler      { return l }

// count gives how many messages of a level there were.
func (l *lines) count(level slog.Level) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.all {
		if r.Level == level {
			n++
		}
	}
	return n
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, rows: map[status.InstanceID]*fakeRow{}, clusters: map[string]*fakeCluster{},
		forgotten: map[string][]status.InstanceID{}, unsettled: map[string]bool{}, behind: map[string]bool{},
		owned: map[shard.ID]bool{}, askedSince: map[string]time.Time{},
	}
}

func (w *world) cluster(name string, known ...status.InstanceID) *fakeCluster {
	c := &fakeCluster{known: known}
	w.clusters[name] = c
	return c
}

func (w *world) insert(region string, age time.Duration, rows ...store.OpenInstance) {
	for _, r := range rows {
		w.rows[r.ID] = &fakeRow{OpenInstance: r, region: region, created: time.Now().Add(-age)}
	}
}

func limits() store.Limits {
	return store.Limits{Preparing: time.Hour, Building: time.Hour, Unknown: 10 * time.Minute, Pending: time.Hour, Stopping: time.Hour}
}

func (w *world) sweeper() (*Sweeper, *prometheus.Registry) {
	w.t.Helper()
	registry := prometheus.NewRegistry()
	s, err := New(Config{
		Installation: "local", Limits: limits(),
		Store: w, Outbox: w, Publisher: w, Owners: w, Clusters: w.list,
		Lifecycle:     func() { w.with(func() { w.lifecycle++ }) },
		PrebuildEnded: func(state string) { w.with(func() { w.prebuilds = append(w.prebuilds, state) }) },
		Logger:        slog.New(&w.log), Registerer: registry,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s, registry
}

// bubble runs a test in a bubble of time, with a sweeper that leads until the
// test ends. The first rounds are asked for, so that they begin at once.
func bubble(t *testing.T, prepare func(*world), test func(*world, *Sweeper, *prometheus.Registry)) {
	bubbletest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		prepare(w)
		s, registry := w.sweeper()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1) // the test may have failed before it reads
		go func() { done <- s.Run(ctx, w.lead()) }()
		synctest.Wait()
		for name := range w.clusters {
			if err := s.Request(name); err != nil && w.listFail == nil {
				t.Errorf("request a round of %s: %v", name, err)
			}
		}
		test(w, s, registry)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func (w *world) lead() shard.Fence {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fence = shard.Fence{Epoch: w.fence.Epoch + 1, Owner: "leader"}
	return w.fence
}

func (w *world) with(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// stopped gives the ids of the rows that are stopped, in order.
func (w *world) stopped() (ids []status.InstanceID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.rows {
		if !r.stopped.IsZero() {
			ids = append(ids, r.ID)
		}
	}
	slices.SortFunc(ids, func(a, b status.InstanceID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

func (w *world) wantStopped(when string, want ...status.InstanceID) {
	w.t.Helper()
	synctest.Wait()
	if got := w.stopped(); !slices.Equal(got, want) {
		w.t.Errorf("%s: %d rows are stopped (%v), want %d", when, len(got), got, len(want))
	}
}

func (w *world) asked(cluster string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.clusters[cluster].asked)
}

func gauge(t *testing.T, registry *prometheus.Registry, name string) (values map[string]float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 {
				values[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return values
}

func (w *world) statement() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.statuses++
	w.most = max(w.most, w.statuses)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.statuses--
	}
}

func (w *world) OpenInstances(_ context.Context, region string, scope store.Scope, l store.Limits) (out []store.OpenInstance, err error) {
	defer w.statement()()
	time.Sleep(100 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readFail != nil {
		return nil, w.readFail
	}
	for _, r := range w.rows {
		age, stopping := time.Since(r.created), time.Since(r.stopping)
		expired := r.Phase == store.PhasePreparing && age > l.Preparing || r.Phase == store.PhaseBuilding && age > l.Building ||
			r.Phase == store.PhaseUnknown && age > l.Unknown
		doubtful := r.Phase == status.PhaseRunning || r.Phase == status.PhaseInterrupted ||
			(r.Phase == status.PhasePending || r.Phase == status.PhaseCreating || r.Phase == status.PhaseInitializing) && age > l.Pending ||
			r.Phase == status.PhaseStopping && stopping > l.Stopping
		if r.region == region && r.stopped.IsZero() && (scope == store.ScopeAll || expired || scope == store.ScopeDoubtful && doubtful) {
			out = append(out, r.OpenInstance)
		}
	}
	slices.SortFunc(out, func(a, b store.OpenInstance) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out, nil
}

func (w *world) CountOpen(_ context.Context, region string) (n int, err error) {
	defer w.statement()()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.rows {
		if r.region == region && r.stopped.IsZero() {
			n++
		}
	}
	return n, nil
}

func (w *world) Deregistered(context.Context, time.Duration) ([]store.Deregistered, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.gone), nil
}

func (w *world) CheckLeader(_ context.Context, fence shard.Fence) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fence != w.fence {
		return store.ErrNotLeader
	}
	return nil
}

func (w *world) StopInstances(_ context.Context, order store.Stop) (stopped store.Stopped, err error) {
	defer w.statement()()
	time.Sleep(10 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	if order.Leader != w.fence {
		return store.Stopped{}, store.ErrNotLeader
	}
	if w.stopFail != nil {
		if err := w.stopFail(order); err != nil {
			return store.Stopped{}, err
		}
	}
	var told event.Set
	for _, want := range order.Instances {
		r := w.rows[want.ID]
		if r == nil || r.OpenInstance != want || !r.stopped.IsZero() || r.region != order.Region {
			continue
		}
		r.stopped = time.Now()
		stopped.Instances = append(stopped.Instances, want)
		told.Instances = append(told.Instances, event.Instance{InstanceID: want.ID.String()})
		told.Prebuilds = append(told.Prebuilds, event.Prebuild{Status: "aborted", PrebuildID: want.ID.String()})
	}
	stopped.Lifecycle = len(stopped.Instances)
	stopped.Outbox = store.OutboxRow{Ref: store.OutboxRef{Epoch: order.Leader.Epoch, Owner: order.Leader.Owner, Seq: order.Seq}, CreatedAt: time.Now(), Events: told}
	if told.Len() > 0 {
		w.outbox = append(w.outbox, stopped.Outbox)
	}
	return stopped, nil
}

func (w *world) OutboxShards(_ context.Context, older time.Duration) (ids []shard.ID, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, row := range w.outbox {
		if time.Since(row.CreatedAt) > older && !slices.Contains(ids, row.Ref.Shard) {
			ids = append(ids, row.Ref.Shard)
		}
	}
	return ids, nil
}

func (w *world) OrphanedOutbox(_ context.Context, id shard.ID, older time.Duration, limit int) (out []store.OutboxRow, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, row := range w.outbox {
		if row.Ref.Shard == id && time.Since(row.CreatedAt) > older && len(out) < limit {
			out = append(out, row)
		}
	}
	if w.read != nil {
		w.read()
	}
	return out, nil
}

func (w *world) DeleteOutbox(_ context.Context, refs []store.OutboxRef) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outbox = slices.DeleteFunc(w.outbox, func(row store.OutboxRow) bool { return slices.Contains(refs, row.Ref) })
	return nil
}

func (w *world) Publish(ctx context.Context, sets []event.Set, may publish.Permit) error {
	if err := may(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.publishFail != nil {
		return w.publishFail
	}
	w.published = append(w.published, sets...)
	return nil
}

// publishes counts how often the instances were published.
func (w *world) publishes() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]int{}
	for _, set := range w.published {
		for _, i := range set.Instances {
			out[i.InstanceID]++
		}
	}
	return out
}

func (w *world) Settled(cluster string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.unsettled[cluster]
}

func (w *world) CaughtUp(_ context.Context, cluster string, since time.Time) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.askedSince[cluster] = since
	w.unsettled[cluster] = w.unsettled[cluster] || w.movesWhenAsked
	return !w.behind[cluster], nil
}

func (w *world) Forget(_ context.Context, cluster string, ids []status.InstanceID) error {
	w.with(func() { w.forgotten[cluster] = append(w.forgotten[cluster], ids...) })
	if w.forgets != nil {
		w.forgets()
	}
	return nil
}

func (w *world) Owned(id shard.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.owned[id]
}

func (w *world) list(context.Context) (out []Cluster, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, c := range w.clusters {
		out = append(out, Cluster{Name: name, Address: c.address, Workspaces: func(ctx context.Context) ([]status.InstanceID, error) {
			w.mu.Lock()
			c.asked = append(c.asked, time.Now())
			hang, during := c.hang, c.during
			w.mu.Unlock()
			if hang {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			if during != nil {
				during()
			}
			time.Sleep(time.Second)
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(c.known), c.fail
		}})
	}
	return out, w.listFail
}

// refused is what the database says of a row that it does not take.
func refused() error { return &pgconn.PgError{Code: "23514", Message: "violates check constraint"} }
