package sweep

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// parts are a database, a pipeline and a simulated cluster, all real, around
// the sweepers of a test.
type parts struct {
	testing.TB
	store   *store.Store
	db      *pgxpool.Pool
	pipe    *pipeline.Pipeline
	intake  *pipeline.Intake
	cluster *sim.Cluster
	client  *upstream.Client
	told    *told
	// away makes what the pipeline writes fail, as if the database were away.
	away atomic.Bool
}

// told records what was published.
type told struct {
	mu   sync.Mutex
	sets []event.Set
	// heard has size 1: it says that there is more.
	heard chan struct{}
}

func (p *told) Publish(ctx context.Context, sets []event.Set, may publish.Permit) error {
	if err := may(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sets = append(p.sets, sets...)
	select {
	case p.heard <- struct{}{}:
	default:
	}
	return nil
}

// instances counts how often an instance was published, prebuilds what was
// said of prebuilds.
func (p *told) of(id status.InstanceID) (instances int, prebuilds []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, set := range p.sets {
		for _, i := range set.Instances {
			if i.InstanceID == id.String() {
				instances++
			}
		}
		for i, prebuild := range set.Prebuilds {
			if prebuild.WorkspaceID == "ws-"+id.String() {
				prebuilds = append(prebuilds, prebuild.Status+"/"+set.Headless[i].Type)
			}
		}
	}
	return instances, prebuilds
}

// await returns when ok says so, asked whenever something was published.
func (p *told) await(t testing.TB, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-p.heard:
		case <-t.Context().Done():
			t.Fatal("waited in vain")
		case <-time.After(30 * time.Second):
			t.Fatal("waited for half a minute in vain")
		}
	}
}

// gated is the pipeline's store, which can be away.
type gated struct {
	*store.Store
	away *atomic.Bool
}

func (g gated) Apply(ctx context.Context, b store.Batch) (store.Commit, error) {
	if g.away.Load() {
		return store.Commit{}, errAway
	}
	return g.Store.Apply(ctx, b)
}

const realCluster = "eu01"

func newParts(t testing.TB) *parts {
	t.Helper()
	ctx := t.Context()
	url := secret.NewURL(devstacktest.NewDatabase(t))
	log := slog.New(slog.DiscardHandler)
	if err := store.Migrate(ctx, url, log); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(ctx, store.Config{URL: url, Installation: "local", Lifecycle: true, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	beside, err := pgxpool.New(ctx, url.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(beside.Close)
	p := &parts{TB: t, store: db, db: beside, told: &told{heard: make(chan struct{}, 1)}}
	p.pipe, err = pipeline.New(pipeline.Config{
		Owner: "replica/1", Store: gated{db, &p.away}, Publisher: p.told, Logger: log, Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.intake, err = p.pipe.Open(shard.Whole(realCluster))
	if err != nil {
		t.Fatal(err)
	}
	p.cluster, err = sim.New(sim.Config{Name: realCluster})
	if err != nil {
		t.Fatal(err)
	}
	p.client, err = upstream.New(upstream.Config{Cluster: upstream.Cluster{Name: realCluster, URL: p.cluster.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	running, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := p.pipe.Run(running); err != nil {
			t.Error(err)
		}
	})
	parts.Go(func() {
		if err := p.cluster.Run(running); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); parts.Wait() })
	fence, err := db.Raise(ctx, shard.Fence{Shard: shard.Whole(realCluster), Owner: "replica/1", Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.intake.Own(fence); err != nil {
		t.Fatal(err)
	}
	return p
}

// These make parts the owners of the one cluster.

func (p *parts) Settled(cluster string) bool { return cluster != realCluster || p.intake.Owns() }

func (p *parts) CaughtUp(_ context.Context, cluster string, since time.Time) (bool, error) {
	return cluster != realCluster || p.intake.CaughtUp(since), nil
}

func (p *parts) Forget(_ context.Context, _ string, ids []status.InstanceID) error {
	p.intake.Forget(ids)
	return nil
}

func (p *parts) Owned(id shard.ID) bool { return id == p.intake.Shard() }

// gate lets a test follow what a sweeper does: at each pass the sweeper waits
// until the test has received the value, or has had enough.
type gate[T any] struct {
	passes chan T
	enough chan struct{}
}

func newGate[T any]() gate[T] { return gate[T]{make(chan T), make(chan struct{})} }

func (g gate[T]) pass(value T) {
	select {
	case g.passes <- value:
	case <-g.enough:
	}
}

// open lets everybody pass from now on.
func (g gate[T]) open() { close(g.enough) }

// sweeper makes a sweeper with short times. The change may replace its parts.
func (p *parts) sweeper(change func(*Config)) *Sweeper {
	p.Helper()
	cfg := Config{
		Installation: "local",
		Limits:       limits(),
		Timing:       Timing{Interval: 20 * time.Millisecond, SecondLook: 10 * time.Millisecond, Ask: 200 * time.Millisecond},
		Store:        p.store, Outbox: p.store, Publisher: p.told, Owners: p,
		Clusters: func(context.Context) ([]Cluster, error) {
			return []Cluster{{Name: realCluster, Workspaces: p.client.Workspaces}}, nil
		},
		PrebuildEnded: p.pipe.PrebuildEnded,
		Logger:        slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		p.Fatal(err)
	}
	return s
}

// leading is a term of leadership.
type leading struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // what Run returned; to be read after done
}

// end ends the term and gives what Run returned.
func (l *leading) end() error {
	l.cancel()
	<-l.done
	return l.err
}

// lead lets a sweeper lead until its end is called or the test ends.
func (p *parts) lead(s *Sweeper, owner string) *leading {
	p.Helper()
	fence, err := p.store.RaiseLeader(p.Context(), owner)
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &leading{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.err = s.Run(ctx, fence)
	}()
	p.Cleanup(func() { _ = l.end() }) // the test looks at it, if it matters
	return l
}

func realID(i int) (id status.InstanceID) {
	id[0] = 0xbb
	binary.BigEndian.PutUint64(id[8:], uint64(i))
	return id
}

// insert makes a row that is not stopped at version 10, with a prebuild that
// is building and two tokens, one of them its own.
func (p *parts) insert(region string, phase status.Phase, age time.Duration, ids ...status.InstanceID) {
	p.Helper()
	raw := make([][16]byte, len(ids))
	for i := range ids {
		raw[i] = ids[i]
	}
	for _, sql := range []string{
		`INSERT INTO workspace (id, owner_id, type) SELECT 'ws-' || id, 'owner', 'prebuild' FROM unnest($1::uuid[]) id`,
		`INSERT INTO prebuilt_workspace (id, build_workspace_id, state, project_id) SELECT id, 'ws-' || id, 'building', 'project' FROM unnest($1::uuid[]) id`,
		`INSERT INTO gitpod_token (token_hash, user_id, name)
			SELECT id || suffix, 'owner', CASE suffix WHEN '1' THEN id || '-default' ELSE 'another' END FROM unnest($1::uuid[]) id, unnest('{1,2}'::text[]) suffix`,
	} {
		p.exec(sql, raw)
	}
	p.exec(`INSERT INTO workspace_instance (id, workspace_id, region, phase, status_version, creation_time, stopping_time)
		SELECT id, 'ws-' || id, $2, $3, 10, now() - $4::interval, CASE WHEN $3 = 'stopping' THEN now() - $4::interval END FROM unnest($1::uuid[]) id`,
		raw, region, string(phase), age)
}

func (p *parts) exec(sql string, args ...any) {
	p.Helper()
	if _, err := p.db.Exec(context.Background(), sql, args...); err != nil {
		p.Fatal(err)
	}
}

type found struct {
	phase, message, prebuild, snapshot string
	swept                              bool
	version                            int64
	stopped                            *time.Time
	tokens                             int
}

func (p *parts) row(id status.InstanceID) (f found) {
	p.Helper()
	err := p.db.QueryRow(context.Background(), `
		SELECT i.phase, coalesce(i.status ->> 'message', ''), b.state, coalesce(b.snapshot, ''), i.swept, i.status_version, i.stopped_time,
			(SELECT count(*) FROM gitpod_token t WHERE t.name LIKE i.id || '-%')
		FROM workspace_instance i
		JOIN prebuilt_workspace b ON b.build_workspace_id = i.workspace_id
		WHERE i.id = $1`, [16]byte(id)).Scan(&f.phase, &f.message, &f.prebuild, &f.snapshot, &f.swept, &f.version, &f.stopped, &f.tokens)
	if err != nil {
		p.Fatal(err)
	}
	return f
}

func heardStatus(id status.InstanceID, version uint64, phase wsman.WorkspacePhase, snapshot string) *wsman.WorkspaceStatus {
	return &wsman.WorkspaceStatus{
		Id:       id.String(),
		Metadata: &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "ws-" + id.String()},
		Spec:     &wsman.WorkspaceSpec{Type: wsman.WorkspaceType_PREBUILD},
		Phase:    phase, StatusVersion: version,
		Conditions: &wsman.WorkspaceConditions{Snapshot: snapshot, StoppedByRequest: wsman.WorkspaceConditionBool_EMPTY},
	}
}

// hear makes the pipeline hear a status; now, as if from the stream.
func (p *parts) hear(s *wsman.WorkspaceStatus) {
	p.Helper()
	raw, err := proto.Marshal(s)
	if err != nil {
		p.Fatal(err)
	}
	h, err := status.Scan(raw)
	if err != nil {
		p.Fatal(err)
	}
	h.At = time.Now()
	if err := p.intake.Offer(h); err != nil {
		p.Fatal(err)
	}
}

// live puts instances on the cluster's list.
func (p *parts) live(ids ...status.InstanceID) {
	p.Helper()
	for _, id := range ids {
		raw, err := proto.Marshal(heardStatus(id, 10, wsman.WorkspacePhase_RUNNING, ""))
		if err != nil {
			p.Fatal(err)
		}
		if err := p.cluster.Publish(p.Context(), sim.Update{ID: sim.ID(id), Message: sim.NewStatus(raw)}); err != nil {
			p.Fatal(err)
		}
	}
}

func wait[T any](t testing.TB, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("waited for half a minute in vain")
	}
	return value
}

// Every phase, from the row to the subscriber.
func TestRowsOfEveryPhaseAreStoppedAndToldOnce(t *testing.T) {
	p := newParts(t)
	gone, alive := map[status.Phase]status.InstanceID{}, map[status.Phase]status.InstanceID{}
	for i, phase := range phases() {
		gone[phase], alive[phase] = realID(100+i), realID(200+i)
		p.insert(realCluster, phase, 2*time.Hour, gone[phase], alive[phase])
		p.live(alive[phase])
	}
	expires := func(phase status.Phase) bool {
		return slices.Contains([]status.Phase{store.PhasePreparing, store.PhaseBuilding, store.PhaseUnknown}, phase)
	}
	leader := p.lead(p.sweeper(nil), "leader/1")
	p.told.await(t, func() bool {
		for _, id := range gone {
			if n, _ := p.told.of(id); n == 0 {
				return false
			}
		}
		return true
	})
	if err := leader.end(); err != nil {
		t.Fatal(err)
	}
	for _, phase := range phases() {
		for _, id := range []status.InstanceID{gone[phase], alive[phase]} {
			f := p.row(id)
			n, prebuilds := p.told.of(id)
			if id == alive[phase] && !expires(phase) {
				if f.phase != string(phase) || f.swept || f.stopped != nil || f.tokens != 1 || f.prebuild != "building" || n != 0 {
					t.Errorf("%s, alive: %+v, published %d times", phase, f, n)
				}
				continue
			}
			if f.phase != "stopped" || f.message != "Stopped by the bridge. Previously in phase "+string(phase) || !f.swept ||
				f.stopped == nil || f.version != 10 || f.tokens != 0 || f.prebuild != "aborted" {
				t.Errorf("%s: %+v", phase, f)
			}
			if n != 1 || !slices.Equal(prebuilds, []string{"aborted/aborted"}) {
				t.Errorf("%s: published %d times, prebuild %v", phase, n, prebuilds)
			}
		}
	}
	if rows, _, err := p.store.OutboxStats(t.Context()); err != nil || rows != 0 {
		t.Errorf("%d rows are left in the outbox (%v)", rows, err)
	}
}

// A cluster that answers, but not with what is so.
func TestFaultsOfARealCluster(t *testing.T) {
	for name, fault := range map[string]sim.Fault{"nothing": sim.Empty, "an error": sim.Refuse, "a hang": sim.Hang, "half a list": sim.Half} {
		t.Run(name, func(t *testing.T) {
			p := newParts(t)
			var ids []status.InstanceID
			for i := range 60 {
				ids = append(ids, realID(i))
			}
			p.insert(realCluster, status.PhaseRunning, time.Hour, ids...)
			p.live(ids...)
			p.cluster.SetFaults(sim.Faults{Snapshot: fault})
			answers := newGate[int]()
			leader := p.lead(p.sweeper(func(c *Config) {
				c.Clusters = func(context.Context) ([]Cluster, error) {
					return []Cluster{{Name: realCluster, Workspaces: func(ctx context.Context) ([]status.InstanceID, error) {
						known, err := p.client.Workspaces(ctx)
						answers.pass(len(known))
						return known, err
					}}}, nil
				}
			}), "leader/1")
			for range 5 {
				if n := wait(t, answers.passes); n == len(ids) {
					t.Fatal("the fault is none")
				}
			}
			p.cluster.SetFaults(sim.Faults{})
			// With the second good answer, the round of the first is over.
			for good := 0; good < 2; {
				if wait(t, answers.passes) == len(ids) {
					good++
				}
			}
			answers.open()
			if err := leader.end(); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				if f := p.row(id); f.phase != "running" || f.swept {
					t.Fatalf("%s: %+v", id, f)
				}
			}
		})
	}
}

// The owner holds the truth while the database does not take it: it gets to
// write it, the prebuild's snapshot included.
func TestAnOwnerThatIsBehindWritesWhatItHasHeard(t *testing.T) {
	p := newParts(t)
	id := realID(1)
	p.insert(realCluster, status.PhaseRunning, time.Hour, id)
	p.away.Store(true)
	p.hear(heardStatus(id, 11, wsman.WorkspacePhase_STOPPING, "snapshot-1"))
	p.hear(heardStatus(id, 12, wsman.WorkspacePhase_STOPPED, "snapshot-1"))
	said := newGate[bool]()
	leader := p.lead(p.sweeper(func(c *Config) { c.Owners = askedOwners{p, said} }), "leader/1")
	for range 5 { // rounds that would stop the row
		if wait(t, said.passes) {
			t.Fatal("the owner is taken to have written what it could not")
		}
	}
	if f := p.row(id); f.phase != "running" {
		t.Fatalf("swept although its owner knows better: %+v", f)
	}
	said.open()
	p.away.Store(false)
	p.told.await(t, func() bool { n, _ := p.told.of(id); return n > 0 })
	if err := leader.end(); err != nil {
		t.Fatal(err)
	}
	if f := p.row(id); f.phase != "stopped" || f.swept || f.version != 12 || f.prebuild != "available" || f.snapshot != "snapshot-1" {
		t.Errorf("%+v", f)
	}
	if n, prebuilds := p.told.of(id); n != 1 || !slices.Equal(prebuilds, []string{"available/finish-success"}) {
		t.Errorf("published %d times, prebuild %v", n, prebuilds)
	}
}

// askedOwners tells a test what the owners said.
type askedOwners struct {
	*parts
	said gate[bool]
}

func (o askedOwners) CaughtUp(ctx context.Context, cluster string, since time.Time) (bool, error) {
	caughtUp, err := o.parts.CaughtUp(ctx, cluster, since)
	o.said.pass(caughtUp)
	return caughtUp, err
}

// paused is a store whose leader is paused right before it stops rows.
type paused struct {
	*store.Store
	arrived, resume chan struct{}
}

func (s paused) StopInstances(ctx context.Context, order store.Stop) (store.Stopped, error) {
	s.arrived <- struct{}{}
	<-s.resume
	// As after a pause: its deadlines are over, and it does not know.
	return s.Store.StopInstances(context.WithoutCancel(ctx), order)
}

func TestALeaderThatWasPausedAndReplaced(t *testing.T) {
	p := newParts(t)
	gone, back := realID(1), realID(2)
	p.insert(realCluster, status.PhaseRunning, time.Hour, gone, back)
	db := paused{p.store, make(chan struct{}), make(chan struct{})}
	old := p.lead(p.sweeper(func(c *Config) { c.Store = db }), "leader/1")
	wait(t, db.arrived) // both rows are about to be stopped

	current := p.lead(p.sweeper(nil), "leader/2")
	stopped := func(id status.InstanceID) func() bool {
		return func() bool { n, _ := p.told.of(id); return n > 0 }
	}
	p.told.await(t, stopped(gone))
	p.told.await(t, stopped(back))
	if err := current.end(); err != nil {
		t.Fatal(err)
	}
	// One of them was alive after all: the same status revives it, to the
	// very version and phase that the old leader has read.
	p.hear(heardStatus(back, 10, wsman.WorkspacePhase_RUNNING, ""))
	p.told.await(t, func() bool { n, _ := p.told.of(back); return n > 1 })

	db.resume <- struct{}{}
	wait(t, old.done)
	if !errors.Is(old.err, store.ErrNotLeader) {
		t.Errorf("the old leader ended with: %v", old.err)
	}
	if f := p.row(gone); f.phase != "stopped" || f.prebuild != "aborted" {
		t.Errorf("gone: %+v", f)
	}
	if f := p.row(back); f.phase != "running" || f.swept || f.stopped != nil {
		t.Errorf("back: %+v", f)
	}
	if n, prebuilds := p.told.of(gone); n != 1 || !slices.Equal(prebuilds, []string{"aborted/aborted"}) {
		t.Errorf("gone: published %d times, prebuild %v", n, prebuilds)
	}
	if n, _ := p.told.of(back); n != 2 {
		t.Errorf("back: published %d times", n)
	}
	if rows, _, err := p.store.OutboxStats(t.Context()); err != nil || rows > 1 { // the pipeline deletes its own in a while
		t.Errorf("%d rows are left in the outbox (%v)", rows, err)
	}
}

// What the owner has heard before does not keep the same status from reviving
// a row that was stopped by mistake.
func TestTheSameStatusRevives(t *testing.T) {
	p := newParts(t)
	id := realID(1)
	p.insert(realCluster, status.PhasePending, time.Hour/2, id)
	p.hear(heardStatus(id, 11, wsman.WorkspacePhase_RUNNING, ""))
	p.told.await(t, func() bool { n, _ := p.told.of(id); return n == 1 })
	leader := p.lead(p.sweeper(nil), "leader/1")
	p.told.await(t, func() bool { n, _ := p.told.of(id); return n == 2 })
	if err := leader.end(); err != nil {
		t.Fatal(err)
	}
	if f := p.row(id); f.phase != "stopped" || !f.swept {
		t.Fatalf("%+v", f)
	}
	p.hear(heardStatus(id, 11, wsman.WorkspacePhase_RUNNING, ""))
	p.told.await(t, func() bool { n, _ := p.told.of(id); return n == 3 })
	if f := p.row(id); f.phase != "running" || f.swept || f.stopped != nil {
		t.Errorf("%+v", f)
	}
}

// What an earlier leader, and the owner of a cluster that is gone, have left
// in the outbox is published once.
func TestOrphansOfARealOutbox(t *testing.T) {
	p := newParts(t)
	mine, other, owned := realID(1), realID(2), realID(3)
	p.insert("gone", status.PhaseStopped, time.Hour, mine, other, owned)
	for name, id := range map[string]status.InstanceID{"": mine, "gone": other, realCluster: owned} {
		p.exec(`INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, created_at, instances)
			VALUES ($1, 1, 'gone', 0, 1, now() - interval '2 minutes', ARRAY[$2::uuid])`, name, [16]byte(id))
	}
	leader := p.lead(p.sweeper(nil), "leader/1")
	p.told.await(t, func() bool {
		a, _ := p.told.of(mine)
		b, _ := p.told.of(other)
		return a > 0 && b > 0
	})
	if err := leader.end(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[status.InstanceID]int{mine: 1, other: 1, owned: 0} {
		if n, _ := p.told.of(id); n != want {
			t.Errorf("%s was published %d times, want %d", id, n, want)
		}
	}
	if rows, _, err := p.store.OutboxStats(t.Context()); err != nil || rows != 1 {
		t.Errorf("%d rows are left in the outbox (%v)", rows, err)
	}
}
