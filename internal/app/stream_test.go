package app

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const (
	updatesTotal   = "gitpod_ws_manager_bridge_status_updates_total"
	staleTotal     = "gitpod_ws_manager_bridge_stale_status_updates_total"
	publishedTotal = "gitpod_redis_updates_published_total"
	startedTotal   = "gitpod_ws_manager_bridge_workspace_instance_update_started_total"
	completedTotal = "gitpod_ws_manager_bridge_workspace_instance_update_completed_seconds"
	batches        = "trestle_pipeline_batch_instances"
	invalidTotal   = "trestle_pipeline_invalid_updates_total"
)

// Everything that clusters say, odd things among it, ends up in the tables and
// is published, an update at a time or folded.
func TestEverythingHeardIsWrittenAndPublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 2, instances: 200, odd: 0.8})
	s := w.serve()
	w.heard(2)
	w.sendAll(every)
	if verdict := w.settle(false); verdict.Exact == 0 {
		t.Error("no instance was held against every update")
	}
	s.stop()
}

// What happens while a service begins to listen is heard, on the stream or in
// the snapshot after it.
func TestNothingIsLostWhileSubscribing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 60})
	w.serve()
	for n := range w.plan.instances {
		// With each instance the moment of its last words is another one.
		w.send(n, 1+n%5)
	}
	w.settle(false)
}

// A server that answers a snapshot, and lets the subscription begin only
// later, does not make us miss what happens in between.
func TestNothingIsLostBetweenSnapshotAndSubscription(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 30})
	w.sendAll(2)
	w.clusters[0].SetFaults(sim.Faults{Subscribe: sim.Hang})
	w.serve()
	if err := w.clusters[0].Await(w.ctx, func(s sim.Stats) bool { return s.Snapshots == 1 }); err != nil {
		t.Fatal(err)
	}
	if n := w.clusters[0].Subscribers(); n != 0 {
		t.Fatalf("%d are subscribed", n)
	}
	w.sendAll(2) // nobody hears it
	w.clusters[0].SetFaults(sim.Faults{})
	w.settle(false)
}

func TestStaleAndRepeatedUpdatesWriteNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 3})
	const heard, stored, marker = 0, 1, 2
	// A row that another process has written, of which this one has heard
	// nothing.
	w.exec(`UPDATE workspace_instance SET status_version = 1000, phase = 'running' WHERE id = $1`, w.subject(stored).ID.Instance)
	s := w.serve()
	w.heard(2) // no more of them changes the counts

	w.say(heard, w.status(heard, 100, nil))
	w.until("the first update is written", func() bool { return w.version(heard) == 100 })
	before, storedBefore := w.place(heard), w.place(stored)
	for v := range uint64(200) {
		w.say(heard, w.status(heard, 101+v, nil))
	}
	older := func(s *wsman.WorkspaceStatus) { s.Phase, s.Message = wsman.WorkspacePhase_CREATING, "older" }
	for _, v := range []uint64{7, 100, 200, 0} {
		w.mumble(heard, w.message(w.status(heard, v, older)))
	}
	w.mumble(stored, w.message(w.status(stored, 999, older)))
	w.mumble(stored, w.message(w.status(stored, 1000, func(s *wsman.WorkspaceStatus) { s.Message = "the same version" })))
	w.mumble(stored, w.message(w.status(stored, 0, older)))
	// What stands behind these on the stream comes after them.
	w.say(marker, w.status(marker, 1, nil))
	w.until("the last update is written", func() bool { return w.version(marker) == 1 })
	w.until("every update is accounted for", func() bool { return s.metric(completedTotal) == 209 })
	w.until("the publishes are made", func() bool { return s.metric(publishedTotal, "type=workspace-instance") >= 2 })

	if after := w.place(heard); after != before {
		t.Errorf("the row was at %s and is at %s", before, after)
	}
	if after := w.place(stored); after != storedBefore {
		t.Errorf("the row was at %s and is at %s", storedBefore, after)
	}
	if n := s.metric(publishedTotal, "type=workspace-instance"); n != 2 {
		t.Errorf("%v publishes, want those of the first update and the last", n)
	}
	if n := s.metric(staleTotal); n != 7 {
		t.Errorf("%v updates are stale, want 7", n)
	}
	if n := s.metric("trestle_pipeline_heard_total", "verdict=repeat"); n != 200 {
		t.Errorf("%v repeats, want 200", n)
	}
	// The first update, the marker, and of the stored row what was heard before
	// its version was known.
	if n := s.metric(batches); n < 2 || n > 5 {
		t.Errorf("%v batches", n)
	}
	// The highest version that was heard is what later ones are held against.
	w.say(heard, w.status(heard, 301, func(s *wsman.WorkspaceStatus) { s.Message = "new" }))
	w.until("the new update is written", func() bool { return w.version(heard) == 301 })
}

func TestUnknownForeignAndInvalidUpdates(t *testing.T) {
	t.Parallel()
	stranger := &script.Script{Name: "stranger", Type: script.Regular, Role: script.Unknown}
	foreign := &script.Script{Name: "foreign", Type: script.Regular, Role: script.Foreign}
	w := newWorld(t, plan{instances: 4, subject: func(n int, s *ledger.Subject) {
		switch n {
		case 1:
			s.Script = stranger
		case 2:
			s.Script = foreign
		}
	}})
	const known, unknown, abroad, marker = 0, 1, 2, 3
	s := w.serve()
	w.heard(2) // no more of them changes the counts
	abroadBefore := w.place(abroad)
	for v := range uint64(50) {
		w.mumble(unknown, w.message(w.status(unknown, 1+v, func(s *wsman.WorkspaceStatus) { s.Message = time.Now().String() })))
	}
	for v := range uint64(10) {
		w.mumble(abroad, w.message(w.status(abroad, 1+v, func(s *wsman.WorkspaceStatus) { s.Message = time.Now().String() })))
	}
	for _, change := range []func(*wsman.WorkspaceStatus){
		func(s *wsman.WorkspaceStatus) { s.Id = "" },
		func(s *wsman.WorkspaceStatus) { s.Id = "not-a-uuid" },
		func(s *wsman.WorkspaceStatus) { s.Metadata = nil },
		func(s *wsman.WorkspaceStatus) { s.Spec = nil },
		func(s *wsman.WorkspaceStatus) { s.Conditions = nil },
		func(s *wsman.WorkspaceStatus) { s.StatusVersion = 1 << 63 },
	} {
		w.mumble(known, w.message(w.status(known, 5, change)))
	}
	w.mumble(known, sim.NewMessage([]byte{0x0a, 0x64, 0xff}))
	w.say(known, w.status(known, 4, nil))
	w.say(marker, w.status(marker, 1, nil))
	w.until("every update is accounted for", func() bool { return s.metric(completedTotal) == 62 })
	w.until("the publishes are made", func() bool { return s.metric(publishedTotal, "type=workspace-instance") >= 2 })

	if got := w.version(known); got != 4 {
		t.Errorf("the version is %d, want that of the valid update", got)
	}
	if after := w.place(abroad); after != abroadBefore {
		t.Errorf("the foreign row was at %s and is at %s", abroadBefore, after)
	}
	if n := s.metric("trestle_pipeline_foreign_updates_total"); n < 1 {
		t.Errorf("%v foreign updates", n)
	}
	if n := s.metric(updatesTotal, "known_instance=false"); n < 50 || n > 60 {
		t.Errorf("%v updates of unknown instances, want 50, and those of the foreign one that were not looked up again", n)
	}
	for _, reason := range []string{"no_id", "id_not_uuid", "no_metadata", "no_spec", "no_conditions", "version_out_of_range", "malformed"} {
		if n := s.metric(invalidTotal, "reason="+reason); n != 1 {
			t.Errorf("%v invalid updates for %s, want 1", n, reason)
		}
	}
	if !s.logs(`"cluster":"cluster-00"`) {
		t.Error("the log does not name the cluster")
	}
	if n := w.clusters[0].Stats().Subscribed; n != 1 {
		t.Errorf("the stream was taken up %d times", n)
	}
	// A row that comes later is found within the time for which ignorance is
	// remembered; one that is there already, at once.
	if n := s.metric(publishedTotal, "type=workspace-instance"); n != 2 {
		t.Errorf("%v publishes, want 2", n)
	}
}

// What was heard last is what a repeat is held against, written or not.
func TestBackToTheFirstState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 2})
	s := w.serve(func(c *config.Config) { c.Pipeline.Lanes = 1 })
	w.heard(1)
	says := func(text string) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) { s.Message = text }
	}
	const message = `status ->> 'message'`
	w.say(0, w.status(0, 1, says("A")))
	w.until("A is written", func() bool { return w.version(0) == 1 })

	// B in flight.
	unlock := w.lock(0)
	w.say(0, w.status(0, 2, says("B")))
	w.blocked()
	w.say(0, w.status(0, 3, says("A")))
	w.say(0, w.status(0, 4, says("A")))
	unlock()
	w.until("A is written again", func() bool { return w.text(0, message) == "A" && w.version(0) >= 3 })

	// B waiting, since the lane writes another instance.
	unlock = w.lock(1)
	w.say(1, w.status(1, 1, nil))
	w.blocked()
	w.say(0, w.status(0, 12, says("B")))
	w.say(0, w.status(0, 13, says("A")))
	w.say(0, w.status(0, 14, says("A")))
	unlock()
	w.until("A is written again", func() bool { return w.text(0, message) == "A" && w.version(0) >= 13 })
	s.stop()
	if got := w.text(0, message); got != "A" {
		t.Errorf("it ends as %s", got)
	}
}

// A commit that fails leaves nothing that counts as known.
func TestFailedCommitLeavesNothingKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 1})
	s := w.serve(func(c *config.Config) { c.Postgres.StatementTimeout = 100 * time.Millisecond })
	w.heard(2) // no more of them changes the counts
	unlock := w.lock(0)
	w.say(0, w.status(0, 10, nil))
	w.until("some attempts have failed", func() bool { return s.metric("trestle_pipeline_failed_attempts_total") >= 2 })
	if n := s.metric("trestle_pipeline_waiting_instances"); n != 1 {
		t.Errorf("%v instances wait, want 1", n)
	}
	w.say(0, w.status(0, 11, nil)) // a repeat of what is not written
	w.until("the repeat was heard", func() bool { return s.metric("trestle_pipeline_heard_total", "verdict=repeat") == 1 })
	unlock()
	w.until("the update is written", func() bool { return w.version(0) == 10 })
	if n := s.metric("trestle_pipeline_quarantined_total"); n != 0 {
		t.Errorf("%v quarantined", n)
	}
	s.stop()
	if n := ask[int](w, `SELECT count(*) FROM trestle_quarantine`); n != 0 {
		t.Errorf("%d rows in quarantine", n)
	}
}

// A server with a small buffer that drops us again and again takes nothing
// from us but the states in between.
func TestDroppedAgainAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{instances: 400, sim: func(_ int, c *sim.Config) { c.NeverDrop = false }})
	s := w.serve()
	w.heard(1)
	for dropped, step := 0, 0; step < 8 || dropped < 3; step++ {
		// As fast as can be, far beyond the buffer.
		w.sendAll(1)
		now := w.clusters[0].Stats().Dropped
		if step >= 8 {
			// Every script is at its end: go on with the same state.
			for n := range w.plan.instances {
				sub := w.subject(n)
				last := sub.Script.Steps[len(sub.Script.Steps)-1]
				w.mumble(n, sim.NewMessage(last.Response(&sub.ID)))
			}
		}
		if now > dropped {
			dropped = now
			if err := w.clusters[0].AwaitSubscribers(w.ctx, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.settle(true)
	if n := s.metric("trestle_upstream_reconnects_total", "reason=dropped"); n < 1 {
		t.Errorf("dropped %v times by the count of the service, %d by that of the server", n, w.clusters[0].Stats().Dropped)
	}
	s.stop()
}
