package app

import (
	"context"
	"encoding/base64"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// clusterService is a client of a service's registry.
func (s *service) clusterService() bridge.ClusterServiceClient {
	s.w.t.Helper()
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.w.t.Cleanup(func() { conn.Close() })
	return bridge.NewClusterServiceClient(conn)
}

// never keeps the service from looking at the registry unasked.
func never(c *config.Config) {
	c.ClusterReconcileInterval = 24 * time.Hour
	c.AllowPlaintextClusters = true
}

func (w *world) subscribers(n, want int) {
	w.t.Helper()
	if err := w.clusters[n].Await(w.ctx, func(s sim.Stats) bool { return s.Subscribers == want }); err != nil {
		w.t.Fatal(err)
	}
}

// What one replica changes in the registry every other one does at once: none
// of them looks unasked here.
func TestReplicasHearOfEachOthersClusters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{unregistered: true})
	a, b := w.serve(never), w.serve(never)
	first, second := a.clusterService(), b.clusterService()
	const score, cordoned = "gitpod_ws_manager_bridge_cluster_score", "gitpod_ws_manager_bridge_cluster_cordoned"
	name, label := clusterName(0), "workspace_cluster="+clusterName(0)
	both := func(what string, is func(s *service) bool) {
		t.Helper()
		w.until(what, func() bool { return is(a) && is(b) })
	}
	if _, err := first.Register(w.ctx, &bridge.RegisterRequest{Name: name, Url: w.clusters[0].Addr()}); err != nil {
		t.Fatal(err)
	}
	both("both know of it", func(s *service) bool { return s.metric(score, label) == 50 })
	w.subscribers(0, 1)
	if _, err := second.Update(w.ctx, &bridge.UpdateRequest{Name: name, Property: &bridge.UpdateRequest_Cordoned{Cordoned: true}}); err != nil {
		t.Fatal(err)
	}
	both("both know that it is cordoned", func(s *service) bool { return s.metric(cordoned, label) == 1 })
	if _, err := first.Register(w.ctx, &bridge.RegisterRequest{Name: name, Url: "elsewhere:443"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("registered twice: %v", err)
	}
	if _, err := second.Deregister(w.ctx, &bridge.DeregisterRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	both("both have forgotten it", func(s *service) bool {
		return s.family(score) == nil
	})
	w.subscribers(0, 0)
	// A connection that breaks may have brought nothing of a change.
	w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
	w.register(0)
	both("both know of it again", func(s *service) bool { return s.metric(score, label) == 50 })
	a.stop()
	b.stop()
}

// A change of TLS connects anew, and what was heard before is written.
func TestNewTLSMaterial(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	secured, err := ca.ServerTLS(ca.server)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, plan{instances: 20, unregistered: true, sim: func(_ int, c *sim.Config) { c.TLS = secured }})
	s := w.serve(never)
	client := s.clusterService()
	material := func(p sim.Pair) *bridge.TlsConfig {
		encode := base64.StdEncoding.EncodeToString
		return &bridge.TlsConfig{Ca: encode(ca.PEM), Crt: encode(p.Cert), Key: encode(p.Key)}
	}
	if _, err := client.Register(w.ctx, &bridge.RegisterRequest{Name: clusterName(0), Url: w.clusters[0].Addr(), Tls: material(ca.client)}); err != nil {
		t.Fatal(err)
	}
	w.heard(1)
	w.sendAll(2)
	w.settle(false)

	unlock := w.lock(0)
	w.sendAll(1)
	w.blocked()
	another, err := ca.Issue(sim.Leaf{})
	if err != nil {
		t.Fatal(err)
	}
	update := &bridge.UpdateRequest{Name: clusterName(0), Property: &bridge.UpdateRequest_Tls{Tls: material(another)}}
	if _, err := client.Update(w.ctx, update); err != nil {
		t.Fatal(err)
	}
	if err := w.clusters[0].Await(w.ctx, func(s sim.Stats) bool { return s.Subscribed == 2 }); err != nil {
		t.Fatal(err)
	}
	unlock()
	w.subscribers(0, 1)
	w.sendAll(every)
	w.settle(true)
	if n := w.clusters[0].Stats().Subscribed; n != 2 {
		t.Errorf("the stream was taken up %d times, want 2", n)
	}
	s.stop()
}

// A cluster that is removed before it could be taken over is not taken over any
// more, and keeps no other waiting.
func TestRemovedBeforeTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 2, instances: 10, unregistered: true})
	s := w.serve(never)
	tx, err := w.db.Begin(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(w.ctx, `LOCK TABLE trestle_fence IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	w.register(0)
	w.until("its fence is to be raised", func() bool {
		return ask[bool](w, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	})
	w.exec(`DELETE FROM workspace_cluster WHERE name = $1`, clusterName(0))
	w.until("it does not exist any more", func() bool {
		return s.family("gitpod_ws_manager_bridge_cluster_score") == nil
	})
	w.register(1)
	if err := tx.Rollback(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.subscribers(1, 1)
	w.send(1, every) // instances of odd numbers are this cluster's
	w.settle(true)
	w.subscribers(0, 0)
	s.stop()
}

func TestClassesAreSynced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{})
	w.clusters[0].SetClasses(&wsman.DescribeClusterResponse{
		WorkspaceClasses: []*wsman.WorkspaceClass{{Id: "small"}}, PreferredWorkspaceClass: "small",
	})
	s := w.serve(func(c *config.Config) { c.ClusterSyncInterval = 100 * time.Millisecond })
	w.until("the classes are in the registry", func() bool {
		return ask[string](w, `SELECT concat(preferred_workspace_class, available_workspace_classes -> 0 ->> 'id') FROM workspace_cluster`) == "smallsmall"
	})
	s.stop()
}
