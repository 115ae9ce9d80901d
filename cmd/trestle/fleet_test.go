package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// many is a world with several replicas.
type many struct {
	*world
	fleet *fleet.Fleet
	born  int
}

// newMany starts so many replicas of the first revision.
func newMany(t *testing.T, replicas int, args ...string) *many {
	t.Helper()
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f, err := fleet.New(fleet.Config{
		Binary: self, Dir: dir, Stop: patience,
		Env: []string{
			asProgram + "=yes", "TRESTLE_POSTGRES_URL=" + w.through(), "TRESTLE_REDIS_URL=redis://" + w.redis.Addr(),
			"TRESTLE_ETCD_ENDPOINTS=" + w.stack.Etcd.Endpoints()[0], "TRESTLE_ETCD_LEASE_SECONDS=3",
		},
		Args: append([]string{"--wsClusterDBReconcileIntervalSeconds", "1", "--shutdown.timeoutSeconds", "60"}, args...),
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &many{world: w, fleet: f}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, r := range f.All() {
				log, err := os.ReadFile(r.Log)
				t.Logf("the end of the log of %s (%v):\n%s", r.Name, err, log[max(0, len(log)-3000):])
			}
		}
	})
	m.start(replicas, "v1")
	return m
}

// start starts more replicas and returns when all of them are ready.
func (m *many) start(replicas int, revision string) []*fleet.Replica {
	m.t.Helper()
	started := make([]*fleet.Replica, replicas)
	var group errgroup.Group
	for i := range started {
		m.born++
		name := fmt.Sprintf("replica-%d", m.born)
		group.Go(func() (err error) {
			started[i], err = m.fleet.Start(m.ctx, name, revision)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		m.t.Fatal(err)
	}
	return started
}

func (m *many) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// end has all replicas end in order, and looks that nothing is left.
func (m *many) end() {
	m.t.Helper()
	for _, r := range m.fleet.Living() {
		m.must(r.Stop(m.ctx))
	}
	if n := m.outboxRows(); n != 0 {
		m.t.Errorf("%d rows in the outbox", n)
	}
}

// steadily is work that goes on for about so long.
func steadily(seed uint64, clusters int, rate float64, during time.Duration) loadtest.Work {
	live := 300
	return loadtest.Work{
		Shape: loadtest.Steady, Seed: seed, Clusters: clusters, Wave: live, Rate: rate, Duration: during,
		Instances: live + int(rate*during.Seconds()/7), Odd: 0.3,
	}
}

// leader is the replica that leads, as soon as one says so.
func (m *many) leader() *fleet.Replica {
	m.t.Helper()
	var leader *fleet.Replica
	m.until("one leads", func() bool {
		leader = m.which("trestle_leader", func(v float64) bool { return v == 1 })
		return leader != nil
	})
	return leader
}

// owner is a replica that carries something and is none of these.
func (m *many) owner(but ...*fleet.Replica) *fleet.Replica {
	m.t.Helper()
	var owner *fleet.Replica
	m.until("another carries something", func() bool {
		owner = m.which("trestle_replica_load", func(v float64) bool { return v > 0 }, but...)
		return owner != nil
	})
	return owner
}

// which is a replica of whose metric is says yes.
func (m *many) which(metric string, is func(float64) bool, but ...*fleet.Replica) *fleet.Replica {
	for _, r := range m.fleet.Living() {
		if slices.Contains(but, r) {
			continue
		}
		if sums, err := r.Sums(m.ctx); err == nil && is(sums[metric]) {
			return r
		}
	}
	return nil
}

// carried waits until every cluster is written by somebody: the one that is
// given apart, which may not be able to say so.
func (m *many) carried(clusters int, but ...*fleet.Replica) {
	m.t.Helper()
	m.until("every cluster is carried", func() bool {
		held := 0
		for _, r := range m.fleet.Living() {
			if slices.Contains(but, r) {
				continue
			}
			families, err := r.Families(m.ctx)
			if err != nil {
				return false
			}
			for _, epoch := range families["trestle_shard_epoch"].GetMetric() {
				for _, l := range epoch.GetLabel() {
					if l.GetName() == "kind" && l.GetValue() == "observed" {
						held++
					}
				}
			}
		}
		return held >= clusters
	})
}

// sum adds a metric up over the living replicas.
func (m *many) sum(metric string) (total float64) {
	m.t.Helper()
	for _, r := range m.fleet.Living() {
		sums, err := r.Sums(m.ctx)
		m.must(err)
		total += sums[metric]
	}
	return total
}

// whole says whether everything is to be played at its real size, as make e2e
// does; else a part of it, small.
func whole() bool { return os.Getenv("TRESTLE_E2E") != "" }

// What may happen to a fleet while updates flow: nothing is lost, nothing goes
// back, and what was planned is told once.
func TestFleet(t *testing.T) {
	for _, c := range []struct {
		name string
		// always: also in the short selection.
		always bool
		// planned: nothing fails.
		planned bool
		during  time.Duration
		story   func(m *many, test *loadtest.Test, clusters int)
	}{
		{"rolling upgrade", true, true, 20 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			for _, old := range m.fleet.Living() {
				m.start(1, "v2")
				m.must(old.Stop(m.ctx))
			}
			m.carried(clusters)
		}},
		{"join and leave", false, true, 20 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			joined := m.start(1, "v1")[0]
			m.until("it has its part", func() bool {
				sums, err := joined.Sums(m.ctx)
				return err == nil && sums["trestle_replica_load"] > 0
			})
			m.must(m.owner(joined).Stop(m.ctx))
			m.carried(clusters)
		}},
		{"crash of an owner", true, false, 15 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			m.must(m.owner(m.leader()).Kill())
			m.carried(clusters)
		}},
		{"crash of the leader", false, false, 15 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			m.must(m.leader().Kill())
			m.leader()
			m.carried(clusters)
		}},
		{"crash of both", false, false, 20 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			leader := m.leader()
			owner := m.owner(leader)
			m.must(leader.Kill())
			m.must(owner.Kill())
			m.leader()
			m.carried(clusters)
		}},
		{"a phantom owner", true, false, 20 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			phantom := m.owner(m.leader())
			m.must(phantom.Hold())
			m.carried(clusters, phantom)
			m.must(phantom.Go())
			m.until("it knows that it was replaced", func() bool {
				sums, err := phantom.Sums(m.ctx)
				return err == nil && sums["trestle_detached"] == 0
			})
			m.carried(clusters)
		}},
		{"etcd away, then wiped", false, false, 90 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			m.must(m.stack.Etcd.Stop())
			m.until("all are detached", func() bool { return m.sum("trestle_detached") == float64(len(m.fleet.Living())) })
			// For a minute.
			m.sent(test, test.Ledger().Counts().Sent+60*3000)
			m.must(m.stack.Etcd.Start(m.ctx))
			m.until("none is detached", func() bool { return m.sum("trestle_detached") == 0 })
			m.carried(clusters)
			m.must(m.stack.Etcd.Wipe(m.ctx))
			m.until("they have come back", func() bool { return m.sum("trestle_detached") == 0 })
			m.carried(clusters)
		}},
		{"restart of Postgres", false, false, 20 * time.Second, func(m *many, test *loadtest.Test, clusters int) {
			m.must(m.stack.Postgres.Stop(m.ctx))
			m.must(m.stack.Postgres.Start(m.ctx))
			m.carried(clusters)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			replicas, clusters, rate := 4, 20, 3000.0
			if !whole() {
				if !c.always {
					t.Skip("a part of make e2e")
				}
				t.Parallel()
				replicas, clusters, rate, c.during = 3, 6, 500, 10*time.Second
			}
			m := newMany(t, replicas)
			m.failures = !c.planned
			work := steadily(11, clusters, rate, c.during)
			var before ledger.Histogram
			m.play(loadtest.Config{Work: work, Snapshots: 2}, func(test *loadtest.Test) {
				m.carried(clusters)
				m.sent(test, int64(rate))
				before = test.Ledger().Latency()
				c.story(m, test, clusters)
				after := test.Ledger().Latency()
				since := after.Since(&before)
				t.Logf("before: p50 %v, p99 %v; meanwhile: p50 %v, p99 %v, longest %v",
					before.Quantile(0.5), before.Quantile(0.99), since.Quantile(0.5), since.Quantile(0.99), since.Quantile(1))
			})
			if c.planned && m.sum("trestle_pipeline_fenced_writes_total") > 0 {
				t.Error("writes were refused, though nothing failed")
			}
			m.end()
		})
	}
}
