package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMigrate(t *testing.T) {
	url := secret.NewURL(devstacktest.NewDatabase(t))
	s, err := store.Open(t.Context(), store.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CheckSchema(t.Context()); !errors.Is(err, store.ErrSchemaBehind) || !strings.Contains(err.Error(), "trestle migrate") {
		t.Fatal(err)
	}
	// Two replicas that start at once, and one that starts later.
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			if err := store.Migrate(t.Context(), url, slog.New(slog.DiscardHandler)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if err := store.Migrate(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesNonsense(t *testing.T) {
	for _, cfg := range []store.Config{
		{},
		{URL: secret.NewURL("postgres://user:" + secretToken + "@host:notaport/db")},
		{URL: secret.NewURL("postgres://localhost/db"), MaxConnections: -1},
	} {
		_, err := store.Open(t.Context(), cfg)
		if err == nil || strings.Contains(err.Error(), secretToken) {
			t.Errorf("%v", err)
		}
	}
	if err := store.Migrate(t.Context(), secret.NewURL("postgres://user:"+secretToken+"@host:notaport/db"), nil); err == nil || strings.Contains(err.Error(), secretToken) {
		t.Errorf("%v", err)
	}
}

func TestMetricsAreRegisteredOnce(t *testing.T) {
	registry := prometheus.NewRegistry()
	b := newBench(t, func(c *store.Config) { c.Registerer = registry })
	families, err := registry.Gather()
	if err != nil || len(families) < 3 {
		t.Fatalf("%d families, %v", len(families), err)
	}
	if _, err := store.Open(t.Context(), store.Config{URL: secret.NewURL(b.url), Registerer: registry}); err == nil {
		t.Error("the same metrics were registered twice")
	}
}

// What a commit tells is what its rows in the outbox tell.
func TestOutbox(t *testing.T) {
	b := newBench(t)
	ids := []shard.ID{shard.Slice(cluster, 0, 2), shard.Slice(cluster, 1, 2)}
	fences := []shard.Fence{b.raise(ids[0], owner), b.raise(ids[1], owner)}
	var rows []*statustest.Row
	for i := range 20 {
		row := plainRow(i)
		row.Prebuild = &statustest.Prebuild{State: "queued"}
		rows = append(rows, row)
	}
	b.insert(rows...)
	b.exec(`UPDATE prebuilt_workspace SET organization_id = 'org' WHERE build_workspace_id < $1`, workspaceOf(testID(10)))
	batch := store.Batch{Fences: fences, Lane: 1, Seq: 7}
	for i := range 20 {
		s := statusOf(testID(19-i), 5, inPhase(running))
		if i%2 == 0 {
			s.Spec.Type = wsman.WorkspaceType_PREBUILD
		}
		batch.Entries = append(batch.Entries, store.Entry{Fence: i / 10, Change: change(t, s, statustest.Epoch)})
	}
	commit, err := b.Apply(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	if len(commit.Outbox) != 2 {
		t.Fatalf("%+v", commit.Outbox)
	}
	var refs []store.OutboxRef
	for i, want := range commit.Outbox {
		rows, err := b.Outbox(t.Context(), fences[i], 10)
		if err != nil || len(rows) != 1 || time.Since(rows[0].CreatedAt) > time.Hour {
			t.Fatalf("%+v, %v", rows, err)
		}
		got := rows[0]
		if len(got.Events.Instances) != 10 || len(got.Events.Prebuilds) != 5 || len(got.Events.Headless) != 5 {
			t.Fatalf("%+v", got.Events)
		}
		for _, row := range []*store.OutboxRow{&got, &want} {
			row.CreatedAt = time.Time{}
			slices.SortFunc(row.Events.Instances, func(a, b event.Instance) int { return strings.Compare(a.InstanceID, b.InstanceID) })
			slices.SortFunc(row.Events.Prebuilds, func(a, b event.Prebuild) int { return strings.Compare(a.PrebuildID, b.PrebuildID) })
			slices.SortFunc(row.Events.Headless, func(a, b event.Headless) int { return strings.Compare(a.WorkspaceID, b.WorkspaceID) })
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the outbox says\n%+v\nthe commit says\n%+v", got, want)
		}
		refs = append(refs, got.Ref)
	}

	if n, oldest, err := b.OutboxStats(t.Context()); n != 2 || oldest.IsZero() || err != nil {
		t.Errorf("%d rows since %s, %v", n, oldest, err)
	}
	// One goes with the next batch, the other by itself.
	next := b.batch(change(t, statusOf(testID(0), 1), statustest.Epoch))
	next.Published = refs[:1]
	if _, err := b.Apply(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if n, _, err := b.OutboxStats(t.Context()); n != 1 || err != nil {
		t.Errorf("%d rows, %v", n, err)
	}
	if err := b.DeleteOutbox(t.Context(), refs); err != nil {
		t.Fatal(err)
	}
	if n, oldest, err := b.OutboxStats(t.Context()); n != 0 || !oldest.IsZero() || err != nil {
		t.Errorf("%d rows since %s, %v", n, oldest, err)
	}
	// A batch of nothing but published rows is fine too.
	if _, err := b.Apply(t.Context(), store.Batch{Published: refs}); err != nil {
		t.Fatal(err)
	}
}

func TestOutboxOrder(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1))
	var want []string
	for epoch := range 3 {
		for seq := range 3 {
			for lane := range 2 {
				batch := b.batch(change(t, statusOf(testID(1), uint64(1+lane+2*seq+100*epoch)), statustest.Epoch))
				// A new process counts from the beginning.
				batch.Lane, batch.Seq = lane, int64(2*seq+lane)
				if _, err := b.Apply(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
				want = append(want, fmt.Sprint(b.fence.Epoch, batch.Seq))
			}
		}
		b.fence = b.raise(b.fence.Shard, fmt.Sprint("owner ", 9-epoch))
	}
	rows, err := b.Outbox(t.Context(), b.fence, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, row := range rows {
		got = append(got, fmt.Sprint(row.Ref.Epoch, row.Ref.Seq))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if first, err := b.Outbox(t.Context(), b.fence, 2); err != nil || len(first) != 2 || first[0].Ref != rows[0].Ref {
		t.Errorf("%+v, %v", first, err)
	}
	lost := b.fence
	lost.Epoch--
	if _, err := b.Outbox(t.Context(), lost, 2); !errors.Is(err, store.ErrFenced) {
		t.Errorf("who does not hold the fence: %v", err)
	}
	if others, err := b.Outbox(t.Context(), b.raise(shard.Whole("us02"), owner), 2); err != nil || len(others) != 0 {
		t.Errorf("%+v, %v", others, err)
	}
}

func TestQuarantine(t *testing.T) {
	b := newBench(t)
	at := statustest.Epoch
	poison := store.Poison{
		Instance: testID(1), Cluster: cluster, Kind: status.KindPrebuild, Version: 7, Hash: 1<<63 + 5,
		Fault: store.Fault{SQLState: "23514", Reason: "no"}, At: at,
	}
	later := poison
	later.At, later.Version = at.Add(time.Minute), 8
	other := poison
	other.Hash = 6
	elsewhere := poison
	elsewhere.Cluster, elsewhere.Instance = "us02", testID(2)
	for _, poisons := range [][]store.Poison{nil, {poison, other, elsewhere}, {later}} {
		if err := b.Quarantine(t.Context(), poisons); err != nil {
			t.Fatal(err)
		}
	}
	got, err := b.Quarantined(t.Context(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	later.Times, other.Times = 2, 1
	if want := []store.Poison{later, other}; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, err := b.LastQuarantined(t.Context(), cluster, 1); err != nil || !reflect.DeepEqual(got, []store.Poison{later}) {
		t.Errorf("the last one: %+v, %v", got, err)
	}
	counts, err := b.QuarantineCounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []store.QuarantineCount{{Cluster: cluster, Changes: 2, Last: later.At}, {Cluster: "us02", Changes: 1, Last: at}}; !reflect.DeepEqual(counts, want) {
		t.Errorf("%+v, want %+v", counts, want)
	}
}

func TestLifecycle(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1))
	at := statustest.Epoch
	b.apply(change(t, statusOf(testID(1), 1, inPhase(running)), at))
	b.apply(change(t, statusOf(testID(1), 2, inPhase(stopping)), at.Add(time.Second)))
	b.apply(change(t, statusOf(testID(1), 3, inPhase(stopped), func(s *wsman.WorkspaceStatus) {
		s.Conditions.Failed = "cannot pull https://user:password@registry.example.com/image with " + secretToken + "\n" + secretToken
		s.Conditions.Timeout, s.Spec.Timeout = "after 30m", "30m"
		s.Conditions.FirstUserActivity = nil
	}), at.Add(2*time.Second)))

	pendingEvents, err := b.PendingLifecycle(t.Context(), 10)
	if err != nil || len(pendingEvents) != 2 {
		t.Fatalf("%+v, %v", pendingEvents, err)
	}
	id := testID(1).String()
	first, second := pendingEvents[0], pendingEvents[1]
	if first.Event != "workspace_running" || first.MessageID != "bridge-wsrun-"+id || first.UserID != ownerOf(testID(1)) || !first.Timestamp.Equal(at) ||
		!reflect.DeepEqual(first.Properties, map[string]any{"instanceId": id, "workspaceId": workspaceOf(testID(1))}) {
		t.Errorf("%+v", first)
	}
	stoppingTime, err := time.Parse(time.RFC3339, fmt.Sprint(second.Properties["stoppingTime"]))
	if second.Event != "workspace_stopped" || second.MessageID != "bridge-wsstopped-"+id || !second.Timestamp.Equal(at.Add(2*time.Second)) ||
		err != nil || !stoppingTime.Equal(at.Add(time.Second)) || second.Properties["timeout"] != "30m" {
		t.Errorf("%+v", second)
	}
	conditions := second.Properties["conditions"].(map[string]any)
	if conditions["failed"] != "cannot pull [url] with [redacted]\n[redacted]" || conditions["timeout"] != "after 30m" {
		t.Errorf("%+v", conditions)
	}

	// Another process leaves them alone while they are leased; this one is
	// given them again until they are done.
	other, err := store.Open(t.Context(), store.Config{URL: secret.NewURL(b.url)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if rows, err := other.PendingLifecycle(t.Context(), 10); err != nil || len(rows) != 0 {
		t.Errorf("%+v, %v", rows, err)
	}
	if rows, err := b.PendingLifecycle(t.Context(), 1); err != nil || len(rows) != 1 || rows[0].ID != first.ID {
		t.Errorf("%+v, %v", rows, err)
	}
	if err := b.DeleteLifecycle(t.Context(), []int64{first.ID}); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE trestle_lifecycle SET leased_until = now() - interval '1 second'`)
	if rows, err := other.PendingLifecycle(t.Context(), 10); err != nil || len(rows) != 1 || rows[0].ID != second.ID {
		t.Errorf("%+v, %v", rows, err)
	}

	// Not recorded unless asked for.
	silent := newBench(t, func(c *store.Config) { c.Lifecycle = false })
	silent.insert(plainRow(1))
	if commit := silent.apply(change(t, statusOf(testID(1), 1, inPhase(running)), at)); commit.Lifecycle != 0 || !commit.Results[0].Started {
		t.Errorf("%+v", commit)
	}
	if rows, err := silent.PendingLifecycle(t.Context(), 10); err != nil || len(rows) != 0 {
		t.Errorf("%+v, %v", rows, err)
	}
}

func TestClusters(t *testing.T) {
	b := newBench(t)
	b.exec(`INSERT INTO workspace_cluster (name, url, tls, state, score, govern, region, admission_constraints) VALUES
		('b', 'dns:///b:1', '{"ca": "Y2E=", "crt": "Y3J0", "key": "a2V5"}', 'cordoned', 7, false, 'europe', '[{"type": "x"}]'),
		('a', 'a:1', NULL, 'available', 50, true, '', '[]'),
		('c', 'c:1', 'null', 'available', 50, true, '', '[]')`)
	clusters, err := b.Clusters(context.Background())
	if err != nil || len(clusters) != 3 {
		t.Fatalf("%+v, %v", clusters, err)
	}
	a, second := clusters[0], clusters[1]
	if a.Name != "a" || a.URL != "a:1" || a.TLS != nil || !a.Govern || a.Score != 50 || a.MaxScore != 100 || clusters[2].TLS != nil {
		t.Errorf("%+v", a)
	}
	if second.Name != "b" || second.State != "cordoned" || second.Govern || second.Score != 7 || second.Region != "europe" || string(second.AdmissionConstraints) != `[{"type": "x"}]` {
		t.Errorf("%+v", second)
	}
	if tls := second.TLS; tls.CA.Reveal() != "Y2E=" || tls.Certificate.Reveal() != "Y3J0" || tls.Key.Reveal() != "a2V5" || strings.Contains(fmt.Sprintf("%+v", *tls), "a2V5") {
		t.Errorf("%+v", tls)
	}
	b.exec(`UPDATE workspace_cluster SET tls = '{"key": {"private": "a2V5"}}' WHERE name = 'b'`)
	clusters, err = b.Clusters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if broken := clusters[1].Broken; broken == nil || strings.Contains(broken.Error(), "a2V5") {
		t.Error(broken)
	}
}
