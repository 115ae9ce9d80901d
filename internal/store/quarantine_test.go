package store_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
)

// poisoned is a change that was refused so many minutes after the epoch.
func poisoned(i int, hash uint64, cluster string, version uint64, minute int) store.Poison {
	return store.Poison{
		Instance: testID(i), Cluster: cluster, Kind: status.KindRegular, Version: version, Hash: hash,
		Fault: store.Fault{SQLState: "22001", Reason: "too long"}, At: statustest.Epoch.Add(time.Duration(minute) * time.Minute),
	}
}

// listed is what a list tells apart.
type listed struct {
	instance int
	hash     uint64
	times    int64
}

func (b *bench) list(f store.QuarantineFilter, limit int) (got []listed, changes []store.QuarantinedChange, total int64) {
	b.Helper()
	changes, total, err := b.ListQuarantine(b.Context(), f, limit)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range changes {
		for i := 1; i <= 5; i++ {
			if c.Instance == testID(i) {
				got = append(got, listed{i, c.Hash, c.Times})
			}
		}
	}
	return got, changes, total
}

func TestListQuarantine(t *testing.T) {
	b := newBench(t)
	// There is a row of all but the third one, beyond what was refused of the
	// second; the fourth one's update had no version, so that is not known.
	b.insert(plainRow(1), plainRow(2), plainRow(4))
	b.exec("UPDATE workspace_instance SET status_version = 9")
	big := uint64(1)<<63 + 5 // hashes use all bits
	for _, poisons := range [][]store.Poison{
		{poisoned(1, big, cluster, 9, 0), poisoned(1, 2, cluster, 12, 1), poisoned(2, 3, cluster, 8, 5), poisoned(3, 4, "us02", 7, 3), poisoned(3, 1, "us02", 7, 3), poisoned(4, 5, "us02", 0, 2)},
		{poisoned(1, big, cluster, 10, 4)}, // again
	} {
		if err := b.Quarantine(t.Context(), poisons); err != nil {
			t.Fatal(err)
		}
	}
	one, three, five := testID(1), testID(3), testID(5)
	for _, c := range []struct {
		what  string
		f     store.QuarantineFilter
		limit int
		want  []listed
		total int64
	}{
		// The last refused first, then by instance and hash.
		{"all", store.QuarantineFilter{}, 100, []listed{{2, 3, 1}, {1, big, 2}, {3, 1, 1}, {3, 4, 1}, {4, 5, 1}, {1, 2, 1}}, 6},
		{"some", store.QuarantineFilter{}, 2, []listed{{2, 3, 1}, {1, big, 2}}, 6},
		{"of a cluster", store.QuarantineFilter{Cluster: "us02"}, 100, []listed{{3, 1, 1}, {3, 4, 1}, {4, 5, 1}}, 3},
		{"some of a cluster", store.QuarantineFilter{Cluster: "us02"}, 1, []listed{{3, 1, 1}}, 3},
		{"of an instance", store.QuarantineFilter{Instance: &one}, 100, []listed{{1, big, 2}, {1, 2, 1}}, 2},
		{"of an instance and its cluster", store.QuarantineFilter{Cluster: "us02", Instance: &three}, 100, []listed{{3, 1, 1}, {3, 4, 1}}, 2},
		{"of an instance and another cluster", store.QuarantineFilter{Cluster: cluster, Instance: &three}, 100, nil, 0},
		{"of an instance without any", store.QuarantineFilter{Instance: &five}, 100, nil, 0},
		{"of a cluster that sounds like SQL", store.QuarantineFilter{Cluster: "us02' OR '1'='1"}, 100, nil, 0},
	} {
		got, _, total := b.list(c.f, c.limit)
		if !reflect.DeepEqual(got, c.want) || total != c.total {
			t.Errorf("%s: %v of %d, want %v of %d", c.what, got, total, c.want, c.total)
		}
	}
	_, changes, _ := b.list(store.QuarantineFilter{}, 100)
	at := func(minute int) time.Time { return statustest.Epoch.Add(time.Duration(minute) * time.Minute) }
	want := store.QuarantinedChange{Poison: poisoned(1, big, cluster, 10, 4), First: at(0), HasRow: true, Stored: 9}
	want.Times = 2
	if !reflect.DeepEqual(changes[1], want) {
		t.Errorf("what was refused twice is %+v, want %+v", changes[1], want)
	}
	for i, past := range []bool{true, false, false, false, false, false} {
		if c := changes[i]; c.Past() != past || c.HasRow != (c.Instance != testID(3)) {
			t.Errorf("change %d: past %v, row %v: %+v", i, c.Past(), c.HasRow, c)
		}
	}
}

func TestDropQuarantine(t *testing.T) {
	b := newBench(t)
	all := []store.Poison{poisoned(1, 1<<63+5, cluster, 9, 0), poisoned(1, 2, cluster, 9, 1), poisoned(2, 2, cluster, 9, 2), poisoned(3, 2, "us02", 9, 3)}
	if err := b.Quarantine(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	drop := func(what string, changes []store.QuarantinedChange, want int64) {
		t.Helper()
		if n, err := b.DropQuarantine(t.Context(), changes); err != nil || n != want {
			t.Errorf("%s: %d removed (%v), want %d", what, n, err, want)
		}
	}
	one := testID(1)
	_, read, _ := b.list(store.QuarantineFilter{Instance: &one}, 100)
	// One of the two is refused again before the drop, and stays.
	if err := b.Quarantine(t.Context(), []store.Poison{poisoned(1, 1<<63+5, cluster, 10, 9)}); err != nil {
		t.Fatal(err)
	}
	drop("what was read", read, 1)
	left := []listed{{1, 1<<63 + 5, 2}, {3, 2, 1}, {2, 2, 1}}
	if got, _, total := b.list(store.QuarantineFilter{}, 100); !reflect.DeepEqual(got, left) || total != 3 {
		t.Errorf("left: %v of %d, want %v", got, total, left)
	}
	drop("the same again", read, 0)
	drop("nothing", nil, 0)
	_, read, _ = b.list(store.QuarantineFilter{Instance: &one}, 100)
	drop("what was read anew", read, 1)
	_, read, _ = b.list(store.QuarantineFilter{}, 100)
	drop("all that is left", read, 2)

	// Of one instance only what is named goes.
	if err := b.Quarantine(t.Context(), all[:2]); err != nil {
		t.Fatal(err)
	}
	_, read, _ = b.list(store.QuarantineFilter{Instance: &one}, 100)
	drop("one of two", read[:1], 1)
	_, read, _ = b.list(store.QuarantineFilter{Instance: &one}, 100)
	drop("the other", read, 1)
	if _, _, total := b.list(store.QuarantineFilter{}, 100); total != 0 {
		t.Errorf("%d are left", total)
	}
	// A change that was dropped and is refused once more counts from one.
	if err := b.Quarantine(t.Context(), all[:1]); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := b.list(store.QuarantineFilter{}, 100); !reflect.DeepEqual(got, []listed{{1, 1<<63 + 5, 1}}) {
		t.Errorf("refused anew: %v", got)
	}
}
