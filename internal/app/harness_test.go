package app

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// patience is how long anything may take before a test says that it does not
// happen. It is no measure of speed.
const patience = 2 * time.Minute

// servers are what all tests of the package share: TestMain closes them.
var servers struct {
	once  sync.Once
	stack *devstack.Stack
	err   error

	databases, seeds atomic.Int64
}

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		// The tests mostly wait for others: more of them fit than there are
		// processors.
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
	}
	publish.LogDriver(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(runner{m})
}

type runner struct{ m *testing.M }

func (r runner) Run() int {
	code := devstacktest.Run(r.m)
	servers.once.Do(func() {}) // nothing starts them any more
	if servers.stack != nil {
		if err := servers.stack.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the servers that the tests shared:", err)
			return max(code, 1)
		}
	}
	return code
}

// settings are those of the servers. Commit times let a publish be held
// against its commit. What a crash of the machine would lose, no test looks
// for.
func settings() map[string]string {
	return map[string]string{"track_commit_timestamp": "on", "fsync": "off"}
}

func sharedServers(t *testing.T) *devstack.Stack {
	t.Helper()
	servers.once.Do(func() {
		servers.stack, servers.err = devstack.Start(context.Background(), devstack.Config{
			Postgres: &devstack.PostgresConfig{Settings: settings()},
			Redis:    &devstack.RedisConfig{RequireServer: true},
			Etcd:     &devstack.EtcdConfig{UnsafeNoFsync: true},
		})
	})
	if servers.err != nil {
		t.Fatal(servers.err)
	}
	return servers.stack
}

// plan says what a world is to be like.
type plan struct {
	// clusters is the number of simulated clusters, default 1; instances are
	// dealt to them in turn.
	clusters, instances int
	// odd is the share of instances that are played an odd script instead of
	// the lifecycle of eight updates.
	odd float64
	// subject, if set, has the last word about an instance.
	subject func(number int, s *ledger.Subject)
	// sim, if set, changes a cluster before it is made.
	sim func(number int, c *sim.Config)
	// unregistered leaves the clusters out of the registry.
	unregistered bool
	// patience, if set, is for tests that have more to do than others.
	patience time.Duration
	// postgres is a server of the test's own, for crashes.
	postgres *devstack.Postgres
	// seed, if set, gives two worlds the same instances, and this one a Redis
	// of its own, lest it hear the publishes of the other.
	seed uint64
}

// world is all that is around the service: servers behind proxies, rows,
// clusters, and the ledger that hears the publishes.
type world struct {
	t   *testing.T
	ctx context.Context // ends when patience does

	plan            plan
	url             string // of the database, past the proxy
	db              *pgxpool.Pool
	postgres, redis *faultproxy.Proxy
	etcd            string // endpoint
	prefix          string // of this world's keys in etcd
	clusters        []*sim.Cluster
	library         *script.Library
	ledger          *ledger.Ledger
	seed            uint64

	// services are those started so far; before is what each cluster had
	// counted when the last of them was.
	services []*service
	before   []sim.Stats
	// next is the step of each instance that is sent next. Tests send from
	// one goroutine a cluster.
	next []int
}

func newWorld(t *testing.T, p plan) *world {
	t.Helper()
	stack := sharedServers(t)
	server := p.postgres
	if server == nil {
		server = stack.Postgres
	}
	if p.clusters == 0 {
		p.clusters = 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(patience, p.patience))
	w := &world{t: t, ctx: ctx, plan: p, seed: p.seed, next: make([]int, p.instances)}
	if w.seed == 0 {
		w.seed = uint64(servers.seeds.Add(1))
	}
	redis := stack.Redis
	if p.seed != 0 {
		redis = devstacktest.OwnRedis(t, devstack.RedisConfig{})
	}
	background, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	t.Cleanup(func() {
		stop()
		parts.Wait()
		cancel()
	})
	run := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(background); err != nil {
				t.Error(err)
			}
		})
	}

	w.etcd = stack.Etcd.Endpoints()[0]
	w.newDatabase(server)
	w.postgres, w.redis = w.proxy(server.Addr()), w.proxy(redis.Addr())
	run(w.postgres.Run)
	run(w.redis.Run)

	var err error
	if w.library, err = script.NewLibrary(w.seed); err != nil {
		t.Fatal(err)
	}
	lc := ledger.Config{Installation: "local", Count: max(p.instances, 1), Subject: w.subject}
	for n := range p.clusters {
		lc.Clusters = append(lc.Clusters, clusterName(n))
		c := sim.Config{Name: clusterName(n), NeverDrop: true}
		if p.sim != nil {
			p.sim(n, &c)
		}
		cluster, err := sim.New(c)
		if err != nil {
			t.Fatal(err)
		}
		w.clusters = append(w.clusters, cluster)
		run(cluster.Run)
	}
	if w.ledger, err = ledger.New(lc); err != nil {
		t.Fatal(err)
	}
	if err := seed.Seed(ctx, w.db, w.seeded()); err != nil {
		t.Fatal(err)
	}
	if !p.unregistered {
		for n := range w.clusters {
			w.register(n)
		}
	}
	sampler, err := pgxpool.New(ctx, w.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sampler.Close)
	listener, err := ledger.NewListener(ledger.ListenerConfig{Redis: redis.Addr(), Ledger: w.ledger, DB: sampler})
	if err != nil {
		t.Fatal(err)
	}
	run(listener.Run)
	for n := range w.clusters {
		run(func(ctx context.Context) error { w.watch(ctx, n); return nil })
	}
	w.await(listener.Ready(), "the subscription at Redis")
	return w
}

func clusterName(n int) string { return fmt.Sprintf("cluster-%02d", n) }

// newDatabase makes one with all tables.
func (w *world) newDatabase(server *devstack.Postgres) {
	w.t.Helper()
	name := fmt.Sprintf("world_%d", servers.databases.Add(1))
	w.prefix = "/" + name
	var err error
	if w.url, err = server.NewDatabase(w.ctx, name); err != nil {
		w.t.Fatal(err)
	}
	if w.plan.postgres == nil {
		w.t.Cleanup(func() {
			if err := server.DropDatabase(context.Background(), name); err != nil {
				w.t.Error(err)
			}
		})
	}
	cfg := config.Default()
	cfg.Postgres.URL = secret.NewURL(w.url)
	if err := Migrate(w.ctx, cfg, slog.New(slog.DiscardHandler)); err != nil {
		w.t.Fatal(err)
	}
	if w.db, err = pgxpool.New(w.ctx, w.url); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.db.Close)
}

func (w *world) proxy(addr string) *faultproxy.Proxy {
	w.t.Helper()
	proxy, err := faultproxy.New(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return proxy
}

func (w *world) subject(number int) ledger.Subject {
	s := w.library.Pick(w.seed, number, w.plan.odd)
	sub := ledger.Subject{
		Instance: seed.Instance{
			ID:               script.NewIdentity(w.seed, number),
			Region:           clusterName(number % w.plan.clusters),
			NeededImageBuild: number%8 == 0,
			Tokens:           number%4 == 0,
		},
		Cluster: number % w.plan.clusters,
		Script:  s,
	}
	if w.plan.subject != nil {
		w.plan.subject(number, &sub)
	}
	if sub.Script.Role == script.Foreign {
		sub.Region = "another-installation"
	}
	sub.Type = sub.Script.Type
	return sub
}

func (w *world) seeded() iter.Seq[seed.Instance] {
	return func(yield func(seed.Instance) bool) {
		for n := range w.plan.instances {
			if s := w.subject(n); s.Script.Role != script.Unknown && !yield(s.Instance) {
				return
			}
		}
	}
}

// register puts a cluster into the registry, in plain text.
func (w *world) register(n int) {
	w.t.Helper()
	w.exec(`INSERT INTO workspace_cluster (name, url) VALUES ($1, $2)`, clusterName(n), w.clusters[n].Addr())
}

// watch tells the ledger when updates may have been missed.
func (w *world) watch(ctx context.Context, n int) {
	var before sim.Stats
	for {
		var now sim.Stats
		if w.clusters[n].Await(ctx, func(s sim.Stats) bool {
			now = s
			return s.Snapshots != before.Snapshots || s.Subscribed != before.Subscribed ||
				s.Subscribers != before.Subscribers || s.Dropped != before.Dropped
		}) != nil {
			return
		}
		gone := now.Subscribers == 0 && before.Subscribed > 0
		back := now.Subscribed != before.Subscribed && before.Subscribed > 0
		if gone || back || now.Dropped != before.Dropped {
			w.ledger.Cut(n)
		}
		if now.Snapshots != before.Snapshots {
			w.ledger.Overtaken(n)
		}
		before = now
	}
}

// send sends the next steps of an instance; no more than there are.
func (w *world) send(number, steps int) {
	w.t.Helper()
	sub := w.subject(number)
	for range min(steps, len(sub.Script.Steps)-w.next[number]) {
		step := &sub.Script.Steps[w.next[number]]
		w.next[number]++
		u := sim.Update{ID: sub.ID.Instance, Message: sim.NewMessage(step.Response(&sub.ID))}
		switch {
		case step.Kind == script.Stale || step.Kind == script.Invalid:
			u.Effect = sim.Untouched
		case step.Stopped:
			u.Effect = sim.Stopped
		}
		w.ledger.Sent(number, time.Now())
		w.publish(sub.Cluster, u)
	}
}

func (w *world) publish(cluster int, u ...sim.Update) {
	w.t.Helper()
	if err := w.clusters[cluster].Publish(w.ctx, u...); err != nil {
		w.t.Fatal(err)
	}
}

// sendAll sends the next steps of all instances, a step of each in turn.
func (w *world) sendAll(steps int) {
	w.t.Helper()
	for range steps {
		for n := range w.plan.instances {
			w.send(n, 1)
		}
	}
}

// every is more steps than any script has.
const every = 64

// heard waits until the service that was started last has subscribed to every
// cluster, and until so many snapshots of each were taken in to the end by those
// that run. The clusters' own count would not do: sweeps ask them too.
func (w *world) heard(snapshots int) {
	w.t.Helper()
	for n, c := range w.clusters {
		before := w.before[n]
		if err := c.Await(w.ctx, func(s sim.Stats) bool { return s.Subscribed > before.Subscribed }); err != nil {
			w.t.Fatal(err)
		}
	}
	w.until(fmt.Sprintf("%d snapshots of each cluster", snapshots), func() bool {
		taken := make([]float64, len(w.clusters))
		for _, s := range w.services {
			if s.hasEnded() {
				continue
			}
			family := s.family("trestle_upstream_snapshots_total")
			for n := range taken {
				taken[n] += sum(family, "workspace_cluster="+clusterName(n), "outcome=success")
			}
		}
		return slices.Min(taken) >= float64(snapshots)
	})
}

// settle waits until every row is right and every publish was made. What was
// told twice is tolerated after failures only.
func (w *world) settle(failures bool) *ledger.Verdict {
	w.t.Helper()
	if err := w.ledger.AwaitPublished(w.ctx); err != nil {
		w.t.Error(err)
		// The tables say which, and time is up.
		w.ctx = context.WithoutCancel(w.ctx)
		verdict, err := w.ledger.Check(w.ctx, w.db)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, d := range verdict.Differences[:min(len(verdict.Differences), 10)] {
			w.t.Error(d)
		}
		w.t.FailNow()
	}
	var verdict *ledger.Verdict
	var wrong []oracle.Difference
	right := func() bool {
		var err error
		if verdict, err = w.ledger.Check(w.ctx, w.db); err != nil {
			w.t.Fatal(err)
		}
		wrong = wrong[:0]
		for _, d := range verdict.Differences {
			repeated := d.Kind == oracle.Doubled || d.Kind == oracle.Regressed && strings.HasPrefix(d.Field, "chan:")
			if !failures || !repeated {
				wrong = append(wrong, d)
			}
		}
		return len(wrong) == 0 && (failures || verdict.OK())
	}
	w.until("every row has come to its last version", w.written)
	// The oracle looks for an explanation of what is not right yet, which is
	// slow: it is not asked all the time.
	for pause := 10 * time.Millisecond; !right() && w.ctx.Err() == nil; pause = min(2*pause, time.Second) {
		select {
		case <-time.After(pause):
		case <-w.ctx.Done():
		}
	}
	if len(wrong) > 0 || !failures && !verdict.OK() {
		for i, d := range wrong {
			if i == 10 {
				w.t.Errorf("and %d more", len(wrong)-i)
				break
			}
			w.t.Error(d)
		}
		w.t.FailNow()
	}
	return verdict
}

// written says whether every row has come to the version of the last update
// that takes effect: what can be seen without much ado.
func (w *world) written() bool {
	w.t.Helper()
	rows, err := w.db.Query(w.ctx, `SELECT id, status_version FROM workspace_instance`)
	if err != nil {
		w.t.Fatal(err)
	}
	versions := make(map[[16]byte]int64, w.plan.instances)
	var id [16]byte
	var version int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error { versions[id] = version; return nil }); err != nil {
		w.t.Fatal(err)
	}
	applied := make(map[*script.Script][]bool)
	for n, next := range w.next {
		sub := w.subject(n)
		if applied[sub.Script] == nil {
			sent := make([]oracle.Sent, len(sub.Script.Steps))
			for i := range sent {
				step := &sub.Script.Steps[i]
				sent[i] = oracle.Sent{At: time.Now(), Status: step.Frame.Decode(&sub.ID, step.Version(&sub.ID))}
			}
			rules := oracle.Rules{Cluster: clusterName(sub.Cluster), Installation: "local"}
			applied[sub.Script] = oracle.Expect(rules, ledger.StartOf(sub), sent).Applied
		}
		var last int64
		for i := range next {
			if applied[sub.Script][i] {
				last = int64(sub.Script.Steps[i].Version(&sub.ID))
			}
		}
		if versions[sub.ID.Instance] < last {
			return false
		}
	}
	return true
}

// becomes asks now and then whether something has become true that nothing
// gives a sign of: the content of tables, the value of a metric.
func (w *world) becomes(is func() bool) bool {
	// Looking costs time that the service could use: what is long in coming
	// is looked for less often.
	for pause := 10 * time.Millisecond; !is(); pause = min(pause+pause/2, 300*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-w.ctx.Done():
			return false
		}
	}
	return true
}

// until is becomes for what must become true.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	if !w.becomes(is) {
		w.t.Fatalf("this did not come about: %s", what)
	}
}

// await waits for a channel to be closed.
func (w *world) await(done <-chan struct{}, what string) {
	w.t.Helper()
	select {
	case <-done:
	case <-w.ctx.Done():
		w.t.Fatalf("this did not come about: %s", what)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Exec(w.ctx, sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

// ask reads one value.
func ask[T any](w *world, sql string, args ...any) (value T) {
	w.t.Helper()
	if err := w.db.QueryRow(w.ctx, sql, args...).Scan(&value); err != nil {
		w.t.Fatal(err)
	}
	return value
}

// version is the status_version of an instance's row.
func (w *world) version(number int) int64 {
	w.t.Helper()
	return ask[int64](w, `SELECT status_version FROM workspace_instance WHERE id = $1`, w.subject(number).ID.Instance)
}

// status is a status of an instance that is not scripted.
func (w *world) status(number int, version uint64, change func(*wsman.WorkspaceStatus)) *wsman.WorkspaceStatus {
	sub := w.subject(number)
	s := &wsman.WorkspaceStatus{
		Id:            script.FormatUUID(sub.ID.Instance),
		Metadata:      &wsman.WorkspaceMetadata{Owner: sub.ID.Owner, MetaId: sub.ID.Workspace},
		Spec:          &wsman.WorkspaceSpec{Url: "https://example.dev"},
		Phase:         wsman.WorkspacePhase_RUNNING,
		Conditions:    &wsman.WorkspaceConditions{},
		Auth:          &wsman.WorkspaceAuthentication{OwnerToken: "owner-token"},
		StatusVersion: version,
	}
	if change != nil {
		change(s)
	}
	return s
}

// say sends a status that is not scripted, outside of the ledger.
func (w *world) say(number int, s *wsman.WorkspaceStatus) {
	w.t.Helper()
	sub := w.subject(number)
	w.publish(sub.Cluster, sim.Update{ID: sub.ID.Instance, Message: w.message(s)})
}

// mumble sends what is not the state of the instance: snapshots do not have it.
func (w *world) mumble(number int, m sim.Message) {
	w.t.Helper()
	sub := w.subject(number)
	w.publish(sub.Cluster, sim.Update{ID: sub.ID.Instance, Message: m, Effect: sim.Untouched})
}

// place is where and by which transaction an instance's row was written last.
func (w *world) place(number int) string {
	w.t.Helper()
	return ask[string](w, `SELECT xmin::text || ' ' || ctid::text FROM workspace_instance WHERE id = $1`, w.subject(number).ID.Instance)
}

// text is one text of an instance's row.
func (w *world) text(number int, expression string) string {
	w.t.Helper()
	return ask[string](w, `SELECT coalesce((`+expression+`)::text, 'null') FROM workspace_instance WHERE id = $1`, w.subject(number).ID.Instance)
}

// lock keeps an instance's row from being written until the function that it
// gives is called.
func (w *world) lock(number int) (unlock func()) {
	w.t.Helper()
	tx, err := w.db.Begin(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() {
		if err := tx.Rollback(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(unlock)
	if _, err := tx.Exec(w.ctx, `SELECT FROM workspace_instance WHERE id = $1 FOR UPDATE`, w.subject(number).ID.Instance); err != nil {
		w.t.Fatal(err)
	}
	return unlock
}

// blocked waits until a statement waits for a lock.
func (w *world) blocked() {
	w.t.Helper()
	w.until("a statement that waits for a lock", func() bool {
		return ask[bool](w, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	})
}

func (w *world) message(s *wsman.WorkspaceStatus) sim.Message {
	w.t.Helper()
	encoded, err := proto.Marshal(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return sim.NewStatus(encoded)
}

// service is a running Run.
type service struct {
	w       *world
	http    string // host:port
	grpc    string // host:port
	console string // host:port
	config  config.Config
	log     *logBuffer
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error // once ended
}

// logBuffer keeps a log.
type logBuffer struct {
	mu      sync.Mutex // guards content
	content bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// calm is for tests in which no replica is to be taken for dead: a machine that
// stands still for a while costs none of them its lease.
func calm(c *config.Config) { c.Etcd.Lease = time.Minute }

// serve starts the service, and stops it when the test ends: then it must end
// well, with nothing left.
func (w *world) serve(change ...func(*config.Config)) *service {
	w.t.Helper()
	cfg := config.Default()
	cfg.Replica.ID = fmt.Sprintf("replica-%d", len(w.services)+1)
	cfg.Etcd = config.Etcd{Endpoints: []string{w.etcd}, Prefix: w.prefix, Lease: 2 * time.Second}
	cfg.Peer.Listen = "127.0.0.1:0"
	cfg.Postgres.URL = secret.NewURL(w.through(w.postgres))
	cfg.Redis.Server = secret.NewURL("redis://" + w.redis.Addr())
	cfg.HTTP.Address = "127.0.0.1:0"
	cfg.Console.Address = "127.0.0.1:0"
	cfg.ClusterService = config.ClusterService{Host: "127.0.0.1"}
	cfg.ClusterReconcileInterval = 200 * time.Millisecond
	cfg.Upstream.SnapshotInterval = time.Hour
	cfg.ControllerInterval = 24 * time.Hour // clusters count its questions as snapshots
	cfg.Shutdown.Timeout = patience
	for _, c := range change {
		c(&cfg)
	}
	w.before = w.before[:0]
	for _, c := range w.clusters {
		w.before = append(w.before, c.Stats())
	}
	s := &service{w: w, config: cfg, log: &logBuffer{}, ended: make(chan struct{})}
	w.services = append(w.services, s)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	listening := make(chan struct{})
	go func() {
		defer close(s.ended)
		s.err = Run(ctx, Options{Config: cfg, Version: "v1.2.3", Revision: "abc", Logger: s.log.logger(), Listening: func(a net.Addr) {
			s.http = a.String()
			close(listening)
		}, ClusterService: func(a net.Addr) { s.grpc = a.String() }, Console: func(a net.Addr) { s.console = a.String() },
			SecondLook: 50 * time.Millisecond})
	}()
	w.t.Cleanup(func() {
		if !s.hasEnded() {
			w.postgres.Up()
			w.redis.Up()
			s.stop()
		}
		if w.t.Failed() {
			lines := strings.Split(s.log.String(), "\n")
			w.t.Logf("the end of the log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
	select {
	case <-listening:
	case <-s.ended:
		w.t.Fatalf("the service does not start: %v", s.err)
	case <-w.ctx.Done():
		w.t.Fatal("the service does not start")
	}
	return s
}

// through is the database's URL by way of a proxy.
func (w *world) through(p *faultproxy.Proxy) string {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	u.Host = p.Addr()
	return u.String()
}

func (s *service) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// end asks the service to stop and gives the error of Run.
func (s *service) end() error {
	s.w.t.Helper()
	s.cancel()
	select {
	case <-s.ended:
	case <-time.After(2 * patience):
		s.w.t.Fatal("the service does not stop")
	}
	return s.err
}

// stop is end for a service that has to end well: it leaves nothing in the
// outbox.
func (s *service) stop() {
	s.w.t.Helper()
	if err := s.end(); err != nil {
		s.w.t.Errorf("the service ends with: %v", err)
		return
	}
	var left int64
	if err := s.w.db.QueryRow(context.Background(), `SELECT count(*) FROM trestle_outbox`).Scan(&left); err != nil {
		s.w.t.Error(err)
	} else if left > 0 {
		s.w.t.Errorf("a service that ended well has left %d rows in the outbox", left)
	}
}

// get asks the service's HTTP server.
func (s *service) get(path string) (code int, body string) {
	s.w.t.Helper()
	request, err := http.NewRequestWithContext(s.w.ctx, http.MethodGet, "http://"+s.http+path, nil)
	if err != nil {
		s.w.t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	response, err := client.Do(request)
	if err != nil {
		s.w.t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		s.w.t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// families are metrics as they are scraped: those of the names, or all.
func (s *service) families(names ...string) map[string]*dto.MetricFamily {
	s.w.t.Helper()
	code, body := s.get("/metrics?" + url.Values{"name[]": names}.Encode())
	if code != http.StatusOK {
		s.w.t.Fatalf("/metrics answers %d: %s", code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		s.w.t.Fatal(err)
	}
	return families
}

// family is the metric of a name, nil if there is none.
func (s *service) family(name string) *dto.MetricFamily {
	s.w.t.Helper()
	return s.families(name)[name]
}

// metric is the sum of the series of a name that have these labels, given as
// name=value; of histograms the counts.
func (s *service) metric(name string, labels ...string) float64 {
	s.w.t.Helper()
	return sum(s.family(name), labels...)
}

func sum(family *dto.MetricFamily, labels ...string) (total float64) {
	for _, m := range family.GetMetric() {
		has := make(map[string]bool)
		for _, l := range m.GetLabel() {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		all := true
		for _, l := range labels {
			all = all && has[l]
		}
		if all {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

// logs says whether the log has a text.
func (s *service) logs(text string) bool { return strings.Contains(s.log.String(), text) }
