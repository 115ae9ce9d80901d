package shard

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"testing"
)

func TestIDString(t *testing.T) {
	for _, c := range []struct {
		id   ID
		want string
	}{
		{Whole("eu01"), "eu01"},
		{Slice("eu01", 2, 4), "eu01#2/4"},
		{Slice("eu01", 0, 1), "eu01"},
		{Slice("eu01", 0, 0), "eu01"},
		{Whole("odd#name"), "odd##name"},
		{Slice("odd#name", 0, 2), "odd##name#0/2"},
		{Whole("#"), "##"},
		{Slice("#", 1, 2), "###1/2"},
		{Whole("eu#1/2"), "eu##1/2"},
		{Whole("a/b ü\x00\xff"), "a/b ü\x00\xff"},
	} {
		if got := c.id.String(); got != c.want {
			t.Errorf("%#v: %q, want %q", c.id, got, c.want)
		}
		back, err := ParseID(c.want)
		if err != nil || back != c.id {
			t.Errorf("parse %q: %#v, %v, want %#v", c.want, back, err, c.id)
		}
		text, err := json.Marshal(map[ID]ID{c.id: c.id})
		if err != nil {
			t.Errorf("marshal %q: %v", c.want, err)
		}
		var read map[ID]ID
		// JSON replaces bytes that are no UTF-8, so those names do not come back.
		if err := json.Unmarshal(text, &read); err == nil && c.want != "a/b ü\x00\xff" && read[c.id] != c.id {
			t.Errorf("json %s: %v", text, read)
		}
	}
}

func TestParseIDRefuses(t *testing.T) {
	for _, s := range []string{
		"", "eu01#", "eu01#1", "eu01#1/", "eu01#/2", "eu01#2/2", "eu01#-1/2", "eu01#+1/2",
		"eu01#01/2", "eu01#1/02", "eu01#0/1", "eu01#0/0", "eu01#1/2#1/2", "eu01#1/2/3",
		"eu01#0/1025", "#0/2", "eu01# 1/2", "eu01#0/99999999999999999999",
	} {
		if id, err := ParseID(s); !errors.Is(err, ErrID) {
			t.Errorf("parse %q: %#v, %v", s, id, err)
		}
	}
}

func TestIDCompare(t *testing.T) {
	sorted := []ID{Whole("a"), Slice("a", 0, 2), Slice("a", 1, 2), Slice("a", 0, 3), Whole("b")}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := a.Compare(b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("compare %s, %s: %d", a, b, got)
			}
		}
	}
}

func instances(n int) [][16]byte {
	r := rand.New(rand.NewPCG(1, 2))
	list := make([][16]byte, n)
	for i := range list {
		binary.LittleEndian.PutUint64(list[i][:8], r.Uint64())
		binary.LittleEndian.PutUint64(list[i][8:], r.Uint64())
	}
	return list
}

func TestSlicesShareInstances(t *testing.T) {
	all := instances(20_000)
	for _, n := range []int{1, 2, 3, 4, 7, 16} {
		count := make([]int, n)
		for _, instance := range all {
			owners := 0
			for i, id := range Slices("eu01", n) {
				if id.Contains(instance) {
					owners++
					count[i]++
				}
			}
			if owners != 1 {
				t.Fatalf("%d slices: %x is in %d of them", n, instance, owners)
			}
		}
		even(t, "slices", count)
	}
}

// The hash is part of what replicas of different versions share; another one
// would let two slices claim one instance during an upgrade.
func TestHashIsForEver(t *testing.T) {
	instance := [16]byte{0: 1, 15: 2}
	if !Slice("eu01", 853, MaxSlices).Contains(instance) {
		t.Errorf("instance left slice %d", 853)
	}
}

func TestContainsDoesNotAllocate(t *testing.T) {
	id, instance := Slice("eu01", 1, 3), [16]byte{7}
	if n := testing.AllocsPerRun(100, func() {
		_ = id.Contains(instance)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func even(t *testing.T, what string, count []int) {
	t.Helper()
	sum := 0
	for _, c := range count {
		sum += c
	}
	mean := sum / len(count)
	for _, c := range count {
		if c < mean*8/10 || c > mean*12/10 {
			t.Errorf("%s are uneven: %v", what, count)
			return
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"eu01", "eu01#2/4", "a##b#0/2", "###1/2", "#", "a#1/1", "a#0/1025"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			if !errors.Is(err, ErrID) || id != (ID{}) {
				t.Fatalf("parse %q: %#v, %v", s, id, err)
			}
			// Whatever it is, as a cluster's name it must come back.
			if s != "" {
				if back, err := ParseID(Whole(s).String()); err != nil || back != Whole(s) {
					t.Fatalf("name %q: %#v, %v", s, back, err)
				}
			}
			return
		}
		if !id.Valid() || id.String() != s {
			t.Fatalf("parse %q: %#v, %q", s, id, id.String())
		}
	})
}
