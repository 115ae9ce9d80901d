package store_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

func TestRaise(t *testing.T) {
	b := newBench(t)
	id := shard.Slice("eu#2", 1, 4)
	fence := func(epoch shard.Epoch, owner string, generation int64) shard.Fence {
		return shard.Fence{Shard: id, Epoch: epoch, Owner: owner, Generation: generation}
	}
	for _, step := range []struct {
		name         string
		raise, holds shard.Fence
		cut          int64 // before
	}{
		{"the first", fence(7, "a", 0), fence(7, "a", 0), 0},
		{"the same again", fence(7, "a", 0), fence(7, "a", 0), 0},
		{"the same epoch of another", fence(7, "b", 0), fence(7, "a", 0), 0},
		{"a lower one", fence(6, "b", 0), fence(7, "a", 0), 0},
		{"a lower one of the owner", fence(6, "a", 0), fence(7, "a", 0), 0},
		{"a higher one", fence(9, "b", 0), fence(9, "b", 0), 0},
		{"of a generation that is over", fence(10, "a", 1), fence(9, "", 2), 2},
		{"its own, ended by the cut", fence(9, "b", 2), fence(9, "", 2), 0},
		{"of the generation", fence(10, "a", 2), fence(10, "a", 2), 0},
		{"of a generation to come", fence(11, "a", 3), fence(11, "a", 3), 0},
		{"a cut that is not the last", fence(12, "b", 3), fence(12, "b", 3), 1},
	} {
		if step.cut != 0 {
			if err := b.Cut(t.Context(), id.Cluster, step.cut, 4); err != nil {
				t.Fatal(err)
			}
		}
		holds, err := b.Raise(t.Context(), step.raise)
		if err != nil || holds != step.holds {
			t.Errorf("%s: %+v, %v, want %+v", step.name, holds, err, step.holds)
		}
	}
	for _, nonsense := range []shard.Fence{
		{Owner: "a", Epoch: 1},
		{Shard: id, Epoch: 1},
		{Shard: id, Owner: "a"},
	} {
		if _, err := b.Raise(t.Context(), nonsense); err == nil {
			t.Errorf("%+v was raised", nonsense)
		}
	}
}

func TestCheckFences(t *testing.T) {
	b := newBench(t)
	var fences []shard.Fence
	for n := range 3 {
		fence := shard.Fence{Shard: shard.Slice("eu", n, 3), Epoch: shard.Epoch(5 + n), Owner: "a"}
		if _, err := b.Raise(t.Context(), fence); err != nil {
			t.Fatal(err)
		}
		fences = append(fences, fence)
	}
	if err := b.CheckFences(t.Context(), fences); err != nil {
		t.Error(err)
	}
	with := func(change func(*shard.Fence)) []shard.Fence {
		changed := slices.Clone(fences)
		change(&changed[1])
		return changed
	}
	for name, asked := range map[string][]shard.Fence{
		"a lower epoch":    with(func(f *shard.Fence) { f.Epoch-- }),
		"a higher epoch":   with(func(f *shard.Fence) { f.Epoch++ }),
		"another's":        with(func(f *shard.Fence) { f.Owner = "b" }),
		"an unknown shard": with(func(f *shard.Fence) { f.Shard = shard.Whole("us") }),
	} {
		err := b.CheckFences(t.Context(), asked)
		if !errors.Is(err, store.ErrFenced) || !strings.HasSuffix(err.Error(), ": "+asked[1].Shard.String()) {
			t.Errorf("%s: %v, want one that names %s", name, err, asked[1].Shard)
		}
	}
}

// A shard that the database has never heard of, in a cluster that was cut.
func TestRaiseUnknownShardOfAnEarlierGeneration(t *testing.T) {
	b := newBench(t)
	if err := b.Cut(t.Context(), "eu02", 3, 2); err != nil {
		t.Fatal(err)
	}
	id := shard.Whole("eu02")
	holds, err := b.Raise(t.Context(), shard.Fence{Shard: id, Owner: "a", Epoch: 1, Generation: 2})
	if want := (shard.Fence{Shard: id, Generation: 3}); err != nil || holds != want {
		t.Errorf("%+v, %v, want %+v", holds, err, want)
	}
}

func TestKnown(t *testing.T) {
	b := newBench(t)
	odd := "od#d"
	b.raise(shard.Slice(odd, 1, 2), "x")
	b.raise(shard.Slice(odd, 1, 2), "y")
	if err := b.Cut(t.Context(), odd, 4, 3); err != nil {
		t.Fatal(err)
	}
	b.raise(shard.Slice(odd, 0, 3), "z")
	if _, err := b.RaiseLeader(t.Context(), "leader"); err != nil {
		t.Fatal(err)
	}
	known, err := b.Known(t.Context(), []string{cluster, odd, "never", ""})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(known[odd].Fences, func(a, b shard.Fence) int { return a.Shard.Compare(b.Shard) })
	want := map[string]store.Known{
		cluster: {Slices: 1, Fences: []shard.Fence{b.fence}},
		odd: {Slices: 3, Generation: 4, Fences: []shard.Fence{
			{Shard: shard.Slice(odd, 1, 2), Epoch: 2, Generation: 4},
			{Shard: shard.Slice(odd, 0, 3), Epoch: 1, Owner: "z", Generation: 4},
		}},
	}
	if !reflect.DeepEqual(known, want) {
		t.Errorf("%+v, want %+v", known, want)
	}
}

func TestCutRefusesNonsense(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		cluster    string
		generation int64
		slices     int
	}{{"", 1, 1}, {cluster, 0, 1}, {cluster, 1, 0}, {cluster, 1, shard.MaxSlices + 1}} {
		if err := b.Cut(t.Context(), c.cluster, c.generation, c.slices); err == nil {
			t.Errorf("%+v was cut", c)
		}
	}
}

// Who wrote under a fence that a cut has ended writes no more, and the cut waits
// for what is under way.
func TestCutEndsWriters(t *testing.T) {
	b := newBench(t)
	b.endsWriters("a cut", func(ctx context.Context) error { return b.Cut(ctx, cluster, 1, 2) })
}
