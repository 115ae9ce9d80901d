package store_test

import (
	"slices"
	"testing"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestVersions(t *testing.T) {
	b := newBench(t)
	const n = 6
	rows := make([]*statustest.Row, n)
	for i := range rows {
		rows[i] = &statustest.Row{ID: testID(i), Created: heardAt(0), Phase: "preparing"}
	}
	b.insert(rows...)
	for i := range n {
		b.apply(change(t, statusOf(testID(i), uint64(10+i)), heardAt(1)))
	}
	b.apply(change(t, statusOf(testID(1), 20, inPhase(wsman.WorkspacePhase_STOPPED)), heardAt(2)))
	b.exec(`UPDATE workspace_instance SET swept = true WHERE id = $1`, [16]byte(testID(2)))
	b.exec(`UPDATE workspace_instance SET region = 'us02' WHERE id = $1`, [16]byte(testID(3)))
	b.exec(`UPDATE workspace_instance SET status_version = 0 WHERE id = $1`, [16]byte(testID(4)))

	got, err := b.Versions(t.Context(), cluster, 100)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b store.InstanceVersion) int { return slices.Compare(a.ID[:], b.ID[:]) })
	want := []store.InstanceVersion{{ID: testID(0), Version: 10}, {ID: testID(5), Version: 15}}
	if !slices.Equal(got, want) {
		t.Errorf("the versions are %v, want %v", got, want)
	}
	if got, err := b.Versions(t.Context(), cluster, 1); err != nil || len(got) != 1 {
		t.Errorf("of at most one: %v, %v", got, err)
	}

	var all []status.InstanceID
	for i := range n + 1 {
		all = append(all, testID(i))
	}
	if got, err = b.VersionsOf(t.Context(), cluster, all); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b store.InstanceVersion) int { return slices.Compare(a.ID[:], b.ID[:]) })
	want = slices.Insert(want, 1, store.InstanceVersion{ID: testID(1), Version: 20})
	if !slices.Equal(got, want) {
		t.Errorf("the versions of given rows are %v, want %v", got, want)
	}
	if got, err := b.VersionsOf(t.Context(), cluster, all[5:]); err != nil || len(got) != 1 {
		t.Errorf("of one that is there and one that is not: %v, %v", got, err)
	}
	if got, err := b.Versions(t.Context(), "'; DROP TABLE workspace_instance; --", 100); err != nil || len(got) != 0 {
		t.Errorf("of a cluster that is not: %v, %v", got, err)
	}
}
