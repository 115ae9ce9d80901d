package app

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// numbered is the id of an instance that is one of very many.
func numbered(n int) (id sim.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	binary.BigEndian.PutUint32(id[12:], uint32(n))
	return id
}

// brief is a small status of such an instance.
func (w *world) brief(n int, version uint64) sim.Update {
	return sim.Update{ID: numbered(n), Message: w.message(&wsman.WorkspaceStatus{
		Id:            script.FormatUUID(numbered(n)),
		Metadata:      &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "workspace"},
		Spec:          &wsman.WorkspaceSpec{},
		Phase:         wsman.WorkspacePhase_RUNNING,
		Conditions:    &wsman.WorkspaceConditions{},
		Message:       fmt.Sprint(n, " at ", version),
		StatusVersion: version,
	})}
}

// crowd makes the first cluster run so many instances, whose rows are there; each is
// at its number and one.
func (w *world) crowd(instances int) {
	w.t.Helper()
	if _, err := w.db.CopyFrom(w.ctx, pgx.Identifier{"workspace_instance"}, []string{"id", "workspace_id", "region"},
		pgx.CopyFromSlice(instances, func(n int) ([]any, error) { return []any{[16]byte(numbered(n)), "workspace", clusterName(0)}, nil })); err != nil {
		w.t.Fatal(err)
	}
	for n := range instances {
		w.publish(0, w.brief(n, uint64(1+n)))
	}
}

// A cluster that runs 100,000 instances when it is first heard of: more than wait in
// memory to be told, and as much as a page of the outbox holds.
func TestLargeSnapshot(t *testing.T) {
	t.Parallel()
	instances := 100_000
	if testing.Short() {
		instances = 5_000
	}
	w := newWorld(t, plan{seed: 1_000_001, patience: 3 * patience})
	w.crowd(instances)
	s := w.serve()
	w.until("every row is written and published", func() bool {
		if n := s.metric(waitingInstances); n > float64(instances) {
			t.Errorf("%v instances wait, there are %d", n, instances)
		}
		return s.metric(publishedTotal, "type=workspace-instance", "error=false") >= float64(instances)
	})
	s.stop()

	w.exec(`CREATE TABLE expected (id uuid PRIMARY KEY, version bigint, message text)`)
	if _, err := w.db.CopyFrom(w.ctx, pgx.Identifier{"expected"}, []string{"id", "version", "message"},
		pgx.CopyFromSlice(instances, func(n int) ([]any, error) {
			return []any{[16]byte(numbered(n)), int64(1 + n), fmt.Sprint(n, " at ", 1+n)}, nil
		})); err != nil {
		t.Fatal(err)
	}
	if n := ask[int](w, `SELECT count(*) FROM workspace_instance i JOIN expected e USING (id)
		WHERE i.status_version = e.version AND i.status ->> 'message' = e.message AND i.phase = 'running' AND i.started_time IS NOT NULL`); n != instances {
		t.Errorf("%d rows of %d are right", n, instances)
	}
}

// A cluster of more instances than a prepared shard has room for changes hands: the
// next owner writes nothing that the rows have already.
func TestLargeClusterChangesHands(t *testing.T) {
	t.Parallel()
	const instances = 5000
	w := newWorld(t, plan{seed: 1_000_003, patience: 3 * patience})
	w.crowd(instances)
	published := func(s *service) float64 {
		return s.metric(publishedTotal, "type=workspace-instance", "error=false")
	}
	before := w.serve()
	w.until("every row is written and published", func() bool { return published(before) >= instances })
	next := w.serve()
	o := w.operator(before)
	w.until("both have joined", func() bool {
		response, err := o.ListReplicas(w.ctx, &trestlev1.ListReplicasRequest{})
		return err == nil && len(response.GetReplicas()) == 2
	})
	before.stop() // hands over
	w.publish(0, w.brief(7, 2*instances))
	w.until("the next owner tells what is new", func() bool { return published(next) >= 1 })
	if n := next.metric("trestle_pipeline_changes_total"); n != 1 {
		t.Errorf("the next owner has written %v instances, want the one that has changed", n)
	}
	next.stop()
	if got := ask[int64](w, `SELECT status_version FROM workspace_instance WHERE id = $1`, [16]byte(numbered(7))); got != 2*instances {
		t.Errorf("the row is at version %d, want %d", got, 2*instances)
	}
}

// A flood of ids that no row knows waits within its bounds, is looked up once,
// and keeps no other cluster waiting.
func TestFloodOfUnknownInstances(t *testing.T) {
	t.Parallel()
	const limit = 2000
	w := newWorld(t, plan{clusters: 2, instances: 100, seed: 1_000_002})
	s := w.serve(func(c *config.Config) {
		c.Pipeline.MaxWaitingPerCluster = limit
		c.Pipeline.MaxWaiting = 2 * limit
	})
	w.heard(1)

	ctx, stop := context.WithCancel(w.ctx)
	var sent atomic.Int64
	var flood sync.WaitGroup
	flood.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			u := w.brief(n, 1)
			u.Effect = sim.Untouched
			if w.clusters[0].Publish(ctx, u) != nil {
				return
			}
			sent.Add(1)
		}
	})
	t.Cleanup(func() { stop(); flood.Wait() })
	w.until("the flood has begun", func() bool { return sent.Load() > 1000 })
	// All that the other clusters say is written while it goes on.
	before := sent.Load()
	for range 8 {
		for n := range w.plan.instances {
			if w.subject(n).Cluster == 1 {
				w.send(n, 1)
			}
		}
		if n := s.metric(waitingInstances, "workspace_cluster="+clusterName(0)); n > limit {
			t.Errorf("%v instances wait, the limit is %d", n, limit)
		}
	}
	w.settle(false)
	w.until("the flood goes on", func() bool { return sent.Load() > before })
	stop()
	flood.Wait()
	// What of the flood is still on its way could end the subscription once more, and
	// what is said before the next one would not be heard.
	w.clusters[0].CutStreams()
	if err := w.clusters[0].AwaitSubscribers(w.ctx, 1); err != nil {
		t.Fatal(err)
	}
	w.until("every update is accounted for", func() bool {
		f := s.families(startedTotal, completedTotal)
		return sum(f[startedTotal]) == sum(f[completedTotal])
	})

	// The same ids again, with other words: nobody asks for them.
	const ids = 3000
	base := 1 << 30
	changes := func() float64 { return s.metric("trestle_pipeline_changes_total") }
	unknown := func() float64 { return s.metric(updatesTotal, "known_instance=false") }
	var asked float64 // after the first pass
	for pass := range 5 {
		counted := unknown()
		for n := range ids {
			u := w.brief(base+n, uint64(1+pass))
			u.Effect = sim.Untouched
			w.publish(0, u)
			if n%1000 == 999 { // the limit of what waits is not the point here
				w.until("they are accounted for", func() bool { return unknown() >= counted+float64(n+1) })
			}
		}
		if pass == 0 {
			asked = changes()
		}
	}
	// On a slow machine the time is over for which ignorance is remembered.
	if n := changes() - asked; n > ids {
		t.Errorf("%d ids were looked up %v times", ids, n)
	}
	s.stop()
}
