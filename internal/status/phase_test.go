package status_test

import (
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const (
	unknown      = wsman.WorkspacePhase_UNKNOWN
	pending      = wsman.WorkspacePhase_PENDING
	initializing = wsman.WorkspacePhase_INITIALIZING
	running      = wsman.WorkspacePhase_RUNNING
	interrupted  = wsman.WorkspacePhase_INTERRUPTED
	stopping     = wsman.WorkspacePhase_STOPPING
	stopped      = wsman.WorkspacePhase_STOPPED
)

// The tokens and the event that the first STOPPED brings about.
func stopActions(r *statustest.Row, second int) {
	r.Tokens = []string{testID.String() + "x", "another"}
	r.Lifecycle = append(r.Lifecycle, event("bridge-wsstopped-", second))
}

func startAction(r *statustest.Row, second int) {
	r.Started = heardAt(second)
	r.Lifecycle = append(r.Lifecycle, event("bridge-wsrun-", second))
}

func phase(phase string) func(*statustest.Row) {
	return func(r *statustest.Row) { r.Phase = phase }
}

func stoppedRow(r *statustest.Row) {
	r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(-8), heardAt(-7)
}

func TestPhase(t *testing.T) {
	runAll(t, []rule{
		{name: "PENDING", hear: phases(pending), want: phase("pending")},
		{name: "CREATING", row: phase("preparing"), hear: phases(wsman.WorkspacePhase_CREATING), want: phase("creating")},
		{name: "INITIALIZING", hear: phases(initializing), want: phase("initializing")},
		{name: "RUNNING", hear: phases(running), want: func(r *statustest.Row) { r.Phase = "running"; startAction(r, 0) }},
		{name: "INTERRUPTED", hear: phases(interrupted), want: phase("interrupted")},
		{name: "STOPPING", hear: phases(stopping), want: func(r *statustest.Row) { r.Phase, r.Stopping = "stopping", heardAt(0) }},
		{name: "STOPPED", hear: phases(stopped), want: func(r *statustest.Row) {
			r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(0), heardAt(0)
			stopActions(r, 0)
		}},
		{name: "UNKNOWN leaves it as it is", hear: phases(unknown)},
		{name: "UNKNOWN leaves the API server's as it is", row: phase("building"), hear: phases(unknown)},
		{name: "one that we do not know leaves it as it is", hear: phases(99)},
		{name: "may go back", row: phase("running"), hear: phases(pending), want: phase("pending")},
	})
}

func TestRunning(t *testing.T) {
	runAll(t, []rule{
		{name: "counts from the first", hear: phases(pending, running, running), want: func(r *statustest.Row) {
			r.Phase = "running"
			startAction(r, 1)
		}},
		{name: "counts once", row: func(r *statustest.Row) { r.Started = heardAt(-9) }, hear: phases(running), want: phase("running")},
		{name: "counts when it is over before it is written", hear: phases(running, interrupted, stopping), want: func(r *statustest.Row) {
			r.Phase, r.Stopping = "stopping", heardAt(2)
			startAction(r, 0)
		}},
	})
}

func TestBack(t *testing.T) {
	cleared := func(name string) func(*statustest.Row) {
		return func(r *statustest.Row) {
			r.Phase, r.Stopping, r.Stopped = name, time.Time{}, time.Time{}
		}
	}
	stoppingRow := func(r *statustest.Row) { r.Phase, r.Stopping = "stopping", heardAt(-8) }

	runAll(t, []rule{
		{name: "PENDING clears", row: stoppedRow, hear: phases(pending), want: cleared("pending")},
		{name: "CREATING clears", row: stoppedRow, hear: phases(wsman.WorkspacePhase_CREATING), want: cleared("creating")},
		{name: "INITIALIZING clears", row: stoppedRow, hear: phases(initializing), want: cleared("initializing")},
		{name: "RUNNING clears", row: stoppedRow, hear: phases(running), want: func(r *statustest.Row) {
			cleared("running")(r)
			startAction(r, 0)
		}},
		{name: "INTERRUPTED clears", row: stoppedRow, hear: phases(interrupted), want: cleared("interrupted")},
		{name: "RUNNING clears a stopping time", row: stoppingRow, hear: phases(pending), want: cleared("pending")},
		{name: "UNKNOWN does not clear", row: stoppedRow, hear: phases(unknown)},
		{name: "STOPPED before and after, on a row that was not stopped", hear: phases(stopped, pending, stopped), want: func(r *statustest.Row) {
			r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(2), heardAt(2)
			stopActions(r, 0)
		}},
		{name: "STOPPED before and after, on a row that was stopped", row: stoppedRow, hear: phases(stopped, pending, stopping, stopped), want: func(r *statustest.Row) {
			r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(2), heardAt(3)
			stopActions(r, 3)
		}},
		{name: "STOPPED and back at once stops and clears", hear: phases(stopped, pending), want: func(r *statustest.Row) {
			r.Phase = "pending"
			stopActions(r, 0)
		}},
	})
}

func TestStopping(t *testing.T) {
	runAll(t, []rule{
		{name: "counts from the first", hear: phases(stopping, unknown, stopping), want: func(r *statustest.Row) {
			r.Phase, r.Stopping = "stopping", heardAt(0)
		}},
		{name: "keeps the time of the row", row: func(r *statustest.Row) { r.Stopping = heardAt(-9) }, hear: phases(stopping), want: phase("stopping")},
		{
			name: "leaves phase and times of a stopped row, the rest applies", row: stoppedRow,
			hear: says(func(s *wsman.WorkspaceStatus) { s.Phase, s.Message = stopping, "late" }),
			want: func(r *statustest.Row) { r.Status["message"] = "late" },
		},
		{
			name: "leaves a stopped row without times alone", row: phase("stopped"),
			hear: phases(stopping),
		},
		{
			name: "after STOPPED is as good as not heard", hear: phases(stopped, stopping),
			want: func(r *statustest.Row) {
				r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(0), heardAt(0)
				stopActions(r, 0)
			},
		},
	})
}

func TestStopped(t *testing.T) {
	runAll(t, []rule{
		{name: "after STOPPING", hear: phases(stopping, stopped, stopped), want: func(r *statustest.Row) {
			r.Phase, r.Stopping, r.Stopped = "stopped", heardAt(0), heardAt(1)
			stopActions(r, 1)
		}},
		{name: "keeps the stopping time of the row", row: func(r *statustest.Row) { r.Stopping = heardAt(-9) }, hear: phases(stopped), want: func(r *statustest.Row) {
			r.Phase, r.Stopped = "stopped", heardAt(0)
			stopActions(r, 0)
		}},
		{name: "a second time changes nothing", row: stoppedRow, hear: phases(stopped, stopped)},
		{name: "fills in the times of a stopped row without any", row: phase("stopped"), hear: phases(stopping, stopped), want: func(r *statustest.Row) {
			r.Stopping, r.Stopped = heardAt(1), heardAt(1)
			stopActions(r, 1)
		}},
	})
}

// What is logged and counted is whether an instance came back, within the
// updates themselves; what the row was is for the store to see.
func TestRevived(t *testing.T) {
	for _, test := range []struct {
		name            string
		heard           []wsman.WorkspacePhase
		cleared, revive bool
	}{
		{name: "only phases before STOPPING", heard: []wsman.WorkspacePhase{pending, running}, cleared: true},
		{name: "only a stop", heard: []wsman.WorkspacePhase{stopping, stopped}},
		{name: "UNKNOWN after a stop", heard: []wsman.WorkspacePhase{stopped, unknown}},
		{name: "back after STOPPING", heard: []wsman.WorkspacePhase{stopping, running}, cleared: true, revive: true},
		{name: "back after STOPPED, and stopped again", heard: []wsman.WorkspacePhase{stopped, interrupted, stopped}, cleared: true, revive: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var h history
			for i, phase := range test.heard {
				s := creating()
				s.StatusVersion, s.Phase = uint64(i+1), phase
				h = append(h, s)
			}
			rung := h.fold(t, status.Rules{}, 0, len(h), func(int) int { return 0 }).Rungs()[0]
			if rung.Cleared != test.cleared || rung.Revived != test.revive {
				t.Fatalf("cleared %t, revived %t", rung.Cleared, rung.Revived)
			}
		})
	}
}

// The smallest history that once stopped a running instance anew: the row has
// seen both the STOPPED and the return.
func TestLongHistoryDoesNotStopAnew(t *testing.T) {
	h := numbered(append([]wsman.WorkspacePhase{stopped, running}, slices.Repeat([]wsman.WorkspacePhase{unknown}, maxSteps)...))
	row := creatingRow()
	stoppedRow(row)
	row.Version = 0
	h[:2].inTurn(row, status.Rules{})
	if diff := h.folds(t, row, status.Rules{}, func(n int) int { return n - 1 }); diff != "" {
		t.Fatal(diff)
	}
}

// numbered gives statuses of these phases at versions 1, 2 and so on.
func numbered(phases []wsman.WorkspacePhase) (h history) {
	for i, phase := range phases {
		s := creating()
		s.StatusVersion, s.Phase = uint64(i+1), phase
		h = append(h, s)
	}
	return h
}
