package status_test

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

var (
	decidedStopping = status.Rules{}
	decidedStopped  = status.Rules{DecidedWhenStopped: true}
)

func text(s string) *string { return &s }

// TestPrebuildStep is the table of what a status says of its prebuild; nil
// texts leave their column alone.
func TestPrebuildStep(t *testing.T) {
	none := &wsman.WorkspaceConditions{StoppedByRequest: isEmpty}
	all := &wsman.WorkspaceConditions{Timeout: "t", Failed: "f", StoppedByRequest: isTrue, HeadlessTaskFailed: "h", Snapshot: "s"}

	queued := &status.PrebuildStep{State: "queued", Headless: "started"}
	building := &status.PrebuildStep{State: "building", Headless: "started"}
	for _, test := range []struct {
		name                      string
		phase                     wsman.WorkspacePhase
		conditions                *wsman.WorkspaceConditions
		whenStopping, whenStopped *status.PrebuildStep
	}{
		{"PENDING", pending, all, queued, queued},
		{"CREATING", wsman.WorkspacePhase_CREATING, all, queued, queued},
		{"INITIALIZING", initializing, all, queued, queued},
		{"INTERRUPTED", interrupted, all, queued, queued},
		{"UNKNOWN", unknown, all, queued, queued},
		{"RUNNING", running, all, building, building},
		{"STOPPING without a condition", stopping, none, nil, building},
		{"STOPPED without a condition", stopped, none, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			sayStep(t, decidedStopping, test.phase, test.conditions, test.whenStopping)
			sayStep(t, decidedStopped, test.phase, test.conditions, test.whenStopped)
		})
	}

	for _, test := range []struct {
		name       string
		conditions *wsman.WorkspaceConditions
		want       *status.PrebuildStep
	}{
		{
			"timeout before all others", all,
			&status.PrebuildStep{State: "timeout", Error: text("t"), Headless: "aborted-timeout"},
		},
		{
			"failed before a request",
			&wsman.WorkspaceConditions{Failed: "f", StoppedByRequest: isTrue, HeadlessTaskFailed: "h", Snapshot: "s"},
			&status.PrebuildStep{State: "failed", Error: text("f"), Headless: "failed"},
		},
		{
			"a request before a failed task",
			&wsman.WorkspaceConditions{StoppedByRequest: isTrue, HeadlessTaskFailed: "h", Snapshot: "s"},
			&status.PrebuildStep{State: "aborted", Error: text("Cancelled"), Headless: "aborted"},
		},
		{
			"a failed task before a snapshot",
			&wsman.WorkspaceConditions{HeadlessTaskFailed: "h", Snapshot: "s"},
			&status.PrebuildStep{State: "available", Error: text("h"), Snapshot: text("s"), Headless: "finish-fail"},
		},
		{
			"a failed task without a snapshot",
			&wsman.WorkspaceConditions{HeadlessTaskFailed: "h"},
			&status.PrebuildStep{State: "available", Error: text("h"), Snapshot: text(""), Headless: "finish-fail"},
		},
		{
			"a snapshot",
			&wsman.WorkspaceConditions{Snapshot: "s"},
			&status.PrebuildStep{State: "available", Error: text(""), Snapshot: text("s"), Headless: "finish-success"},
		},
		{
			"a request that is EMPTY is none",
			&wsman.WorkspaceConditions{StoppedByRequest: isEmpty, Snapshot: "s"},
			&status.PrebuildStep{State: "available", Error: text(""), Snapshot: text("s"), Headless: "finish-success"},
		},
		{
			"NUL characters are replaced",
			&wsman.WorkspaceConditions{HeadlessTaskFailed: "\x00", Snapshot: "\x00"},
			&status.PrebuildStep{State: "available", Error: text("\uFFFD"), Snapshot: text("\uFFFD"), Headless: "finish-fail"},
		},
		{"none of these", none, nil},
	} {
		t.Run("decisive: "+test.name, func(t *testing.T) {
			sayStep(t, decidedStopping, stopping, test.conditions, test.want)
			sayStep(t, decidedStopping, stopped, test.conditions, nil)
			sayStep(t, decidedStopped, stopped, test.conditions, test.want)
			sayStep(t, decidedStopped, stopping, test.conditions, building)
		})
	}
}

func sayStep(t *testing.T, rules status.Rules, phase wsman.WorkspacePhase, c *wsman.WorkspaceConditions, want *status.PrebuildStep) {
	t.Helper()
	s := prebuilding()
	s.Phase, s.Conditions = phase, c
	steps := history{s}.change(t, rules, 0).PrebuildSteps()
	if want == nil {
		if len(steps) != 0 {
			t.Errorf("%+v: says %+v, want nothing", rules, steps)
		}
		return
	}
	if len(steps) != 1 {
		t.Fatalf("%+v: says %d things, want 1", rules, len(steps))
	}
	same := func(a, b *string) bool { return a == b || (a != nil && b != nil && *a == *b) }
	got := steps[0]
	if got.State != want.State || got.Headless != want.Headless || got.Version != s.StatusVersion ||
		!same(got.Error, want.Error) || !same(got.Snapshot, want.Snapshot) {
		t.Errorf("%+v: says %+v, want %+v", rules, got, *want)
	}
}

// prebuilding is creating for a prebuild's instance.
func prebuilding() *wsman.WorkspaceStatus {
	s := creating()
	s.Spec.Type = wsman.WorkspaceType_PREBUILD
	return s
}

func TestOnlyPrebuildsSpeakOfPrebuilds(t *testing.T) {
	for kind, want := range map[wsman.WorkspaceType]status.Kind{
		wsman.WorkspaceType_REGULAR:    status.KindRegular,
		wsman.WorkspaceType_PREBUILD:   status.KindPrebuild,
		wsman.WorkspaceType_IMAGEBUILD: status.KindImageBuild,
		99:                             status.KindRegular,
	} {
		s := creating()
		s.Spec.Type = kind
		c := history{s}.change(t, status.Rules{}, 0)
		if c.Kind != want || (len(c.PrebuildSteps()) > 0) != (want == status.KindPrebuild) {
			t.Errorf("%s is %q and says %v", kind, c.Kind, c.PrebuildSteps())
		}
	}
}

func TestTerminalStates(t *testing.T) {
	for state, want := range map[status.PrebuildState]bool{
		status.PrebuildQueued: false, status.PrebuildBuilding: false, "": false,
		status.PrebuildAborted: true, status.PrebuildTimeout: true, status.PrebuildAvailable: true, status.PrebuildFailed: true,
	} {
		if state.Terminal() != want {
			t.Errorf("%q: terminal is not %t", state, want)
		}
	}
}

// TestPrebuildRow is what becomes of the row of a prebuild, whose version
// speaks of the instance at version 10 unless the rule says otherwise.
func TestPrebuildRow(t *testing.T) {
	is := func(state, err, snapshot string) func(*statustest.Row) {
		return func(r *statustest.Row) {
			r.Prebuild = &statustest.Prebuild{State: state, Error: err, Snapshot: snapshot, Version: 10, Instance: r.ID, InstanceCreated: r.Created}
		}
	}
	at := func(version uint64, state, err, snapshot string) func(*statustest.Row) {
		return func(r *statustest.Row) {
			is(state, err, snapshot)(r)
			r.Prebuild.Version = version
		}
	}
	of := func(age time.Duration, version uint64, state string) func(*statustest.Row) {
		return func(r *statustest.Row) {
			r.Prebuild = &statustest.Prebuild{
				State: state, Version: version,
				Instance: status.InstanceID{1}, InstanceCreated: r.Created.Add(-age),
			}
		}
	}
	nobody := func(version uint64, state string) func(*statustest.Row) {
		return func(r *statustest.Row) { r.Prebuild = &statustest.Prebuild{State: state, Version: version} }
	}
	step := func(phase wsman.WorkspacePhase, c *wsman.WorkspaceConditions) func(*wsman.WorkspaceStatus) {
		return func(s *wsman.WorkspaceStatus) {
			s.Spec.Type = wsman.WorkspaceType_PREBUILD
			// Only the prebuild is looked at: the row is kept as it is.
			s.Phase, s.Conditions.Timeout, s.Conditions.Failed = phase, c.GetTimeout(), c.GetFailed()
			s.Conditions.HeadlessTaskFailed, s.Conditions.Snapshot = c.GetHeadlessTaskFailed(), c.GetSnapshot()
		}
	}
	var (
		builds    = step(running, nil)
		queues    = step(pending, nil)
		timesOut  = step(stopping, &wsman.WorkspaceConditions{Timeout: "t"})
		timesOut2 = step(stopping, &wsman.WorkspaceConditions{Timeout: "t2"})
		succeeds  = step(stopping, &wsman.WorkspaceConditions{Snapshot: "s"})
		ends      = step(stopping, nil)
	)
	type steps = []func(*wsman.WorkspaceStatus)
	for _, test := range []struct {
		name string
		row  func(*statustest.Row)
		hear steps
		want func(*statustest.Row)
	}{
		{"none: nothing more", func(*statustest.Row) {}, steps{builds}, func(*statustest.Row) {}},
		{"changes its state", is("queued", "", ""), steps{builds}, at(11, "building", "", "")},
		{"keeps texts that a step does not speak of", is("queued", "e", "s"), steps{builds}, at(11, "building", "e", "s")},
		{"keeps the snapshot when it times out", is("building", "e", "s"), steps{timesOut}, at(11, "timeout", "t", "s")},
		{"a success empties the error", is("building", "e", ""), steps{succeeds}, at(11, "available", "", "s")},
		{"what says nothing does not even move the version", is("building", "e", "s"), steps{ends}, is("building", "e", "s")},
		{"stale by its own version", at(11, "building", "", ""), steps{succeeds}, at(11, "building", "", "")},
		{"version 0 is never stale", at(0, "building", "", ""), steps{succeeds}, at(11, "available", "", "s")},
		{"stays ended", is("timeout", "t", ""), steps{succeeds}, at(11, "timeout", "t", "")},
		{"may end once more in the same way", is("timeout", "t", ""), steps{timesOut2}, at(11, "timeout", "t2", "")},
		{"the first end of several stays", is("queued", "", ""), steps{builds, timesOut, succeeds, builds}, at(14, "timeout", "t", "")},
		{"the first end of several takes its last texts", is("queued", "", ""), steps{timesOut, succeeds, timesOut2, queues}, at(14, "timeout", "t2", "")},
		{"without an end the last counts", is("queued", "", ""), steps{builds, queues, ends}, at(12, "queued", "", "")},
		{"of an older instance is taken over, ended or not", of(time.Hour, 99, "failed"), steps{builds}, at(11, "building", "", "")},
		{"of a newer instance is left alone", of(-time.Hour, 1, "queued"), steps{builds}, of(-time.Hour, 1, "queued")},
		{"of a lower id of the same time is taken over", of(0, 99, "queued"), steps{builds}, at(11, "building", "", "")},
		{"of nobody is taken over", nobody(0, "aborted"), steps{builds}, at(11, "building", "", "")},
		{"of nobody but with a version is this instance's", nobody(11, "queued"), steps{builds}, nobody(11, "queued")},
	} {
		rule{
			name: test.name, row: test.row, hear: test.hear,
		}.runPrebuild(t, test.want)
	}
}

// runPrebuild is run for the prebuild alone.
func (r rule) runPrebuild(t *testing.T, want func(*statustest.Row)) {
	t.Run(r.name, func(t *testing.T) {
		row := creatingRow()
		r.row(row)
		wanted := row.Clone()
		want(wanted)
		var h history
		for i, change := range r.hear {
			s := creating()
			s.StatusVersion += uint64(i + 1)
			change(s)
			h = append(h, s)
		}
		model, folded := row.Clone(), row.Clone()
		h.inTurn(model, status.Rules{})
		statustest.Apply(folded, h.fold(t, status.Rules{}, 0, len(h), func(n int) int { return n - 1 }))
		for how, got := range map[string]*statustest.Row{"model": model, "folded": folded} {
			alone := wanted.Clone()
			if alone.Prebuild = got.Prebuild; statustest.Diff(alone, wanted) != "" {
				t.Errorf("%s: %s", how, statustest.Diff(alone, wanted))
			}
		}
	})
}

// A history so long that its words on the prebuild are not told apart: the
// first end, and the last texts of each, must outlast it.
func TestLongHistoryKeepsTheEnd(t *testing.T) {
	ends := []func(*wsman.WorkspaceConditions, string){
		func(c *wsman.WorkspaceConditions, why string) { c.Timeout = why },
		func(c *wsman.WorkspaceConditions, why string) { c.Snapshot = why },
		func(c *wsman.WorkspaceConditions, why string) { c.Failed = why },
	}
	var h history
	for i := range 3 * maxSteps {
		s := prebuilding()
		s.Phase, s.StatusVersion = stopping, uint64(10+i)
		if i < 2 {
			s.StatusVersion = 0
		}
		ends[i%len(ends)](s.Conditions, heardAt(i).String())
		if i == 3 { // a state that comes only once
			s.Conditions = &wsman.WorkspaceConditions{StoppedByRequest: isTrue}
		}
		h = append(h, s)
	}
	for _, state := range []string{"queued", "timeout", "available", "failed", "aborted"} {
		for seen := range len(h) {
			row := creatingRow()
			row.Version, row.Prebuild = 0, &statustest.Prebuild{State: state, Instance: row.ID, InstanceCreated: row.Created}
			h[:seen].inTurn(row, status.Rules{})
			if diff := h.folds(t, row, status.Rules{}, func(n int) int { return n - 1 }); diff != "" {
				t.Fatalf("%s, %d seen: %s", state, seen, diff)
			}
		}
	}
	if n := len(h.fold(t, status.Rules{}, 0, len(h), func(n int) int { return n / 2 }).PrebuildSteps()); n > maxSteps {
		t.Fatalf("%d steps are kept", n)
	}
	// A row that no unversioned status applies to, and lengths that leave
	// each of the states as the oldest that is kept.
	for n := len(h) - len(ends); n < len(h); n++ {
		row := creatingRow()
		row.Version, row.Prebuild = 5, &statustest.Prebuild{State: "queued"}
		if diff := h[:n].folds(t, row, status.Rules{}, func(n int) int { return n - 1 }); diff != "" {
			t.Fatal(diff)
		}
	}
}
