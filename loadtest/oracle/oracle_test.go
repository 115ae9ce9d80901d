package oracle

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

var (
	rules = Rules{Cluster: "here", Installation: "home"}
	begin = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	until = begin.Add(time.Hour)
)

// play gives what is sent of a scenario, one update a second, and the start.
func play(t *testing.T, name string) (Start, []Sent) {
	t.Helper()
	lib, err := script.NewLibrary(1)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(lib.Plain[:1], lib.Short[:1], lib.Odd)
	i := slices.IndexFunc(all, func(s *script.Script) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no scenario %q", name)
	}
	id := script.NewIdentity(1, 1)
	var sent []Sent
	for n := range all[i].Steps {
		step := &all[i].Steps[n]
		sent = append(sent, Sent{At: second(n), Status: step.Frame.Decode(&id, step.Version(&id))})
	}
	start := Start{Row: &Row{Region: "here", Phase: "preparing", Status: Status{Phase: "preparing"}}}
	if all[i].Type == script.Prebuild {
		start.Prebuild = &PrebuildRow{State: "queued"}
	}
	return start, sent
}

func second(n int) time.Time { return begin.Add(time.Duration(n) * time.Second) }

func TestLifecycle(t *testing.T) {
	start, sent := play(t, "lifecycle")
	o := Expect(rules, start, sent)
	r := o.Row
	if r.Phase != "stopped" || r.Status.Phase != "stopped" || r.Version != sent[7].Status.StatusVersion || r.Status.Version != r.Version {
		t.Errorf("row %+v", r)
	}
	if r.Deployed != second(2) || r.Started != second(4) || r.Stopping != second(6) || r.Stopped != second(7) {
		t.Errorf("times %v %v %v %v", r.Deployed, r.Started, r.Stopping, r.Stopped)
	}
	if *r.Status.Conditions.PullingImages || !*r.Status.Conditions.Deployed || !*r.Status.Conditions.StoppedByRequest {
		t.Errorf("conditions %+v", r.Status.Conditions)
	}
	if len(r.Status.ExposedPorts) != 0 || r.Status.ExposedPorts == nil || r.Status.OwnerToken == "" || !o.StoppedOnce {
		t.Errorf("status %+v, stopped %v", r.Status, o.StoppedOnce)
	}
	ports := Expect(rules, start, sent[:6]).Row.Status
	if len(ports.ExposedPorts) != 2 || ports.ExposedPorts[0].Visibility != "private" || ports.ExposedPorts[1].Protocol != "https" {
		t.Errorf("ports %+v", ports.ExposedPorts)
	}
	if a := ports.Conditions.FirstUserActivity; len(a) != len("2026-03-01T09:00:00.000Z") || !strings.HasSuffix(a, "Z") {
		t.Errorf("firstUserActivity %q", a)
	}
	if slices.Contains(o.Applied, false) {
		t.Errorf("applied %v", o.Applied)
	}
}

func TestScenarios(t *testing.T) {
	for _, tc := range []struct {
		name  string
		check func(o Outcome, n int) bool
	}{
		{"repeats", func(o Outcome, n int) bool {
			return count(o.Applied) == 8 && o.HighestVersion > o.LowestVersion
		}},
		{"stale", func(o Outcome, n int) bool { return count(o.Applied) == 8 && o.Row.Phase == "stopped" }},
		{"interrupted", func(o Outcome, n int) bool { return o.Row.Started == second(4) && o.Row.Stopped == second(n-1) }},
		{"back", func(o Outcome, n int) bool {
			return o.Row.Phase == "stopped" && o.Row.Stopping == second(9) && o.Row.Stopped == second(10) && o.Row.Started == second(4)
		}},
		{"back-to-stay", func(o Outcome, n int) bool {
			return o.Row.Phase == "interrupted" && o.Row.Stopping.IsZero() && o.Row.Stopped.IsZero() && o.StoppedOnce
		}},
		{"unknown-phase", func(o Outcome, n int) bool { return o.Row.Phase == "stopped" && count(o.Applied) == n }},
		{"late-stopping", func(o Outcome, n int) bool {
			return o.Row.Phase == "stopped" && o.Row.Stopped == second(7) && strings.Contains(o.Row.Status.Message, "again")
		}},
		{"skips-stopping", func(o Outcome, n int) bool { return o.Row.Stopping == second(5) && o.Row.Stopped == second(5) }},
		{"failed", func(o Outcome, n int) bool { return o.Row.Status.Conditions.Failed != "" }},
		{"timeout", func(o Outcome, n int) bool { return o.Row.Status.Conditions.Timeout != "" }},
		{"metrics", func(o Outcome, n int) bool {
			m := o.Metrics.InitializerMetrics
			return o.Metrics.Image.TotalSize == o.Row.Status.Metrics.Image.TotalSize+77 &&
				m.Git.Duration > 0 && m.Git.Size > 0 && m.Backup.Size == 0 && m.Prebuild.Size == 4096
		}},
		{"moved", func(o Outcome, n int) bool {
			s := o.Row.Status
			return strings.HasPrefix(s.PodName, "ws-") && s.OwnerToken == "" && s.Timeout == "" && o.Row.IDEURL == ""
		}},
		{"unversioned", func(o Outcome, n int) bool { return count(o.Applied) == n-1 && o.Row.Version > 0 }},
		{"nul", func(o Outcome, n int) bool {
			return o.Row.Status.Message == "before\uFFFDafter" && o.Row.Status.Conditions.Timeout == "\uFFFD"
		}},
		{"invalid", func(o Outcome, n int) bool { return count(o.Applied) == 8 && o.Row.Phase == "stopped" }},
		{"prebuild", says("available", "building", "available")},
		{"prebuild-late-snapshot", says("available", "building", "available")},
		{"prebuild-interrupted", says("available", "building", "queued", "building", "available")},
		{"prebuild-failed", says("failed", "failed")},
		{"prebuild-timeout", says("timeout", "building", "timeout")},
		{"prebuild-aborted", says("aborted", "building", "aborted")},
		{"prebuild-task-failed", says("available", "building", "available")},
		{"prebuild-undecided", says("building", "building")},
	} {
		start, sent := play(t, tc.name)
		if o := Expect(rules, start, sent); !tc.check(o, len(sent)) {
			t.Errorf("%s: row %+v, prebuild %+v %v %v, applied %v", tc.name, o.Row, o.Prebuild, o.Prebuilds, o.Headless, o.Applied)
		}
	}
}

func says(last string, states ...string) func(Outcome, int) bool {
	return func(o Outcome, _ int) bool { return o.Prebuild.State == last && slices.Equal(o.Prebuilds, states) }
}

func count(applied []bool) (n int) {
	for _, a := range applied {
		if a {
			n++
		}
	}
	return n
}

func TestDecisivePhaseStopped(t *testing.T) {
	r := rules
	r.DecisiveStopped = true
	start, sent := play(t, "prebuild")
	if o := Expect(r, start, sent[:7]); o.Prebuild.State != "building" {
		t.Errorf("STOPPING makes it %+v", o.Prebuild)
	}
	if o := Expect(r, start, sent); o.Prebuild.State != "available" || o.Headless[1] != "finish-success" {
		t.Errorf("STOPPED makes it %+v", o.Prebuild)
	}
	// The late one speaks after the decision: building again, but for ever.
	start, sent = play(t, "prebuild-undecided")
	if o := Expect(r, start, sent); o.Prebuild.State != "building" {
		t.Errorf("undecided: %+v", o.Prebuild)
	}
}

func TestWhoseInstance(t *testing.T) {
	for region, applied := range map[string]bool{"here": true, "": true, "home": true, "there": false} {
		start, sent := play(t, "lifecycle")
		start.Row.Region = region
		if o := Expect(rules, start, sent); (o.Row.Phase == "stopped") != applied {
			t.Errorf("region %q: %+v", region, o.Row)
		}
	}
	_, sent := play(t, "lifecycle")
	if o := Expect(rules, Start{}, sent); o.Row != nil || count(o.Applied) != 0 {
		t.Errorf("an unknown instance has %+v", o)
	}
}

// actual is what the tables would hold if all went well.
func actual(o Outcome) Actual {
	row := *o.Row
	metrics := o.Metrics
	a := Actual{Row: &row, Metrics: &metrics}
	if o.Prebuild != nil {
		p := *o.Prebuild
		a.Prebuild = &p
	}
	return a
}

func TestEachFaultIsFound(t *testing.T) {
	for _, tc := range []struct {
		scenario, field string
		kind            Kind
		spoil           func(*Actual)
		cut             bool // a cut would explain it
	}{
		{"lifecycle", "row", Lost, func(a *Actual) { a.Row = nil }, false},
		{"lifecycle", "status_version", Lost, func(a *Actual) { a.Row.Version-- }, false},
		{"lifecycle", "status_version", Regressed, func(a *Actual) { a.Row.Version++ }, false},
		{"lifecycle", "status.version", Wrong, func(a *Actual) { a.Row.Status.Version++ }, false},
		{"lifecycle", "phase", Regressed, func(a *Actual) { a.Row.Phase = "running" }, false},
		{"back-to-stay", "phase", Wrong, func(a *Actual) { a.Row.Phase = "stopped" }, false},
		{"lifecycle", "status.phase", Wrong, func(a *Actual) { a.Row.Status.Phase = "running" }, false},
		{"lifecycle", "region", Wrong, func(a *Actual) { a.Row.Region = "there" }, false},
		{"lifecycle", "started_time", Wrong, func(a *Actual) { a.Row.Started = time.Time{} }, true},
		{"lifecycle", "started_time", Wrong, func(a *Actual) { a.Row.Started = second(3) }, false},
		{"lifecycle", "stopped_time", Wrong, func(a *Actual) { a.Row.Stopped = until.Add(time.Second) }, false},
		{"back-to-stay", "stopping_time", Wrong, func(a *Actual) { a.Row.Stopping = second(6) }, false},
		{"lifecycle", "deployed_time", Wrong, func(a *Actual) { a.Row.Deployed = second(1) }, false},
		{"lifecycle", "ide_url", Wrong, func(a *Actual) { a.Row.IDEURL = "" }, false},
		{"lifecycle", "status.message", Wrong, func(a *Actual) { a.Row.Status.Message = "?" }, false},
		{"lifecycle", "status.ownerToken", Wrong, func(a *Actual) { a.Row.Status.OwnerToken = "?" }, false},
		{"moved", "status.nodeName", Wrong, func(a *Actual) { a.Row.Status.NodeName = "another-node" }, false},
		{"lifecycle", "status.exposedPorts", Wrong, func(a *Actual) { a.Row.Status.ExposedPorts = []Port{{Port: 1}} }, false},
		{"lifecycle", "status.exposedPorts", Wrong, func(a *Actual) { a.Row.Status.ExposedPorts = nil }, false},
		{"lifecycle", "status.metrics.image", Wrong, func(a *Actual) { a.Row.Status.Metrics.Image.TotalSize++ }, false},
		{"lifecycle", "metrics.image", Wrong, func(a *Actual) { a.Metrics = nil }, false},
		{"metrics", "metrics.initializerMetrics", Wrong, func(a *Actual) { a.Metrics.InitializerMetrics.Git.Duration = 0 }, false},
		{"failed", "status.conditions.failed", Wrong, func(a *Actual) { a.Row.Status.Conditions.Failed = "" }, true},
		{"lifecycle", "status.conditions.stoppedByRequest", Wrong, func(a *Actual) { a.Row.Status.Conditions.StoppedByRequest = nil }, false},
		{"lifecycle", "status.conditions.neededImageBuild", Wrong, func(a *Actual) { a.Row.Status.Conditions.NeededImageBuild = new(true) }, false},
		{"lifecycle", "tokens", Wrong, func(a *Actual) { a.Tokens = []string{"left"} }, false},
		{"prebuild", "prebuild", Wrong, func(a *Actual) { a.Prebuild = nil }, false},
		{"prebuild", "prebuild.state", Wrong, func(a *Actual) { a.Prebuild.State = "building" }, false},
		{"prebuild", "prebuild.snapshot", Wrong, func(a *Actual) { a.Prebuild.Snapshot = "" }, false},
		{"prebuild-failed", "prebuild.error", Wrong, func(a *Actual) { a.Prebuild.Error = "" }, false},
	} {
		start, sent := play(t, tc.scenario)
		good := actual(Expect(rules, start, sent))
		if d := Compare(rules, start, sent, Exact, good, until); len(d) != 0 {
			t.Fatalf("%s: what is right differs: %v", tc.scenario, d)
		}
		tc.spoil(&good)
		for _, mode := range []Mode{Exact, Latest} {
			if mode == Latest && tc.cut {
				continue
			}
			d := Compare(rules, start, sent, mode, good, until)
			if !slices.ContainsFunc(d, func(d Difference) bool { return d.Field == tc.field && d.Kind == tc.kind }) {
				t.Errorf("%s, %s, mode %d: found %v", tc.scenario, tc.field, mode, d)
			}
		}
	}
}

func TestRepeatsMayRaiseTheVersion(t *testing.T) {
	start, sent := play(t, "repeats")
	o := Expect(rules, start, sent)
	got := actual(o)
	for _, v := range []uint64{o.LowestVersion, o.HighestVersion} {
		got.Row.Version, got.Row.Status.Version = v, v
		if d := Compare(rules, start, sent, Exact, got, until); len(d) != 0 {
			t.Errorf("version %d: %v", v, d)
		}
	}
}

func TestLatestAcceptsWhatACutExplains(t *testing.T) {
	start, sent := play(t, "lifecycle")
	all := Compare
	for from := range sent {
		for to := from; to < len(sent); to++ {
			heard := slices.Concat(sent[:from], sent[to:])
			got := actual(Expect(rules, start, heard))
			if d := all(rules, start, sent, Latest, got, until); len(d) != 0 {
				t.Errorf("without %d to %d: %v", from, to, d)
			}
		}
	}
	// Two cuts.
	heard := []Sent{sent[0], sent[2], sent[4], sent[7]}
	if d := Compare(rules, start, sent, Latest, actual(Expect(rules, start, heard)), until); len(d) != 0 {
		t.Errorf("two cuts: %v", d)
	}
	// Without the last one it is lost, cut or no cut.
	d := Compare(rules, start, sent, Latest, actual(Expect(rules, start, sent[:7])), until)
	if !slices.ContainsFunc(d, func(d Difference) bool { return d.Kind == Lost }) {
		t.Errorf("without the last one: %v", d)
	}
	// And in mode Exact nothing may be missing: here, RUNNING.
	heard = []Sent{sent[0], sent[2], sent[7]}
	if d := Compare(rules, start, sent, Exact, actual(Expect(rules, start, heard)), until); len(d) != 1 || d[0].Field != "started_time" {
		t.Errorf("without RUNNING: %v", d)
	}
}

func TestRepeatIsJudgedByWhatWasHeardLast(t *testing.T) {
	a := func(version uint64, message string) Sent {
		return Sent{At: begin, Status: &wsman.WorkspaceStatus{
			Id:       "8a11b00b-0000-4000-8000-000000000001",
			Metadata: &wsman.WorkspaceMetadata{StartedAt: timestamppb.New(begin)}, Spec: &wsman.WorkspaceSpec{}, Conditions: &wsman.WorkspaceConditions{},
			Phase: wsman.WorkspacePhase_RUNNING, Message: message, StatusVersion: version,
		}}
	}
	start := Start{Row: &Row{Region: "here"}}
	for _, tc := range []struct {
		name    string
		sent    []Sent
		applied string
		message string
	}{
		{"A B A", []Sent{a(1, "A"), a(2, "B"), a(3, "A")}, "yyy", "A"},
		{"a stale A between", []Sent{a(1, "A"), a(2, "B"), a(1, "A"), a(3, "A")}, "yyny", "A"},
		{"a repeat of B after a stale A", []Sent{a(1, "A"), a(2, "B"), a(1, "A"), a(3, "B")}, "yynn", "B"},
		{"unversioned first", []Sent{a(0, "A"), a(0, "B"), a(5, "C"), a(0, "D")}, "yyyn", "C"},
	} {
		o := Expect(rules, start, tc.sent)
		got := ""
		for _, b := range o.Applied {
			got += map[bool]string{true: "y", false: "n"}[b]
		}
		if got != tc.applied || o.Row.Status.Message != tc.message {
			t.Errorf("%s: applied %s, message %s", tc.name, got, o.Row.Status.Message)
		}
	}
}
