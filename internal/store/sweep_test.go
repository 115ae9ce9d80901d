package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

func allPhases() []string {
	return []string{"unknown", "preparing", "building", "pending", "creating", "initializing", "running", "interrupted", "stopping"}
}

// lead begins a term of a leader of this name.
func (b *bench) lead(owner string) shard.Fence {
	b.Helper()
	fence, err := b.RaiseLeader(context.Background(), owner)
	if err != nil {
		b.Fatal(err)
	}
	return fence
}

// open is a row that is not stopped.
func open(i int, phase string) *statustest.Row {
	return &statustest.Row{
		ID: testID(i), Created: statustest.Epoch.Add(-time.Hour), Version: uint64(10 + i), Phase: phase,
		Status: map[string]any{"version": 10 + i, "phase": phase, "nodeName": "node-1", "message": "all is well"},
	}
}

func asRead(rows ...*statustest.Row) []store.OpenInstance {
	out := make([]store.OpenInstance, len(rows))
	for i, r := range rows {
		out[i] = store.OpenInstance{ID: r.ID, Version: r.Version, Phase: status.Phase(r.Phase)}
	}
	return out
}

func (b *bench) stop(order store.Stop) store.Stopped {
	b.Helper()
	order.Seq = b.seq.Add(1)
	stopped, err := b.StopInstances(context.Background(), order)
	if err != nil {
		b.Fatal(err)
	}
	return stopped
}

// Every phase and age, in and out of the region, against the rules in Go.
func TestOpenInstancesAreThoseInScope(t *testing.T) {
	b := newBench(t)
	limits := store.Limits{Preparing: time.Hour, Building: 2 * time.Hour, Unknown: 10 * time.Minute, Pending: 3 * time.Hour, Stopping: 4 * time.Hour}
	type row struct {
		open              store.OpenInstance
		region            *string
		created, stopping time.Duration // ago; stopping 0: null
		stopped           bool
	}
	eu, other, empty := cluster, "us02", ""
	random := rand.New(rand.NewPCG(1, 2))
	var rows []row
	for i := range 3000 {
		// Not so near a limit that the time that passes counts.
		age := func() time.Duration { return time.Duration(random.IntN(600))*time.Minute/2 + 45*time.Second }
		r := row{
			open:    store.OpenInstance{ID: testID(i + 1), Version: uint64(random.IntN(3)), Phase: status.Phase(allPhases()[random.IntN(9)])},
			region:  []*string{&eu, &eu, &eu, &other, &empty, nil}[random.IntN(6)],
			created: age(),
		}
		if random.IntN(2) == 0 {
			r.stopping = age()
		}
		if random.IntN(10) == 0 {
			r.stopped = true
		}
		rows = append(rows, r)
		var stopping, stopped any
		if r.stopping != 0 {
			stopping = r.stopping
		}
		if r.stopped {
			stopped = time.Now()
		}
		b.exec(`INSERT INTO workspace_instance (id, workspace_id, region, phase, status_version, creation_time, stopping_time, stopped_time)
			VALUES ($1, 'ws', $2, $3, $4, now() - $5::interval, now() - $6::interval, $7)`,
			[16]byte(r.open.ID), r.region, string(r.open.Phase), int64(r.open.Version), r.created, stopping, stopped)
	}
	expired := func(r row) bool {
		switch r.open.Phase {
		case "preparing":
			return r.created > limits.Preparing
		case "building":
			return r.created > limits.Building
		case "unknown":
			return r.created > limits.Unknown
		}
		return false
	}
	doubtful := func(r row) bool {
		switch r.open.Phase {
		case "running", "interrupted":
			return true
		case "pending", "creating", "initializing":
			return r.created > limits.Pending
		case "stopping":
			if r.stopping == 0 {
				return r.created > limits.Stopping
			}
			return r.stopping > limits.Stopping
		}
		return expired(r)
	}
	all := func(row) bool { return true }
	for scope, in := range map[store.Scope]func(row) bool{store.ScopeExpired: expired, store.ScopeDoubtful: doubtful, store.ScopeAll: all} {
		for _, region := range []string{eu, other, empty, "nowhere"} {
			var want []store.OpenInstance
			for _, r := range rows {
				in := in(r) && !r.stopped
				if (r.region == nil && region == "" || r.region != nil && *r.region == region) && in {
					want = append(want, r.open)
				}
			}
			got, err := b.OpenInstances(t.Context(), region, scope, limits)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("scope %d of %q: %d rows, want %d", scope, region, len(got), len(want))
			}
			if n, err := b.CountOpen(t.Context(), region); region != "" && scope == store.ScopeAll && (err != nil || n != len(want)) {
				t.Errorf("%d rows of %q are counted, want %d (%v)", n, region, len(want), err)
			}
		}
	}
}

func TestStopInstancesOfEveryPhase(t *testing.T) {
	b := newBench(t)
	leader := b.lead("leader/1")
	var rows []*statustest.Row
	for i, phase := range allPhases() {
		r := open(i+1, phase)
		r.Tokens = []string{r.ID.String() + "-default", "another"}
		r.Prebuild = &statustest.Prebuild{State: "building", Version: 3, Instance: r.ID, InstanceCreated: r.Created}
		if phase == "stopping" {
			r.Stopping = statustest.Epoch
		}
		rows = append(rows, r)
	}
	b.insert(rows...)
	before := time.Now()
	stopped := b.stop(store.Stop{Leader: leader, Region: cluster, Instances: asRead(rows...)})
	if !slices.Equal(stopped.Instances, asRead(rows...)) || stopped.Lifecycle != len(rows) {
		t.Fatalf("stopped: %+v", stopped)
	}
	for _, r := range rows {
		got := b.row(r.ID)
		if got.Stopped.Before(before.Add(-time.Minute)) || got.Stopped.After(time.Now().Add(time.Minute)) {
			t.Errorf("%s: stopped at %s", r.Phase, got.Stopped)
		}
		want := r.Clone()
		want.Phase, want.Swept, want.Stopped = "stopped", true, got.Stopped
		if want.Stopping.IsZero() {
			want.Stopping = got.Stopped
		}
		want.Status["phase"], want.Status["message"] = "stopped", "Stopped by the bridge. Previously in phase "+r.Phase
		want.Tokens = []string{"another"}
		want.Prebuild.State, want.Prebuild.Version = "aborted", r.Version
		want.Lifecycle = []statustest.Event{{MessageID: "bridge-wsstopped-" + r.ID.String(), At: got.Stopped}}
		b.same(r.Phase, got, want)
	}

	events := stopped.Outbox.Events
	if len(events.Instances) != len(rows) || len(events.Prebuilds) != len(rows) || len(events.Headless) != len(rows) {
		t.Fatalf("there is to tell: %+v", events)
	}
	first := rows[0].ID
	if events.Instances[0] != (event.Instance{OwnerID: ownerOf(first), InstanceID: first.String(), WorkspaceID: workspaceOf(first)}) {
		t.Errorf("told of the first: %+v", events.Instances[0])
	}
	if i := slices.IndexFunc(events.Prebuilds, func(p event.Prebuild) bool { return p.WorkspaceID == workspaceOf(first) }); i < 0 ||
		events.Prebuilds[i] != (event.Prebuild{Status: "aborted", PrebuildID: status.InstanceID(prebuildOf(first)).String(), WorkspaceID: workspaceOf(first), ProjectID: "project"}) ||
		events.Headless[i] != (event.Headless{Type: "aborted", WorkspaceID: workspaceOf(first)}) {
		t.Errorf("told of the first prebuild: %+v", events)
	}

	// What is read back from the outbox tells the same.
	left, err := b.OrphanedOutbox(t.Context(), shard.ID{}, -time.Hour, 10)
	if err != nil || len(left) != 1 {
		t.Fatalf("the outbox holds %+v (%v)", left, err)
	}
	if left[0].Ref != stopped.Outbox.Ref || encoded(t, left[0].Events) != encoded(t, events) {
		t.Errorf("the outbox holds\n%+v\nwant\n%+v", left[0], stopped.Outbox)
	}
	if err := b.DeleteOutbox(t.Context(), []store.OutboxRef{left[0].Ref}); err != nil {
		t.Fatal(err)
	}
	if left, err := b.OrphanedOutbox(t.Context(), shard.ID{}, -time.Hour, 10); err != nil || len(left) != 0 {
		t.Errorf("the outbox still holds %+v (%v)", left, err)
	}

	// Nothing is stopped twice.
	if again := b.stop(store.Stop{Leader: leader, Region: cluster, Instances: asRead(rows...)}); len(again.Instances) != 0 || again.Outbox.Events.Len() != 0 {
		t.Errorf("stopped again: %+v", again)
	}
}

func encoded(t testing.TB, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestStopInstancesLeavesAloneWhatMovedOn(t *testing.T) {
	b := newBench(t)
	leader := b.lead("leader/1")
	// Each row is changed after it was read, but for the last.
	changes := []string{
		`status_version = status_version + 1`,
		`phase = 'stopping'`,
		`region = 'us02'`,
		`stopped_time = now()`,
		`status = status || '{"neededImageBuild": true}'`,
	}
	var rows []*statustest.Row
	for i, change := range changes {
		r := open(i+1, "running")
		b.insert(r)
		rows = append(rows, r)
		b.exec(`UPDATE workspace_instance SET `+change+` WHERE id = $1`, [16]byte(r.ID))
	}
	gone := store.OpenInstance{ID: testID(99), Version: 1, Phase: "running"}
	stopped := b.stop(store.Stop{Leader: leader, Region: cluster, Instances: append(asRead(rows...), gone)})
	last := rows[len(rows)-1]
	if !slices.Equal(stopped.Instances, asRead(last)) {
		t.Errorf("stopped: %+v", stopped.Instances)
	}
	if document := b.row(last.ID).Status; document["neededImageBuild"] != true || document["nodeName"] != "node-1" {
		t.Errorf("what others wrote is lost: %v", document)
	}
}

// A writer that holds the row when it is to be stopped.
func TestStopInstancesJudgesTheRowThatItLocks(t *testing.T) {
	for name, test := range map[string]struct {
		change string
		stops  bool
	}{
		"a status":          {`status_version = status_version + 1, phase = 'stopping'`, false},
		"the API server":    {`status = status || '{"neededImageBuild": true}'`, true},
		"a phase by itself": {`phase = 'interrupted'`, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			leader := b.lead("leader/1")
			r := open(1, "running")
			b.insert(r)
			tx := b.begin()
			if _, err := tx.Exec(t.Context(), `UPDATE workspace_instance SET `+test.change); err != nil {
				t.Fatal(err)
			}
			done := b.stopBeside(store.Stop{Leader: leader, Region: cluster, Instances: asRead(r)})
			b.waitBlocked()
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := <-done
			if got.err != nil || len(got.stopped.Instances) == 1 != test.stops {
				t.Fatalf("%+v", got)
			}
			if row := b.row(r.ID); row.Phase == "stopped" != test.stops || test.stops && row.Status["neededImageBuild"] != true {
				t.Errorf("the row: %+v", row)
			}
		})
	}
}

type stopResult struct {
	stopped store.Stopped
	err     error
}

func (b *bench) stopBeside(order store.Stop) <-chan stopResult {
	done := make(chan stopResult, 1) // the test may have failed before it reads
	order.Seq = b.seq.Add(1)
	go func() {
		stopped, err := b.StopInstances(context.Background(), order)
		done <- stopResult{stopped, err}
	}()
	return done
}

func TestALeaderThatWasReplacedStopsNothing(t *testing.T) {
	b := newBench(t)
	old := b.lead("leader/1")
	current := b.lead("leader/2")
	if old.Epoch >= current.Epoch || old.Shard != current.Shard || old.Shard.Valid() {
		t.Fatalf("%+v, then %+v", old, current)
	}
	r := open(1, "running")
	r.Tokens = []string{r.ID.String() + "-default"}
	b.insert(r)
	forged := shard.Fence{Epoch: current.Epoch, Owner: old.Owner}
	for _, fence := range []shard.Fence{old, forged, {}} {
		_, err := b.StopInstances(t.Context(), store.Stop{Leader: fence, Region: cluster, Instances: asRead(r), Seq: 1})
		if !errors.Is(err, store.ErrNotLeader) {
			t.Errorf("%+v: %v", fence, err)
		}
		if err := b.CheckLeader(t.Context(), fence); !errors.Is(err, store.ErrNotLeader) {
			t.Errorf("check of %+v: %v", fence, err)
		}
	}
	b.same("untouched", b.row(r.ID), r)
	if err := b.CheckLeader(t.Context(), current); err != nil {
		t.Error(err)
	}
	if stopped := b.stop(store.Stop{Leader: current, Region: cluster, Instances: asRead(r)}); len(stopped.Instances) != 1 {
		t.Errorf("%+v", stopped)
	}
}

func TestATermThatBeginsWhileTheOldLeaderWaits(t *testing.T) {
	b := newBench(t)
	old := b.lead("leader/1")
	r := open(1, "running")
	b.insert(r)
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `UPDATE trestle_fence SET epoch = epoch + 1, owner = 'leader/2' WHERE shard = ''`); err != nil {
		t.Fatal(err)
	}
	done := b.stopBeside(store.Stop{Leader: old, Region: cluster, Instances: asRead(r)})
	b.waitBlocked()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-done; !errors.Is(got.err, store.ErrNotLeader) {
		t.Fatalf("%+v", got)
	}
	b.same("untouched", b.row(r.ID), r)
}

func TestATermBeginsAfterTheStatementsUnderWay(t *testing.T) {
	b := newBench(t)
	old := b.lead("leader/1")
	r := open(1, "running")
	b.insert(r)
	// The old leader holds its fence and waits for the row.
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `SELECT FROM workspace_instance FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	done := b.stopBeside(store.Stop{Leader: old, Region: cluster, Instances: asRead(r)})
	b.waitBlocked()
	raised := make(chan error, 1) // the test may have failed before it reads
	go func() {
		_, err := b.RaiseLeader(context.Background(), "leader/2")
		raised <- err
	}()
	b.waitFor(`SELECT count(*) = 2 FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'trestle' AND wait_event_type = 'Lock'`)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil || len(got.stopped.Instances) != 1 {
		t.Fatalf("%+v", got)
	}
	if err := <-raised; err != nil {
		t.Fatal(err)
	}
}

// waitFor returns when a query says true.
func (b *bench) waitFor(sql string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for holds := false; !holds; {
		if err := b.db.QueryRow(ctx, sql).Scan(&holds); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStopInstancesAndPrebuilds(t *testing.T) {
	older, newer := statustest.Epoch.Add(-2*time.Hour), statustest.Epoch
	for name, test := range map[string]struct {
		prebuild statustest.Prebuild
		want     statustest.Prebuild
	}{
		"queued, spoken of by nobody":       {statustest.Prebuild{State: "queued"}, statustest.Prebuild{State: "aborted", Version: 11, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}},
		"building, of an older instance":    {statustest.Prebuild{State: "building", Version: 900, Instance: testID(7), InstanceCreated: older}, statustest.Prebuild{State: "aborted", Version: 11, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}},
		"building, at a version ahead":      {statustest.Prebuild{State: "building", Version: 12, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}, statustest.Prebuild{State: "aborted", Version: 12, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}},
		"building, of a newer instance":     {statustest.Prebuild{State: "building", Version: 3, Instance: testID(7), InstanceCreated: newer}, statustest.Prebuild{State: "building", Version: 3, Instance: testID(7), InstanceCreated: newer}},
		"available":                         {statustest.Prebuild{State: "available", Snapshot: "s", Version: 3, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}, statustest.Prebuild{State: "available", Snapshot: "s", Version: 3, Instance: testID(1), InstanceCreated: newer.Add(-time.Hour)}},
		"failed, of an older instance":      {statustest.Prebuild{State: "failed", Error: "e", Version: 3, Instance: testID(7), InstanceCreated: older}, statustest.Prebuild{State: "failed", Error: "e", Version: 3, Instance: testID(7), InstanceCreated: older}},
		"timeout, of an instance not known": {statustest.Prebuild{State: "timeout", Error: "e", Version: 3}, statustest.Prebuild{State: "timeout", Error: "e", Version: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := open(1, "running")
			r.Prebuild = &test.prebuild
			b.insert(r)
			stopped := b.stop(store.Stop{Leader: b.lead("leader/1"), Region: cluster, Instances: asRead(r)})
			if changed := test.want.State != test.prebuild.State; len(stopped.Outbox.Events.Prebuilds) == 1 != changed || len(stopped.Outbox.Events.Headless) == 1 != changed {
				t.Errorf("told: %+v", stopped.Outbox.Events)
			}
			if got := *b.row(r.ID).Prebuild; fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("the prebuild is\n%v, want\n%v", got, test.want)
			}
		})
	}
}

func TestTwoInstancesOfOneWorkspaceAbortItsPrebuildOnce(t *testing.T) {
	b := newBench(t)
	first, second := open(1, "running"), open(2, "pending")
	first.Prebuild = &statustest.Prebuild{State: "building"}
	second.Created = first.Created.Add(time.Minute)
	b.insert(first, second)
	b.exec(`UPDATE workspace_instance SET workspace_id = $1`, workspaceOf(first.ID))
	stopped := b.stop(store.Stop{Leader: b.lead("leader/1"), Region: cluster, Instances: asRead(first, second)})
	if len(stopped.Outbox.Events.Instances) != 2 || len(stopped.Outbox.Events.Prebuilds) != 1 {
		t.Errorf("told: %+v", stopped.Outbox.Events)
	}
	var instance [16]byte
	if err := b.db.QueryRow(t.Context(), `SELECT instance_id FROM prebuilt_workspace`).Scan(&instance); err != nil || instance != second.ID {
		t.Errorf("the end is that of %v (%v)", instance, err)
	}
}

// What the row held, heard again, revives it.
func TestASweptRowIsRevived(t *testing.T) {
	b := newBench(t)
	r := open(1, "running")
	b.insert(r)
	b.stop(store.Stop{Leader: b.lead("leader/1"), Region: cluster, Instances: asRead(r)})
	commit := b.apply(change(t, statusOf(r.ID, r.Version), statustest.Epoch))
	if commit.Results[0].Outcome != store.Applied || !commit.Results[0].Revived {
		t.Errorf("%+v", commit.Results[0])
	}
	if got := b.row(r.ID); got.Swept || got.Phase != "creating" || !got.Stopped.IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestRowsOfADeregisteredCluster(t *testing.T) {
	b := newBench(t)
	leader := b.lead("leader/1")
	r := open(1, "running")
	b.insert(r)
	order := store.Stop{Leader: leader, Region: cluster, Deregistered: true, Instances: asRead(r)}
	due := func() []store.Deregistered {
		t.Helper()
		gone, err := b.Deregistered(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}
	if stopped := b.stop(order); len(stopped.Instances) != 0 || len(due()) != 0 {
		t.Fatal("a region that was never heard of is not to be touched")
	}
	b.exec(`INSERT INTO trestle_deregistered_cluster (name, deregistered_at)
		VALUES ($1, now() - interval '59 minutes'), ('empty', now() - interval '1 day')`, cluster)
	if gone := due(); !slices.Equal(gone, []store.Deregistered{{Name: cluster}}) {
		t.Errorf("deregistered: %+v", gone)
	}
	b.exec(`UPDATE trestle_deregistered_cluster SET deregistered_at = now() - interval '61 minutes'`)
	if gone := due(); !slices.Equal(gone, []store.Deregistered{{Name: cluster, Due: true}}) {
		t.Errorf("deregistered: %+v", gone)
	}
	b.exec(`INSERT INTO workspace_cluster (name, url) VALUES ($1, 'eu01:1')`, cluster)
	if gone := due(); len(gone) != 0 {
		t.Errorf("a cluster that is registered counts as deregistered: %+v", gone)
	}

	// It is registered again while its rows are about to be stopped.
	tx := b.begin()
	if _, err := tx.Exec(t.Context(), `DELETE FROM trestle_deregistered_cluster WHERE name = $1`, cluster); err != nil {
		t.Fatal(err)
	}
	done := b.stopBeside(order)
	b.waitBlocked()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil || len(got.stopped.Instances) != 0 {
		t.Errorf("%+v", got)
	}
	b.exec(`INSERT INTO trestle_deregistered_cluster (name) VALUES ($1)`, cluster)
	if stopped := b.stop(order); len(stopped.Instances) != 1 {
		t.Errorf("%+v", stopped)
	}
}

func TestOrphanedOutbox(t *testing.T) {
	b := newBench(t)
	r := open(1, "running")
	b.insert(r)
	slice := shard.Slice(cluster, 1, 2)
	for i, name := range []string{cluster, slice.String(), "", "young"} {
		age := time.Hour
		if name == "young" {
			age = 0
		}
		b.exec(`INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, created_at, instances)
			VALUES ($1, 1, 'gone', 2, $2, now() - $3::interval, ARRAY[$4::uuid])`, name, i, age, [16]byte(r.ID))
	}
	ids, err := b.OutboxShards(t.Context(), time.Minute)
	if err != nil || !slices.Equal(ids, []shard.ID{{}, shard.Whole(cluster), slice}) {
		t.Fatalf("%v (%v)", ids, err)
	}
	for _, id := range append(ids, shard.Whole("young")) {
		rows, err := b.OrphanedOutbox(t.Context(), id, time.Minute, 10)
		if err != nil {
			t.Fatal(err)
		}
		if id == shard.Whole("young") {
			if len(rows) != 0 {
				t.Errorf("young rows are taken for orphans: %+v", rows)
			}
			continue
		}
		if len(rows) != 1 || rows[0].Ref.Shard != id || rows[0].Events.Len() != 1 {
			t.Fatalf("%q: %+v", id, rows)
		}
		if err := b.DeleteOutbox(t.Context(), []store.OutboxRef{rows[0].Ref}); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := b.OutboxShards(t.Context(), time.Minute); err != nil || len(ids) != 0 {
		t.Errorf("left: %v (%v)", ids, err)
	}
}

func TestWrongOrders(t *testing.T) {
	b := newBench(t)
	leader := b.lead("leader/1")
	r := open(1, "running")
	if _, err := b.RaiseLeader(t.Context(), ""); err == nil {
		t.Error("a leader without a name was accepted")
	}
	if _, err := b.StopInstances(t.Context(), store.Stop{Leader: leader, Region: cluster, Instances: asRead(r, r)}); err == nil {
		t.Error("an instance was accepted twice")
	}
	if _, err := b.StopInstances(t.Context(), store.Stop{Leader: leader, Region: cluster, Instances: make([]store.OpenInstance, store.StopLimit+1)}); err == nil {
		t.Error("more than the limit was accepted")
	}
	if stopped, err := b.StopInstances(t.Context(), store.Stop{}); err != nil || len(stopped.Instances) != 0 {
		t.Errorf("%+v (%v)", stopped, err)
	}
}

// Rounds read by the index of what is not stopped, whatever the table's size.
func TestOpenInstancesAreReadByTheirIndex(t *testing.T) {
	b := newBench(t)
	b.exec(`INSERT INTO workspace_instance (id, workspace_id, region, phase, stopped_time)
		SELECT gen_random_uuid(), 'ws', CASE WHEN n % 2 = 0 THEN $1 ELSE 'us02' END, 'running', CASE WHEN n % 10 <> 0 THEN now() END
		FROM generate_series(1, 20000) n`, cluster)
	for what, analyzed := range map[string]bool{"before it was analyzed": false, "analyzed": true} {
		if analyzed {
			b.exec(`ANALYZE workspace_instance`)
		}
		for i, sql := range store.SweepReads() {
			tx := b.begin()
			for _, setting := range store.SweepSettings() {
				if _, err := tx.Exec(t.Context(), "SET LOCAL "+setting); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tx.Exec(t.Context(), `PREPARE round AS `+sql); err != nil {
				t.Fatal(err)
			}
			rows, err := tx.Query(t.Context(), `EXPLAIN EXECUTE round ('eu01', 1, '1 h', '1 h', '1 h', '1 h', '1 h')`)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			plan := strings.Join(lines, "\n")
			if !strings.Contains(plan, "workspace_instance_open") || strings.Contains(plan, "Seq Scan") {
				t.Errorf("%s, statement %d:\n%s", what, i, plan)
			}
			if _, err := tx.Exec(t.Context(), `DEALLOCATE round`); err != nil {
				t.Fatal(err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}
