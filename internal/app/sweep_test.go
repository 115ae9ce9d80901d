package app

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// What nobody will stop is stopped by the replica that leads, whoever owns the
// cluster, and comes back if it was alive after all.
func TestSweeps(t *testing.T) {
	t.Parallel()
	const stuck, lost, alive = 0, 1, 2
	w := newWorld(t, plan{instances: 3, subject: func(number int, s *ledger.Subject) {
		if number == stuck { // never started
			s.Created = time.Now().Add(-2 * time.Hour)
		}
	}})
	often := func(c *config.Config) { c.ControllerInterval = time.Second }
	first := w.serve(often)
	w.heard(2)
	w.until("the row that was never started is stopped", func() bool { return w.text(stuck, "phase") == "stopped" })

	running := w.status(lost, 5, func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_RUNNING })
	w.say(lost, running)
	w.say(alive, w.status(alive, 5, func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_RUNNING }))
	w.until("both run", func() bool { return w.text(lost, "phase") == "running" && w.text(alive, "phase") == "running" })
	w.clusters[0].Forget(sim.ID(w.subject(lost).ID.Instance))
	w.until("the row that the cluster has lost is stopped", func() bool { return w.text(lost, "phase") == "stopped" })
	if message := w.text(lost, "status ->> 'message'"); message != "Stopped by the bridge. Previously in phase running" {
		t.Errorf("message: %s", message)
	}
	if phase := w.text(alive, "phase"); phase != "running" {
		t.Errorf("the other one is %s", phase)
	}
	if n := first.metric("gitpod_ws_instances_marked_stopped_total", "previous_phase=running"); n != 1 {
		t.Errorf("%v instances are counted", n)
	}
	if n := first.metric("gitpod_ws_instances_marked_stopped_total", "previous_phase=preparing"); n != 1 {
		t.Errorf("%v instances are counted by the first", n)
	}
	w.say(lost, running)
	w.until("it is back", func() bool { return w.text(lost, "phase") == "running" })
	first.stop()
}
