package classsync_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/trestle-bridge/trestle/internal/classsync"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

const patience = 30 * time.Second

func describe(ctx context.Context, c store.Cluster) (*wsman.DescribeClusterResponse, error) {
	client, err := upstream.New(upstream.Config{Cluster: upstream.Cluster{Name: c.Name, URL: c.URL}})
	if err != nil {
		return nil, err
	}
	return client.Describe(ctx)
}

func classes(ids ...string) *wsman.DescribeClusterResponse {
	r := &wsman.DescribeClusterResponse{PreferredWorkspaceClass: ids[0]}
	for _, id := range ids {
		r.WorkspaceClasses = append(r.WorkspaceClasses, &wsman.WorkspaceClass{Id: id, CreditsPerMinute: 0.1})
	}
	return r
}

type bench struct {
	*testing.T
	ctx   context.Context // ends when patience does
	db    *pgxpool.Pool
	store *store.Store
}

func newBench(t *testing.T) *bench {
	t.Helper()
	url := devstacktest.NewDatabase(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	if err := store.Migrate(ctx, secret.NewURL(url), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.New(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	s, err := store.Open(ctx, store.Config{URL: secret.NewURL(url), Installation: "local", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &bench{T: t, ctx: ctx, db: db, store: s}
}

func (b *bench) exec(sql string, args ...any) {
	b.Helper()
	if _, err := b.db.Exec(b.ctx, sql, args...); err != nil {
		b.Fatal(err)
	}
}

// run runs part until the test ends.
func (b *bench) run(part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // read once, below
	go func() { ended <- part(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}

// cluster starts a simulated one and registers it.
func (b *bench) cluster(name string, govern bool) *sim.Cluster {
	b.Helper()
	c, err := sim.New(sim.Config{Name: name, Classes: classes("small", "large")})
	if err != nil {
		b.Fatal(err)
	}
	b.run(c.Run)
	b.exec(`INSERT INTO workspace_cluster (name, url, govern) VALUES ($1, $2, $3)`, name, c.Addr(), govern)
	return c
}

// becomes waits until the row of a cluster has these classes: what was told of
// a change is heard before it is looked for.
func (b *bench) becomes(told <-chan struct{}, name, want string) {
	b.Helper()
	got := ""
	for {
		if err := b.db.QueryRow(b.ctx, `SELECT jsonb_path_query_array(available_workspace_classes, '$[*].id')::text || preferred_workspace_class
			FROM workspace_cluster WHERE name = $1`, name).Scan(&got); err != nil {
			b.Fatal(err)
		}
		if got == want {
			return
		}
		select {
		case <-told:
		case <-b.ctx.Done():
			b.Fatalf("the classes of %s are %s, and do not become %s", name, got, want)
		}
	}
}

func TestClassesFollowTheClusters(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	told := make(chan struct{}, 1) // size 1: coalesces
	b.run(func(ctx context.Context) error {
		b.store.ListenClusters(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
		return nil
	})
	hanging, refusing, ungoverned := b.cluster("a-hanging", true), b.cluster("b-refusing", true), b.cluster("c-ungoverned", false)
	hanging.SetFaults(sim.Faults{Describe: sim.Hang})
	refusing.SetFaults(sim.Faults{Describe: sim.Refuse})
	b.exec(`UPDATE workspace_cluster SET available_workspace_classes = '[{"id": "old"}]' WHERE name = 'b-refusing'`)
	b.exec(`INSERT INTO workspace_cluster (name, url) VALUES ('d-nonsense', 'https://nowhere')`)
	good := b.cluster("e-good", true)

	registry := prometheus.NewPedanticRegistry()
	s, err := classsync.New(classsync.Config{
		Registry: b.store, Describe: describe, Interval: 50 * time.Millisecond, Deadline: time.Second,
		Logger: slog.New(slog.DiscardHandler), Registerer: registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run(s.Run)
	b.becomes(told, "e-good", `["small", "large"]small`)
	good.SetClasses(classes("huge"))
	b.becomes(told, "e-good", `["huge"]huge`)
	if err := good.Await(b.ctx, func(stats sim.Stats) bool { return stats.Described >= 4 }); err != nil {
		t.Fatal(err)
	}
	// What has not answered keeps its classes, until it does.
	b.becomes(told, "b-refusing", `["old"]`)
	refusing.SetFaults(sim.Faults{})
	b.becomes(told, "b-refusing", `["small", "large"]small`)
	hanging.SetFaults(sim.Faults{})
	b.becomes(told, "a-hanging", `["small", "large"]small`)
	if described := ungoverned.Stats().Described; described != 0 {
		t.Errorf("a cluster that is not governed was asked %d times", described)
	}
	if n, err := testutil.GatherAndCount(registry, "trestle_class_syncs_total"); err != nil || n != 3 {
		t.Errorf("%d series, %v", n, err)
	}
}

// fakeRegistry has clusters and takes no classes.
type fakeRegistry struct {
	clusters []store.Cluster
	set      chan string
}

func (f fakeRegistry) Clusters(context.Context) ([]store.Cluster, error) { return f.clusters, nil }
func (f fakeRegistry) SetClasses(ctx context.Context, read store.Cluster, _ store.Classes) (bool, error) {
	select {
	case f.set <- read.Name:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Clusters that hang until their deadline do not keep the others waiting for
// it.
func TestSlowClustersDelayNoOther(t *testing.T) {
	t.Parallel()
	f := fakeRegistry{set: make(chan string)}
	for range 10 {
		f.clusters = append(f.clusters, store.Cluster{Name: "slow", Govern: true})
	}
	f.clusters = append(f.clusters, store.Cluster{Name: "quick", Govern: true})
	s, err := classsync.New(classsync.Config{
		Registry: f, Interval: time.Hour, Deadline: time.Hour,
		Describe: func(ctx context.Context, c store.Cluster) (*wsman.DescribeClusterResponse, error) {
			if c.Name == "slow" {
				<-ctx.Done()
				return nil, errors.New("too slow")
			}
			return nil, nil
		},
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	select {
	case name := <-f.set:
		if name != "quick" {
			t.Errorf("classes of %s", name)
		}
	case <-time.After(patience):
		t.Error("a quick cluster waits for slow ones")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	full := classsync.Config{Registry: fakeRegistry{}, Describe: describe, Logger: slog.Default(), Registerer: prometheus.NewRegistry()}
	if _, err := classsync.New(full); err != nil {
		t.Error(err)
	}
	if _, err := classsync.New(full); err == nil {
		t.Error("metrics registered twice")
	}
	for _, change := range []func(*classsync.Config){
		func(c *classsync.Config) { c.Registry = nil },
		func(c *classsync.Config) { c.Describe = nil },
		func(c *classsync.Config) { c.Logger = nil },
		func(c *classsync.Config) { c.Registerer = nil },
		func(c *classsync.Config) { c.Interval = -1 },
	} {
		cfg := full
		cfg.Registerer = prometheus.NewRegistry()
		change(&cfg)
		if _, err := classsync.New(cfg); err == nil {
			t.Errorf("taken: %+v", cfg)
		}
	}
}
