package app

import (
	"testing"

	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// A fence that another owner has raised ends all writing of that cluster here,
// in the midst of the stream; the others go on.
func TestFencedClusterIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 2, instances: 40})
	s := w.serve()
	w.heard(2)
	w.sendAll(2)
	w.settle(false)
	w.exec(`UPDATE trestle_fence SET epoch = epoch + 1, owner = 'another' WHERE shard = $1`, clusterName(0))
	before := ask[string](w, `SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM workspace_instance WHERE region = $1`, clusterName(0))
	mine := func(cluster int) (numbers []int) {
		for n := range w.plan.instances {
			if w.subject(n).Cluster == cluster {
				numbers = append(numbers, n)
			}
		}
		return numbers
	}
	for _, n := range mine(0) {
		// Outside of the ledger, which expects what is sent to be written.
		sub := w.subject(n)
		w.say(n, w.status(n, sub.Script.Steps[7].Version(&sub.ID), nil))
	}
	if err := w.clusters[0].Await(w.ctx, func(s sim.Stats) bool { return s.Subscribers == 0 }); err != nil {
		t.Fatal(err)
	}
	for _, n := range mine(1) {
		w.send(n, every)
	}
	w.until("the other cluster goes on", func() bool {
		return ask[int](w, `SELECT count(*) FROM workspace_instance WHERE region = $1 AND phase = 'stopped'`, clusterName(1)) == len(mine(1))
	})
	after := ask[string](w, `SELECT string_agg(ctid::text, ' ' ORDER BY id) FROM workspace_instance WHERE region = $1`, clusterName(0))
	if after != before {
		t.Error("rows of the cluster were written under a fence that was lost")
	}
	if n := s.metric("trestle_pipeline_fenced_writes_total", "workspace_cluster=cluster-00"); n != 1 {
		t.Errorf("%v terms of ownership ended", n)
	}
	s.stop()
}
