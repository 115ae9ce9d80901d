package app

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// authority signs for all clusters of a test.
type authority struct {
	*sim.Authority
	server, client sim.Pair
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	out := &authority{Authority: a}
	for pair, leaf := range map[*sim.Pair]sim.Leaf{&out.server: {Name: sim.ServerName}, &out.client: {}} {
		if *pair, err = a.Issue(leaf); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// column is what workspace_cluster.tls has of a client's certificate.
func (a *authority) column(t *testing.T) string {
	t.Helper()
	text, err := json.Marshal(map[string]string{
		"ca":  base64.StdEncoding.EncodeToString(a.PEM),
		"crt": base64.StdEncoding.EncodeToString(a.client.Cert),
		"key": base64.StdEncoding.EncodeToString(a.client.Key),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Many clusters, with mutual TLS and without, registered and static.
func TestManyClusters(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	secured, err := a.ServerTLS(a.server)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, plan{clusters: 20, instances: 200, odd: 0.3, unregistered: true, sim: func(n int, c *sim.Config) {
		if n%2 == 0 {
			c.TLS = secured
		}
	}})
	var static []config.StaticBridge
	for n, c := range w.clusters {
		switch {
		case n >= 16:
			bridge := config.StaticBridge{Name: c.Name(), URL: c.Addr(), State: "available", Score: 50, MaxScore: 100, Govern: true}
			if n%2 == 0 {
				bridge.TLS = config.TLSFiles{CA: "ca.pem", Crt: "crt.pem", Key: "key.pem"}
				bridge.Material = config.TLSMaterial{CA: a.PEM, Crt: a.client.Cert, Key: secret.New(string(a.client.Key))}
			}
			static = append(static, bridge)
		case n%2 == 0:
			w.exec(`INSERT INTO workspace_cluster (name, url, tls) VALUES ($1, $2, $3)`, c.Name(), c.Addr(), a.column(t))
		default:
			w.register(n)
		}
	}
	// A row wins over a static one of its name; one that is not governed is
	// nothing to us.
	static = append(static, config.StaticBridge{Name: clusterName(0), URL: "127.0.0.1:1", Govern: true})
	w.exec(`INSERT INTO workspace_cluster (name, url, govern) VALUES ('not-ours', '127.0.0.1:2', false)`)
	s := w.serve(func(c *config.Config) { c.StaticBridges = static })
	w.heard(1)
	w.sendAll(every)
	w.settle(false)
	if n := s.metric("trestle_upstream_stream_up"); n != 20 {
		t.Errorf("%v streams are open, want 20", n)
	}
	s.stop()
}

// Clusters come, go and change while the service runs.
func TestClustersComeGoAndChange(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	secured, err := a.ServerTLS(a.server)
	if err != nil {
		t.Fatal(err)
	}
	const stays, comes, goes, moves, secures = 0, 1, 2, 3, 4
	w := newWorld(t, plan{clusters: 5, instances: 50, unregistered: true, sim: func(n int, c *sim.Config) {
		if n == secures {
			c.TLS = secured
		}
	}})
	for _, n := range []int{stays, goes} {
		w.register(n)
	}
	// Where this one is said to be, another listens: its own address follows.
	w.exec(`INSERT INTO workspace_cluster (name, url) VALUES ($1, '127.0.0.1:1')`, clusterName(moves))
	w.register(secures) // in plain text, which it does not speak
	s := w.serve()
	hears := func(n, subscriptions int) {
		t.Helper()
		if err := w.clusters[n].Await(w.ctx, func(s sim.Stats) bool { return s.Subscribers == subscriptions }); err != nil {
			t.Fatal(err)
		}
	}
	send := func(cluster, steps int) {
		for n := range w.plan.instances {
			if w.subject(n).Cluster == cluster {
				w.send(n, steps)
			}
		}
	}
	hears(stays, 1)
	hears(goes, 1)

	w.register(comes)
	hears(comes, 1)
	w.exec(`UPDATE workspace_cluster SET url = $1 WHERE name = $2`, w.clusters[moves].Addr(), clusterName(moves))
	hears(moves, 1)
	w.exec(`UPDATE workspace_cluster SET tls = $1 WHERE name = $2`, a.column(t), clusterName(secures))
	hears(secures, 1)
	for _, n := range []int{stays, comes, goes, moves, secures} {
		send(n, 3)
	}
	w.settle(true)

	// What is heard of a cluster is written before it is left. The last
	// snapshot is over, and does not change the counts.
	if err := w.clusters[goes].Await(w.ctx, func(s sim.Stats) bool { return s.Snapshots >= 2 }); err != nil {
		t.Fatal(err)
	}
	w.until("the snapshot is done with", func() bool {
		return s.metric("trestle_upstream_snapshots_total", "workspace_cluster="+clusterName(goes)) >= 2
	})
	unlock := w.lock(goes) // the instance of this number is one of the cluster
	started := s.metric(startedTotal, "workspace_cluster="+clusterName(goes))
	send(goes, every)
	w.until("all of it is heard", func() bool {
		return s.metric(startedTotal, "workspace_cluster="+clusterName(goes)) == started+10*5
	})
	w.exec(`DELETE FROM workspace_cluster WHERE name = $1`, clusterName(goes))
	hears(goes, 0)
	unlock()
	w.settle(true)
	w.until("the gauges forget it", func() bool {
		return s.metric("gitpod_ws_manager_bridge_cluster_score") == 4*50 && s.metric(waitingInstances) == 0
	})

	// An outage of the registry leaves what is heard as it is.
	w.exec(`ALTER TABLE workspace_cluster RENAME TO hidden`)
	w.until("the registry cannot be read", func() bool { return s.logs("could not be read from the database") })
	send(stays, every)
	send(comes, every)
	w.settle(true)
	w.exec(`ALTER TABLE hidden RENAME TO workspace_cluster`)

	// Back again: its fence is raised anew.
	w.register(goes)
	hears(goes, 1)
	for n := range w.plan.instances {
		w.send(n, every)
	}
	w.settle(true)
	w.until("its fence is raised anew", func() bool {
		return ask[int](w, `SELECT epoch FROM trestle_fence WHERE shard = $1`, clusterName(goes)) == 2
	})
	s.stop()
}

// A cluster with an unusable entry in the registry hinders no other.
func TestBrokenRegistration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 1, instances: 5})
	for n, tls := range []string{`{"ca": "***", "crt": "", "key": ""}`, `{"ca": "YQ==", "crt": "YQ==", "key": "c2VjcmV0LWtleQ=="}`, `{"ca": "YQ=="}`, `[]`} {
		w.exec(`INSERT INTO workspace_cluster (name, url, tls) VALUES ($1, $2, $3)`, fmt.Sprintf("broken-%d", n), fmt.Sprintf("127.0.0.1:%d", n+1), tls)
	}
	w.exec(`INSERT INTO workspace_cluster (name, url) VALUES ('a name', 'not a target://')`)
	s := w.serve()
	w.heard(1)
	w.sendAll(3)
	w.settle(false)
	w.until("it says so", func() bool { return s.logs("broken-0") && s.logs("broken-1") })
	if code, body := s.get("/readyz"); code != http.StatusOK {
		t.Errorf("/readyz answers %d: %s", code, body)
	}

	// One that breaks while it is heard is heard on, even while the registry
	// is away.
	w.exec(`UPDATE workspace_cluster SET tls = '"what"' WHERE name = $1`, clusterName(0))
	w.until("it says so", func() bool { return s.logs("TLS material of cluster " + clusterName(0)) })
	w.exec(`ALTER TABLE workspace_cluster RENAME TO hidden`)
	w.until("the registry cannot be read", func() bool { return s.logs("could not be read from the database") })
	w.sendAll(every)
	w.settle(false)
	if n := w.clusters[0].Stats().Subscribed; n != 1 {
		t.Errorf("the stream was taken up %d times", n)
	}
	if s.logs("c2VjcmV0LWtleQ") || s.logs("secret-key") {
		t.Error("the key is in the log")
	}
	s.stop()
}
