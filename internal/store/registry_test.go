package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/devstack/faultproxy"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func registration(name, url string) store.Cluster {
	return store.Cluster{
		Name: name, URL: url, State: "available", Score: 50, MaxScore: 100, Govern: true, Region: "europe",
		TLS:                  &store.ClusterTLS{CA: secret.New("Y2E="), Certificate: secret.New("Y3J0"), Key: secret.New("a2V5")},
		AdmissionConstraints: json.RawMessage(`[{"type": "has-feature-preview"}]`),
		WorkspaceClasses:     json.RawMessage(`[{"id": "small"}]`),
		PreferredClass:       "small",
	}
}

// registered is the one cluster of a name.
func (b *bench) registered(name string) (store.Cluster, bool) {
	b.Helper()
	all, err := b.Clusters(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	i := slices.IndexFunc(all, func(c store.Cluster) bool { return c.Name == name })
	if i < 0 {
		return store.Cluster{}, false
	}
	return all[i], true
}

func (b *bench) remembered(name string) (remembered bool) {
	b.Helper()
	if err := b.db.QueryRow(b.Context(), `SELECT EXISTS (SELECT FROM trestle_deregistered_cluster WHERE name = $1)`, name).Scan(&remembered); err != nil {
		b.Fatal(err)
	}
	return remembered
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	want := registration("eu70", "eu70:443")
	if err := b.RegisterCluster(ctx, want); err != nil {
		t.Fatal(err)
	}
	got, _ := b.registered("eu70")
	if !got.TLS.CA.Equal(want.TLS.CA) || !got.TLS.Certificate.Equal(want.TLS.Certificate) || !got.TLS.Key.Equal(want.TLS.Key) {
		t.Error("TLS is not what was registered")
	}
	got.TLS, want.TLS = nil, nil
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("registered\n%s, want\n%s", g, w)
	}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"the same name", b.RegisterCluster(ctx, registration("eu70", "eu71:443")), store.ErrClusterNameTaken},
		{"the same URL", b.RegisterCluster(ctx, registration("eu71", "eu70:443")), store.ErrClusterURLTaken},
		{"both", b.RegisterCluster(ctx, registration("eu70", "eu70:443")), store.ErrClusterNameTaken},
		{"update of an unknown", b.UpdateCluster(ctx, "eu99", store.ClusterChange{Score: new(int32)}), store.ErrUnknownCluster},
		{"TLS of an unknown", b.UpdateCluster(ctx, "eu99", store.ClusterChange{TLS: &store.ClusterTLS{}, TriedAt: "eu70:443"}), store.ErrUnknownCluster},
		{"TLS tried elsewhere", b.UpdateCluster(ctx, "eu70", store.ClusterChange{TLS: &store.ClusterTLS{}, TriedAt: "eu69:443"}), store.ErrClusterMoved},
		{"deregister an unknown", b.DeregisterCluster(ctx, "eu99", true), store.ErrUnknownCluster},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if err := b.UpdateCluster(ctx, "eu70", store.ClusterChange{}); err == nil {
		t.Error("a change of nothing was taken")
	}
	if b.remembered("eu99") || b.remembered("eu70") {
		t.Error("remembered as deregistered before it was")
	}
	if err := b.DeregisterCluster(ctx, "eu70", false); err != nil {
		t.Fatal(err)
	}
	if _, still := b.registered("eu70"); still || !b.remembered("eu70") {
		t.Error("a deregistered cluster is still there, or not remembered")
	}
	if err := b.RegisterCluster(ctx, registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	if b.remembered("eu70") {
		t.Error("a cluster that is registered again is remembered as deregistered")
	}
}

func TestUpdateOfEachProperty(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	number, yes, no := func(n int32) *int32 { return &n }, true, false
	constraints := func(c store.Cluster) string { return strings.ReplaceAll(string(c.AdmissionConstraints), " ", "") }
	preview, permission := json.RawMessage(`{"type":"has-feature-preview"}`), json.RawMessage(`{"permission":"p","type":"has-permission"}`)
	if err := b.RegisterCluster(t.Context(), registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		change store.ClusterChange
		is     func(store.Cluster) bool
	}{
		{"score", store.ClusterChange{Score: number(7)}, func(c store.Cluster) bool { return c.Score == 7 && c.MaxScore == 100 }},
		{"max score", store.ClusterChange{MaxScore: number(70)}, func(c store.Cluster) bool { return c.Score == 7 && c.MaxScore == 70 }},
		{"cordon", store.ClusterChange{Cordoned: &yes}, func(c store.Cluster) bool { return c.State == "cordoned" }},
		{"uncordon", store.ClusterChange{Cordoned: &no}, func(c store.Cluster) bool { return c.State == "available" }},
		{"add what is there", store.ClusterChange{AddConstraint: preview}, func(c store.Cluster) bool { return constraints(c) == `[{"type":"has-feature-preview"}]` }},
		{"add", store.ClusterChange{AddConstraint: permission}, func(c store.Cluster) bool {
			return constraints(c) == `[{"type":"has-feature-preview"},{"type":"has-permission","permission":"p"}]`
		}},
		{"remove what is not there", store.ClusterChange{RemoveConstraint: json.RawMessage(`{"type":"has-permission"}`)}, func(c store.Cluster) bool {
			return constraints(c) == `[{"type":"has-feature-preview"},{"type":"has-permission","permission":"p"}]`
		}},
		{"remove", store.ClusterChange{RemoveConstraint: preview}, func(c store.Cluster) bool {
			return constraints(c) == `[{"type":"has-permission","permission":"p"}]`
		}},
		{"remove the last", store.ClusterChange{RemoveConstraint: permission}, func(c store.Cluster) bool { return constraints(c) == `[]` }},
		{"TLS", store.ClusterChange{TLS: &store.ClusterTLS{CA: secret.New("Q0E="), Certificate: secret.New("x"), Key: secret.New("y")}, TriedAt: "eu70:443"},
			func(c store.Cluster) bool { return c.TLS.CA.Reveal() == "Q0E=" && c.TLS.Key.Reveal() == "y" }},
	} {
		if err := b.UpdateCluster(t.Context(), "eu70", c.change); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if got, _ := b.registered("eu70"); !c.is(got) {
			t.Errorf("%s: the row is %+v", c.what, got)
		}
	}
	// What somebody else has put there does not stand in the way.
	b.exec(`UPDATE workspace_cluster SET admission_constraints = 'null' WHERE name = 'eu70'`)
	if err := b.UpdateCluster(t.Context(), "eu70", store.ClusterChange{AddConstraint: preview}); err != nil {
		t.Error(err)
	}
	if got, _ := b.registered("eu70"); constraints(got) != `[{"type":"has-feature-preview"}]` {
		t.Errorf("constraints added to null: %s", got.AdmissionConstraints)
	}
}

func TestDeregisterCountsWhatRuns(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.RegisterCluster(t.Context(), registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	instance := func(i int, kind, region, phase string, stopped bool) {
		id := testID(i)
		b.exec(`INSERT INTO workspace (id, type) VALUES ($1, $2)`, workspaceOf(id), kind)
		b.exec(`INSERT INTO workspace_instance (id, workspace_id, region, phase, creation_time, stopped_time)
			VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), CASE WHEN $6 THEN now() END)`,
			[16]byte(id), workspaceOf(id), region, phase, float64(i), stopped)
	}
	instance(1, "regular", "eu70", "stopped", true)
	instance(2, "regular", "eu71", "running", false)
	instance(3, "prebuild", "eu70", "running", false)
	instance(4, "imagebuild", "eu70", "running", false)
	for i := range 7 {
		instance(10+i, "regular", "eu70", []string{"running", "stopping", "unknown"}[i%3], false)
	}
	err := b.DeregisterCluster(t.Context(), "eu70", false)
	var inUse *store.ClusterInUseError
	if !errors.As(err, &inUse) || inUse.Count != 7 || len(inUse.Instances) != 5 || inUse.Instances[0] != testID(10).String() {
		t.Fatalf("deregister a cluster in use: %v, %+v", err, inUse)
	}
	if _, there := b.registered("eu70"); !there || b.remembered("eu70") {
		t.Error("a refusal has left a trace")
	}
	b.exec(`UPDATE workspace_instance SET stopped_time = now() WHERE id <> $1`, [16]byte(testID(12)))
	if err := b.DeregisterCluster(t.Context(), "eu70", false); !errors.As(err, &inUse) || inUse.Count != 1 {
		t.Errorf("deregister a cluster with one instance: %v", err)
	}
	if err := b.DeregisterCluster(t.Context(), "eu70", true); err != nil {
		t.Error(err)
	}
	if _, there := b.registered("eu70"); there || !b.remembered("eu70") {
		t.Error("the cluster is still there, or not remembered")
	}
}

// Registering waits for who deregisters the name at that moment, and then
// stands: the name is not left remembered as deregistered.
func TestRegisterDuringDeregister(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	if err := b.RegisterCluster(ctx, registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	tx, err := b.db.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for _, sql := range []string{
		`DELETE FROM workspace_cluster WHERE name = 'eu70'`,
		`INSERT INTO trestle_deregistered_cluster (name) VALUES ('eu70')`,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() { done <- b.RegisterCluster(ctx, registration("eu70", "eu70:443")) }()
	b.awaitLock()
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, there := b.registered("eu70"); !there || b.remembered("eu70") {
		t.Error("the cluster is registered and counts as deregistered")
	}
}

// awaitLock waits until a statement waits for a lock.
func (b *bench) awaitLock() {
	b.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for waits := false; !waits; <-ticker.C {
		if err := b.db.QueryRow(b.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits); err != nil {
			b.Fatal(err)
		}
	}
}

// Many changes at once, by two stores: the database lets one of each kind
// through, and none is lost.
func TestRegistryChangesAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	other := benchOn(t, b.url)
	stores := []*store.Store{b.Store, other.Store}
	ctx := t.Context()
	const n = 8
	at := func(do func(i int, s *store.Store) error) []error {
		errs := make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { errs[i] = do(i, stores[i%2]) })
		}
		all.Wait()
		return errs
	}
	passed := func(what string, errs []error, refusal error) {
		t.Helper()
		ok := 0
		for _, err := range errs {
			switch {
			case err == nil:
				ok++
			case !errors.Is(err, refusal):
				t.Errorf("%s: %v", what, err)
			}
		}
		if ok != 1 {
			t.Errorf("%s: %d of them passed", what, ok)
		}
	}
	passed("one name", at(func(i int, s *store.Store) error {
		return s.RegisterCluster(ctx, registration("eu70", fmt.Sprint("eu70:", i)))
	}), store.ErrClusterNameTaken)
	passed("one URL", at(func(i int, s *store.Store) error {
		return s.RegisterCluster(ctx, registration(fmt.Sprint("us", i), "us:443"))
	}), store.ErrClusterURLTaken)
	for _, err := range at(func(i int, s *store.Store) error {
		return s.UpdateCluster(ctx, "eu70", store.ClusterChange{AddConstraint: json.RawMessage(fmt.Sprintf(`{"type":"has-permission","permission":"p%d"}`, i/2))})
	}) {
		if err != nil {
			t.Error(err)
		}
	}
	got, _ := b.registered("eu70")
	if found := strings.Count(string(got.AdmissionConstraints), "has-permission"); found != n/2 {
		t.Errorf("%d constraints of %d are there: %s", found, n/2, got.AdmissionConstraints)
	}
	passed("deregister", at(func(i int, s *store.Store) error { return s.DeregisterCluster(ctx, "eu70", false) }), store.ErrUnknownCluster)
}

func TestSetClasses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	if err := b.RegisterCluster(ctx, registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	read, _ := b.registered("eu70")
	small, err := store.ClassesOf(&wsman.DescribeClusterResponse{
		WorkspaceClasses:        []*wsman.WorkspaceClass{{Id: "small", DisplayName: "Sm\x00all", Description: "d", CreditsPerMinute: 0.1}},
		PreferredWorkspaceClass: "small",
	})
	if err != nil {
		t.Fatal(err)
	}
	set := func(what string, as store.Cluster, classes store.Classes, want bool) {
		t.Helper()
		if changed, err := b.SetClasses(ctx, as, classes); err != nil || changed != want {
			t.Errorf("%s: %v, %v", what, changed, err)
		}
	}
	set("new ones", read, small, true)
	now, _ := b.registered("eu70")
	if want := `[{"id": "small", "description": "d", "displayName": "Sm�all", "creditsPerMinute": 0.1}]`; string(now.WorkspaceClasses) != want {
		t.Errorf("stored %s, want %s", now.WorkspaceClasses, want)
	}
	set("the same", now, small, false)
	none, err := store.ClassesOf(nil)
	if err != nil {
		t.Fatal(err)
	}
	set("read before the last change", read, none, false)
	moved := now
	moved.URL = "eu71:443"
	set("asked at another URL", moved, none, false)
	set("none", now, none, true)
	if now, _ = b.registered("eu70"); string(now.WorkspaceClasses) != "[]" || now.PreferredClass != "" {
		t.Errorf("stored %s, %q", now.WorkspaceClasses, now.PreferredClass)
	}
	infinite := float32(1)
	for range 200 {
		infinite *= 10
	}
	if _, err := store.ClassesOf(&wsman.DescribeClusterResponse{WorkspaceClasses: []*wsman.WorkspaceClass{{CreditsPerMinute: infinite}}}); err == nil {
		t.Error("infinite costs were encoded")
	}
}

// listener counts what ListenClusters says.
type listener struct {
	told chan struct{}
	stop func()
}

func (b *bench) listen(s *store.Store) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{told: make(chan struct{}, 1)} // size 1: coalesces, as in use
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ListenClusters(ctx, func() {
			select {
			case l.told <- struct{}{}:
			default:
			}
		})
	}()
	l.stop = func() { cancel(); <-done }
	b.Cleanup(l.stop)
	return l
}

func (b *bench) told(l *listener, what string) {
	b.Helper()
	select {
	case <-l.told:
	case <-time.After(30 * time.Second):
		b.Fatalf("nothing was told: %s", what)
	}
}

func TestEveryChangeIsTold(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	l := b.listen(b.Store)
	b.told(l, "the beginning")
	yes := true
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"register", func() error { return b.RegisterCluster(ctx, registration("eu70", "eu70:443")) }},
		{"update", func() error { return b.UpdateCluster(ctx, "eu70", store.ClusterChange{Cordoned: &yes}) }},
		{"classes", func() error {
			read, _ := b.registered("eu70")
			_, err := b.SetClasses(ctx, read, store.Classes{Available: json.RawMessage(`[]`)})
			return err
		}},
		{"deregister", func() error { return b.DeregisterCluster(ctx, "eu70", false) }},
		{"by hand", func() error {
			_, err := b.db.Exec(ctx, `INSERT INTO workspace_cluster (name, url) VALUES ('eu71', 'eu71:443')`)
			return err
		}},
	} {
		if err := c.change(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		b.told(l, c.what)
	}
}

// After an outage it is told that something may have changed.
func TestListeningAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg, err := pgx.ParseConfig(b.url)
	if err != nil {
		t.Fatal(err)
	}
	server := fmt.Sprintf("%s:%d", cfg.Host, cfg.Port)
	proxy, err := faultproxy.New(server)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var runs sync.WaitGroup
	runs.Go(func() {
		if err := proxy.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); runs.Wait() })
	s, err := store.Open(ctx, store.Config{URL: secret.NewURL(strings.Replace(b.url, server, proxy.Addr(), 1)), Installation: installation})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	l := b.listen(s)
	b.told(l, "the beginning")
	b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
	b.told(l, "the connection was closed by the server")
	proxy.Cut()
	b.told(l, "the connection was cut")
	if err := b.RegisterCluster(ctx, registration("eu70", "eu70:443")); err != nil {
		t.Fatal(err)
	}
	b.told(l, "a change after the outage")
	l.stop()
}
