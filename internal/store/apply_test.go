package store_test

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
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

// plainRow is a row as the API server makes it.
func plainRow(i int) *statustest.Row {
	return &statustest.Row{
		ID: testID(i), Created: statustest.Epoch.Add(-time.Hour), Phase: "preparing",
		Status: map[string]any{"phase": "preparing", "conditions": map[string]any{"neededImageBuild": true}},
	}
}

// before is a time that no status was heard at.
var before = statustest.Epoch.Add(-10 * time.Minute)

type say = func(*wsman.WorkspaceStatus)

// TestRules holds the row against what is wanted after some statuses, one a
// second at versions 11, 12 and so on, written in turn and folded. The row is at
// version 10.
func TestRules(t *testing.T) {
	at := heardAt
	conditions := func(r *statustest.Row) map[string]any { return r.Status["conditions"].(map[string]any) }
	phase := func(p wsman.WorkspacePhase) say { return func(s *wsman.WorkspaceStatus) { s.Phase = p } }
	stoppedRow := func(r *statustest.Row) { r.Phase, r.Stopping, r.Stopped = "stopped", before, before }
	became := func(p string) func(*statustest.Row) {
		return func(r *statustest.Row) { r.Phase = p }
	}
	type flags struct{ started, stopped, revived, failedKept, stoppingIgnored, firstActivity bool }

	b := newBench(t)
	next := 0
	for _, test := range []struct {
		name string
		row  func(*statustest.Row)
		hear []say
		// want changes what the row is expected to be from the row that
		// pending leaves, in the phase it was in.
		want  func(*statustest.Row)
		flags flags
	}{
		{
			name: "texts and lists overwrite, empty ones too",
			row: func(r *statustest.Row) {
				r.IDEURL = "https://old"
				r.Status["message"], r.Status["timeout"], r.Status["ownerToken"], r.Status["exposedPorts"] = "m", "t", "o", []any{1}
			},
			hear: []say{phase(pending)},
			want: became("pending"),
		},
		{
			name: "what the update says",
			hear: []say{func(s *wsman.WorkspaceStatus) {
				s.Phase, s.Message, s.Spec.Url, s.Spec.Timeout = pending, "m", "https://ide", "30m"
				s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: "o"}
				s.Spec.ExposedPorts = []*wsman.PortSpec{{Port: 3000, Url: "https://3000", Visibility: 1, Protocol: 1}, {Port: 1}}
			}},
			want: func(r *statustest.Row) {
				r.Phase, r.IDEURL = "pending", "https://ide"
				r.Status["message"], r.Status["timeout"], r.Status["ownerToken"] = "m", "30m", "o"
				r.Status["exposedPorts"] = []any{
					map[string]any{"port": 3000, "url": "https://3000", "visibility": "public", "protocol": "https"},
					map[string]any{"port": 1, "url": "", "visibility": "private", "protocol": "http"},
				}
			},
		},
		{
			name: "keys that nobody speaks of survive",
			row: func(r *statustest.Row) {
				r.Status["theirs"] = map[string]any{"a": []any{1}}
				conditions(r)["theirs"] = "kept"
			},
			hear: []say{phase(pending)},
			want: func(r *statustest.Row) {
				r.Phase = "pending"
				r.Status["theirs"] = map[string]any{"a": []any{1}}
				conditions(r)["theirs"] = "kept"
			},
		},
		{
			name: "a document that is none, and conditions that are none",
			row:  func(r *statustest.Row) { r.Status = map[string]any{"conditions": []any{1}} },
			hear: []say{phase(pending)},
			want: func(r *statustest.Row) { r.Phase = "pending"; delete(conditions(r), "neededImageBuild") },
		},
		{
			name: "conditions are set and unset; failed is never unset",
			row: func(r *statustest.Row) {
				for _, key := range status.SpokenConditions() {
					conditions(r)[key] = true
				}
				conditions(r)["failed"] = "failed"
			},
			hear: []say{func(s *wsman.WorkspaceStatus) {
				s.Phase, s.Conditions.Deployed, s.Conditions.PullingImages = pending, wsman.WorkspaceConditionBool_TRUE, wsman.WorkspaceConditionBool_FALSE
			}},
			want: func(r *statustest.Row) {
				r.Phase, r.Deployed = "pending", at(0)
				conditions(r)["deployed"], conditions(r)["pullingImages"], conditions(r)["failed"] = true, false, "failed"
			},
			flags: flags{failedKept: true},
		},
		{
			name: "a new failure overwrites",
			row:  func(r *statustest.Row) { conditions(r)["failed"] = "failed" },
			hear: []say{func(s *wsman.WorkspaceStatus) { s.Phase, s.Conditions.Failed = pending, "anew" }, phase(pending)},
			want: func(r *statustest.Row) { r.Phase = "pending"; conditions(r)["failed"] = "anew" },
		},
		{
			name: "first values are kept",
			hear: []say{
				func(s *wsman.WorkspaceStatus) {
					s.Phase, s.Runtime = pending, &wsman.WorkspaceRuntimeInfo{NodeName: "node", PodName: "pod"}
					s.Metadata.Metrics = &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 7}}
				},
				func(s *wsman.WorkspaceStatus) {
					s.Phase, s.Runtime = pending, &wsman.WorkspaceRuntimeInfo{NodeName: "node 2", NodeIp: "ip"}
					s.Metadata.Metrics = &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 8, WorkspaceImageSize: 9}}
				},
			},
			want: func(r *statustest.Row) {
				r.Phase = "pending"
				r.Status["nodeName"], r.Status["podName"], r.Status["nodeIp"] = "node", "pod", "ip"
				r.Status["metrics"] = map[string]any{"image": map[string]any{"totalSize": 7, "workspaceImageSize": 9}}
				r.Metrics = map[string]any{"image": map[string]any{"totalSize": 8, "workspaceImageSize": 9}}
			},
		},
		{
			name: "empty and zero values are no first values",
			row: func(r *statustest.Row) {
				r.Status["nodeName"], r.Status["metrics"] = "", map[string]any{"image": map[string]any{"totalSize": 0}, "theirs": 1}
			},
			hear: []say{func(s *wsman.WorkspaceStatus) {
				s.Phase, s.Runtime = pending, &wsman.WorkspaceRuntimeInfo{NodeName: "node"}
				s.Metadata.Metrics = &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 8}}
			}},
			want: func(r *statustest.Row) {
				r.Phase = "pending"
				r.Status["nodeName"], r.Status["metrics"] = "node", map[string]any{"image": map[string]any{"totalSize": 8}, "theirs": 1}
				r.Metrics = map[string]any{"image": map[string]any{"totalSize": 8}}
			},
		},
		{
			name: "metrics are merged, arrays replace, absent values never overwrite",
			row: func(r *statustest.Row) {
				r.Metrics = map[string]any{
					"image":              map[string]any{"totalSize": 1, "workspaceImageSize": 2},
					"initializerMetrics": map[string]any{"git": map[string]any{"duration": 1, "size": 2}, "theirs": []any{1, 2}},
				}
			},
			hear: []say{func(s *wsman.WorkspaceStatus) {
				s.Phase = pending
				s.InitializerMetrics = &wsman.InitializerMetrics{Git: &wsman.InitializerMetric{Duration: durationpb.New(1500 * time.Microsecond)}}
			}},
			want: func(r *statustest.Row) {
				r.Phase = "pending"
				r.Metrics = map[string]any{
					"image":              map[string]any{"totalSize": 1, "workspaceImageSize": 2},
					"initializerMetrics": map[string]any{"git": map[string]any{"duration": 1.5, "size": 2}, "theirs": []any{1, 2}},
				}
			},
		},
		{name: "UNKNOWN leaves the phase", row: became("initializing"), hear: []say{phase(unknown)}, want: became("initializing")},
		{
			name: "RUNNING starts it once",
			hear: []say{phase(running), phase(interrupted), phase(running)},
			want: func(r *statustest.Row) {
				r.Phase, r.Started = "running", at(0)
				r.Lifecycle = []statustest.Event{{MessageID: "bridge-wsrun-" + r.ID.String(), At: at(0)}}
			},
			flags: flags{started: true},
		},
		{name: "RUNNING does not start it again", row: func(r *statustest.Row) { r.Started = before }, hear: []say{phase(running)}, want: func(r *statustest.Row) { r.Phase, r.Started = "running", before }},
		{
			name: "the first activity of the user",
			hear: []say{func(s *wsman.WorkspaceStatus) {
				s.Phase, s.Conditions.FirstUserActivity = initializing, timestamppb.New(at(0))
			}},
			want: func(r *statustest.Row) {
				r.Phase = "initializing"
				conditions(r)["firstUserActivity"] = "2024-03-01T12:00:00.000Z"
			},
			flags: flags{firstActivity: true},
		},
		{name: "a phase before STOPPING clears", row: stoppedRow, hear: []say{phase(interrupted)}, want: became("interrupted"), flags: flags{revived: true}},
		{
			name: "STOPPING", hear: []say{phase(stopping), phase(stopping)},
			want: func(r *statustest.Row) { r.Phase, r.Stopping = "stopping", at(0) },
		},
		{
			name: "STOPPING on a stopped row", row: stoppedRow,
			hear: []say{func(s *wsman.WorkspaceStatus) { s.Phase, s.Message = stopping, "late" }},
			want: func(r *statustest.Row) { stoppedRow(r); r.Status["message"] = "late" }, flags: flags{stoppingIgnored: true},
		},
		{
			name: "STOPPED several times over", hear: []say{phase(stopping), phase(stopped), phase(stopped)},
			want: func(r *statustest.Row) {
				r.Phase, r.Stopping, r.Stopped = "stopped", at(0), at(1)
				r.Tokens = []string{"another"}
				r.Lifecycle = []statustest.Event{{MessageID: "bridge-wsstopped-" + r.ID.String(), At: at(1)}}
			},
			flags: flags{stopped: true},
		},
		{
			name: "STOPPED on a stopped row", row: stoppedRow,
			hear: []say{phase(stopped)}, want: stoppedRow,
		},
		{
			name: "stopped, back and stopped again", row: stoppedRow,
			hear: []say{phase(pending), phase(stopped)},
			want: func(r *statustest.Row) {
				r.Phase, r.Stopping, r.Stopped = "stopped", at(1), at(1)
				r.Tokens = []string{"another"}
				r.Lifecycle = []statustest.Event{{MessageID: "bridge-wsstopped-" + r.ID.String(), At: at(1)}}
			},
			flags: flags{stopped: true, revived: true},
		},
		{name: "a swept row hears its version again", row: func(r *statustest.Row) { stoppedRow(r); r.Swept, r.Version = true, 11 }, hear: []say{phase(pending)}, want: became("pending"), flags: flags{revived: true}},
	} {
		for _, how := range []string{"in turn", "folded"} {
			t.Run(test.name+", "+how, func(t *testing.T) {
				next++
				row := plainRow(next)
				row.Version, row.Phase, row.Tokens = 10, "preparing", []string{row.ID.String() + "-default", "another"}
				if test.row != nil {
					test.row(row)
				}
				b.insert(row)
				var changes []*status.Change
				for i, hear := range test.hear {
					changes = append(changes, change(t, statusOf(row.ID, uint64(11+i), hear), at(i)))
				}
				if how == "folded" {
					changes = []*status.Change{fold(changes...)}
				}
				var got flags
				for _, c := range changes {
					commit := b.apply(c)
					r := commit.Results[0]
					if r.Outcome != store.Applied || r.Stored != c.Version || r.OwnerID != ownerOf(row.ID) || r.WorkspaceID != workspaceOf(row.ID) || !r.CreatedAt.Equal(row.Created) {
						t.Errorf("%+v", r)
					}
					if r.Started && (!r.StartedAt.Equal(at(0)) || !r.NeededImageBuild || r.Region != cluster) {
						t.Errorf("started: %+v", r)
					}
					if r.FirstActivity && !r.FirstActivityAt.Equal(at(0)) {
						t.Errorf("first activity: %+v", r)
					}
					now := flags{r.Started, r.Stopped, r.Revived, r.FailedKept, r.StoppingIgnored, r.FirstActivity}
					got = flags{
						got.started || now.started, got.stopped || now.stopped, got.revived || now.revived,
						got.failedKept || now.failedKept, got.stoppingIgnored || now.stoppingIgnored, got.firstActivity || now.firstActivity,
					}
					if want := boolInt(now.started) + boolInt(now.stopped); commit.Lifecycle != want {
						t.Errorf("%d lifecycle events, want %d", commit.Lifecycle, want)
					}
				}
				if test.name == "a new failure overwrites" && how == "in turn" {
					got.failedKept = false // the second status has none
				}
				if got != test.flags {
					t.Errorf("flags %+v, want %+v", got, test.flags)
				}
				version := uint64(10 + len(test.hear))
				want := &statustest.Row{
					ID: row.ID, Version: version, Tokens: row.Tokens,
					Status: map[string]any{
						"version": version, "message": "", "timeout": "", "ownerToken": "", "exposedPorts": []any{},
						"conditions": map[string]any{"neededImageBuild": true, "pullingImages": nil},
					},
				}
				delete(conditions(want), "pullingImages")
				test.want(want)
				want.Status["phase"] = want.Phase
				b.same(test.name, b.row(row.ID), want)
			})
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestOutcomes(t *testing.T) {
	b := newBench(t)
	other := b.raise(shard.Whole("us02"), "other")
	unversioned := plainRow(7)
	unversioned.Version = 0
	regions := map[int]any{1: cluster, 2: "", 3: nil, 4: installation, 5: "us02", 7: cluster}
	rows := map[int]*statustest.Row{}
	for i := range regions {
		row := plainRow(i)
		row.Version = 10
		if i == 7 {
			row = unversioned
		}
		rows[i] = row
		b.insert(row)
		b.exec(`UPDATE workspace_instance SET region = $2 WHERE id = $1`, [16]byte(row.ID), regions[i])
	}
	said := func(i int, version uint64) *status.Change {
		return change(t, statusOf(testID(i), version, inPhase(running)), statustest.Epoch)
	}
	commit, err := b.Apply(t.Context(), store.Batch{
		Fences: []shard.Fence{other, b.fence, {Shard: shard.Whole("eu03"), Epoch: 1, Owner: owner}, {Shard: b.fence.Shard, Epoch: b.fence.Epoch, Owner: "impostor"}},
		Lane:   3, Seq: 100,
		Entries: []store.Entry{
			{Fence: 1, Change: said(7, 0)},
			{Fence: 1, Change: said(1, 11)},
			{Fence: 1, Change: said(2, 11)},
			{Fence: 0, Change: said(3, 11)},
			{Fence: 0, Change: said(4, 10)},
			{Fence: 1, Change: said(5, 11)},
			{Fence: 1, Change: said(6, 11)},
			{Fence: 2, Change: said(8, 11)},
			{Fence: 3, Change: said(9, 11)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var outcomes []store.Outcome
	for _, r := range commit.Results {
		outcomes = append(outcomes, r.Outcome)
	}
	want := []store.Outcome{store.Applied, store.Applied, store.Applied, store.Applied, store.Stale, store.Foreign, store.Unknown, store.Refused, store.Refused}
	if !reflect.DeepEqual(outcomes, want) {
		t.Fatalf("%v, want %v", outcomes, want)
	}
	if stale := commit.Results[4]; stale.Stored != 10 || stale.WorkspaceID != workspaceOf(testID(4)) || stale.Started {
		t.Errorf("%+v", stale)
	}
	if foreign := commit.Results[5]; foreign.Region != "us02" || foreign.Started {
		t.Errorf("%+v", foreign)
	}
	for _, i := range []int{4, 5} {
		b.same("untouched", b.row(testID(i)), rows[i])
	}
	if len(commit.Outbox) != 2 || commit.Outbox[0].Ref.Shard != other.Shard || commit.Outbox[1].Ref != (store.OutboxRef{Shard: b.fence.Shard, Epoch: b.fence.Epoch, Owner: owner, Lane: 3, Seq: 100}) {
		t.Errorf("%+v", commit.Outbox)
	}

	// The same once more: an unversioned status that says nothing new changes
	// nothing, and what seemed to fail finds itself stale at its own version.
	again := b.apply(said(7, 0), said(1, 11)).Results
	if again[0].Outcome != store.Unchanged || again[1].Outcome != store.Stale || again[1].Stored != 11 {
		t.Errorf("%+v", again)
	}
	// Once the row has a version, one without it is stale.
	b.apply(said(7, 1))
	if got := b.apply(said(7, 0)).Results[0]; got.Outcome != store.Stale {
		t.Errorf("%+v", got)
	}
}

func TestBatchesThatMakeNoSense(t *testing.T) {
	b := newBench(t)
	c := change(t, statusOf(testID(1), 11), statustest.Epoch)
	twice := b.batch(c, c)
	if _, err := b.Apply(t.Context(), twice); err == nil {
		t.Error("an instance may be in a batch twice")
	}
	unclaimed := b.batch(c)
	unclaimed.Fences = nil
	if _, err := b.Apply(t.Context(), unclaimed); err == nil {
		t.Error("an entry may claim no fence")
	}
	if commit, err := b.Apply(t.Context(), store.Batch{}); err != nil || len(commit.Results) > 0 {
		t.Errorf("%+v, %v", commit, err)
	}
}

// TestPrebuilds is what becomes of a prebuild, and what is told of it. Its
// version speaks of the instance at version 10, unless the test says otherwise.
func TestPrebuilds(t *testing.T) {
	older, newer := testID(1_000_000), testID(2_000_000)
	decided := func(set func(*wsman.WorkspaceConditions)) say {
		return func(s *wsman.WorkspaceStatus) { s.Phase = stopping; set(s.Conditions) }
	}
	in := func(p wsman.WorkspacePhase) say { return func(s *wsman.WorkspaceStatus) { s.Phase = p } }
	succeeds := decided(func(c *wsman.WorkspaceConditions) { c.Snapshot = "snap" })
	timesOut := decided(func(c *wsman.WorkspaceConditions) { c.Timeout = "late" })

	b := newBench(t)
	next := 0
	for _, test := range []struct {
		name      string
		prebuild  statustest.Prebuild // zero: there is none
		rules     status.Rules
		hear      []say
		state     string
		error     string
		snapshot  string
		outcome   store.PrebuildOutcome
		headless  string
		completed bool
	}{
		{name: "PENDING", prebuild: statustest.Prebuild{State: "building"}, hear: []say{in(pending)}, state: "queued", outcome: store.PrebuildChanged, headless: "started"},
		{name: "UNKNOWN", prebuild: statustest.Prebuild{State: "building"}, hear: []say{in(unknown)}, state: "queued", outcome: store.PrebuildChanged, headless: "started"},
		{name: "INTERRUPTED", prebuild: statustest.Prebuild{State: "building"}, hear: []say{in(interrupted)}, state: "queued", outcome: store.PrebuildChanged, headless: "started"},
		{name: "RUNNING", prebuild: statustest.Prebuild{State: "queued"}, hear: []say{in(running)}, state: "building", outcome: store.PrebuildChanged, headless: "started"},
		{name: "RUNNING again", prebuild: statustest.Prebuild{State: "building", Error: "e"}, hear: []say{in(running)}, state: "building", error: "e", outcome: store.PrebuildUnchanged},
		{name: "timed out", prebuild: statustest.Prebuild{State: "building", Snapshot: "s"}, hear: []say{decided(func(c *wsman.WorkspaceConditions) { c.Timeout, c.Failed = "late", "f" })}, state: "timeout", error: "late", snapshot: "s", outcome: store.PrebuildChanged, headless: "aborted-timeout", completed: true},
		{name: "failed", prebuild: statustest.Prebuild{State: "building"}, hear: []say{decided(func(c *wsman.WorkspaceConditions) { c.Failed, c.Snapshot = "f", "s" })}, state: "failed", error: "f", outcome: store.PrebuildChanged, headless: "failed", completed: true},
		{name: "stopped by request", prebuild: statustest.Prebuild{State: "building"}, hear: []say{decided(func(c *wsman.WorkspaceConditions) {
			c.StoppedByRequest, c.HeadlessTaskFailed = wsman.WorkspaceConditionBool_TRUE, "h"
		})}, state: "aborted", error: "Cancelled", outcome: store.PrebuildChanged, headless: "aborted", completed: true},
		{name: "its task failed", prebuild: statustest.Prebuild{State: "building"}, hear: []say{decided(func(c *wsman.WorkspaceConditions) { c.HeadlessTaskFailed, c.Snapshot = "h", "s" })}, state: "available", error: "h", snapshot: "s", outcome: store.PrebuildChanged, headless: "finish-fail", completed: true},
		{name: "succeeded", prebuild: statustest.Prebuild{State: "building", Error: "e"}, hear: []say{succeeds}, state: "available", snapshot: "snap", outcome: store.PrebuildChanged, headless: "finish-success", completed: true},
		{name: "decided later", rules: status.Rules{DecidedWhenStopped: true}, prebuild: statustest.Prebuild{State: "queued"}, hear: []say{timesOut}, state: "building", outcome: store.PrebuildChanged, headless: "started"},
		{name: "decided later, then", rules: status.Rules{DecidedWhenStopped: true}, prebuild: statustest.Prebuild{State: "queued"}, hear: []say{func(s *wsman.WorkspaceStatus) { s.Phase, s.Conditions.Timeout = stopped, "late" }}, state: "timeout", error: "late", outcome: store.PrebuildChanged, headless: "aborted-timeout", completed: true},
		{name: "the first end stays", prebuild: statustest.Prebuild{State: "queued"}, hear: []say{in(running), timesOut, succeeds}, state: "timeout", error: "late", outcome: store.PrebuildChanged, headless: "aborted-timeout", completed: true},
		{name: "an end stays", prebuild: statustest.Prebuild{State: "timeout", Error: "e"}, hear: []say{succeeds}, state: "timeout", error: "e", outcome: store.PrebuildUnchanged},
		{name: "an end may say more", prebuild: statustest.Prebuild{State: "timeout", Error: "e"}, hear: []say{timesOut}, state: "timeout", error: "late", outcome: store.PrebuildChanged, headless: "aborted-timeout"},
		{name: "stale by its own version", prebuild: statustest.Prebuild{State: "queued", Version: 99}, hear: []say{in(running)}, state: "queued", outcome: store.PrebuildStale},
		{name: "of an older instance", prebuild: statustest.Prebuild{State: "failed", Version: 99, Instance: older, InstanceCreated: before.Add(-24 * time.Hour)}, hear: []say{in(running)}, state: "building", outcome: store.PrebuildChanged, headless: "started"},
		{name: "of a newer instance", prebuild: statustest.Prebuild{State: "queued", Version: 1, Instance: newer, InstanceCreated: before.Add(24 * time.Hour)}, hear: []say{in(running)}, state: "queued", outcome: store.PrebuildOlder},
		{name: "none", hear: []say{in(running)}, outcome: store.PrebuildMissing},
	} {
		t.Run(test.name, func(t *testing.T) {
			next++
			row := plainRow(next)
			row.Version = 10
			if p := test.prebuild; p.State != "" {
				if p.Instance == (status.InstanceID{}) {
					p.Instance, p.InstanceCreated = row.ID, row.Created
				}
				if p.Version == 0 {
					p.Version = 10
				}
				row.Prebuild = &p
			}
			b.insert(row)
			var changes []*status.Change
			for i, hear := range test.hear {
				s := statusOf(row.ID, uint64(11+i), hear)
				s.Spec.Type = wsman.WorkspaceType_PREBUILD
				changes = append(changes, change(t, s, heardAt(i), test.rules))
			}
			commit := b.apply(fold(changes...))
			got := commit.Results[0].Prebuild
			if got == nil || got.Outcome != test.outcome || got.Completed != test.completed {
				t.Fatalf("%+v", got)
			}
			told := commit.Outbox[0].Events
			if test.outcome == store.PrebuildChanged {
				wanted := event.Prebuild{Status: test.state, PrebuildID: status.InstanceID(prebuildOf(row.ID)).String(), WorkspaceID: workspaceOf(row.ID), ProjectID: "project"}
				if got.Headless != test.headless || got.Prebuild != wanted || len(told.Headless) != 1 || told.Headless[0] != (event.Headless{Type: test.headless, WorkspaceID: workspaceOf(row.ID)}) || told.Prebuilds[0] != wanted {
					t.Errorf("%+v tells %+v", got, told)
				}
			} else if len(told.Prebuilds)+len(told.Headless) > 0 {
				t.Errorf("tells %+v", told)
			}
			if test.state == "" {
				return
			}
			after := b.row(row.ID).Prebuild
			if after.State != test.state || after.Error != test.error || after.Snapshot != test.snapshot {
				t.Errorf("%+v", after)
			}
			switch test.outcome {
			case store.PrebuildChanged, store.PrebuildUnchanged:
				if after.Version != changes[0].Version || after.Instance != row.ID || !after.InstanceCreated.Equal(row.Created) {
					t.Errorf("speaks of version %d of %s", after.Version, after.Instance)
				}
			}
		})
	}
}

// Of two instances of one workspace in a batch, the newer has the word.
func TestTwoInstancesOfOneWorkspace(t *testing.T) {
	b := newBench(t)
	first, second := plainRow(1), plainRow(2)
	second.Created = first.Created.Add(time.Minute)
	second.Prebuild = &statustest.Prebuild{State: "queued"}
	b.insert(first, second)
	b.exec(`UPDATE workspace_instance SET workspace_id = $1`, workspaceOf(second.ID))
	said := func(row *statustest.Row, phase wsman.WorkspacePhase) *status.Change {
		s := statusOf(row.ID, 11, inPhase(phase))
		s.Spec.Type, s.Conditions.Timeout = wsman.WorkspaceType_PREBUILD, "late"
		return change(t, s, statustest.Epoch)
	}
	commit := b.apply(said(second, running), said(first, stopping))
	newer, older := commit.Results[0].Prebuild, commit.Results[1].Prebuild
	if newer.Outcome != store.PrebuildChanged || newer.Status != "building" || older.Outcome != store.PrebuildOlder {
		t.Fatalf("%+v, %+v", newer, older)
	}
	if told := commit.Outbox[0].Events; len(told.Instances) != 2 || len(told.Prebuilds) != 1 {
		t.Fatalf("%+v", told)
	}
	if got := b.row(second.ID).Prebuild; got.State != "building" || got.Instance != second.ID {
		t.Fatalf("%+v", got)
	}
}

// What another owner has written, and skipped as a repeat since, is neither
// written nor told again by one that hears it for the first time.
func TestRepeatOfWhatIsStored(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1))
	said := func(version uint64, with ...func(*wsman.WorkspaceStatus)) *status.Change {
		c := change(t, statusOf(testID(1), version, append([]func(*wsman.WorkspaceStatus){inPhase(running)}, with...)...), statustest.Epoch)
		c.First = true
		return c
	}
	expect := func(what string, c *status.Change, outcome store.Outcome, stored uint64) {
		t.Helper()
		commit := b.apply(c)
		got := commit.Results[0]
		if got.Outcome != outcome || got.Stored != stored || len(commit.Outbox) > 0 != (outcome == store.Applied) {
			t.Errorf("%s: %+v", what, commit)
		}
	}
	expect("the first", said(5), store.Applied, 5)
	row := b.row(testID(1))
	expect("a repeat", said(8), store.Unchanged, 5)
	b.same("a repeat", b.row(testID(1)), row)

	// Nothing of the row differs, yet it says something else.
	snapshot := func(s *wsman.WorkspaceStatus) { s.Conditions.Snapshot = "a snapshot" }
	expect("another status", said(9, snapshot), store.Applied, 9)
	expect("what was said before that", said(10), store.Applied, 10)
	known := said(11)
	known.First = false
	expect("said by one who has compared it", known, store.Applied, 11)

	folded := said(12, snapshot)
	if !folded.Fold(said(13)) {
		t.Fatal("not folded")
	}
	expect("there and back", folded, store.Applied, 13)

	// Others write rows, too: whoever changes the version has told it something.
	b.exec(`UPDATE workspace_instance SET status_version = 14`)
	expect("after another's write", said(15), store.Applied, 15)
	b.exec(`UPDATE workspace_instance SET swept = true`)
	expect("after a sweep", said(16), store.Applied, 16)
	if b.row(testID(1)).Swept {
		t.Error("the row is still marked as swept")
	}
}
