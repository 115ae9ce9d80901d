package trace

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

func name(n int) Key { return Key{Instance: status.InstanceID{byte(n), byte(n >> 8), 7}, Term: 1} }

func newBook(t testing.TB, pages int) *Book {
	t.Helper()
	b, err := New(pages * pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	if b.Size() != pages {
		t.Fatalf("room for %d instances, want %d", b.Size(), pages)
	}
	return b
}

// read gives all entries of an instance.
func read(b *Book, k Key, limit int) (all []Entry) {
	for from, more := 0, true; more; more = from > 0 {
		var some []Entry
		some, from = b.Read(k.Instance, from, limit)
		all = append(all, some...)
	}
	return all
}

func words(entries []Entry) (out []string) {
	for _, e := range entries {
		from := "?"
		if e.KnowsStored {
			from = fmt.Sprint(e.Stored)
		}
		out = append(out, fmt.Sprintf("%d:%s>%d x%d %s", e.Decision, from, e.Version, e.Updates, e.Phase))
	}
	return out
}

func TestStories(t *testing.T) {
	at := func(version uint64) Note {
		return Note{Decision: Applied, Version: version, Phase: status.PhaseRunning}
	}
	for _, test := range []struct {
		name  string
		notes []Note
		want  []string
	}{
		{"from version to version", []Note{at(5), {Decision: Applied, Version: 9, Updates: 3, Phase: status.PhaseStopping}},
			[]string{"1:?>5 x1 running", "1:5>9 x3 stopping"}},
		{"alike in a row are one", []Note{at(5), {Decision: Repeat, Version: 6}, {Decision: Repeat, Version: 7}, {Decision: Stale, Version: 2}, {Decision: Repeat, Version: 8}},
			[]string{"1:?>5 x1 running", "3:5>7 x2 ", "4:5>2 x1 ", "3:5>8 x1 "}},
		{"what was written is never counted together", []Note{at(5), at(6)}, []string{"1:?>5 x1 running", "1:5>6 x1 running"}},
		{"the oldest goes, and what it wrote is known", []Note{at(5), at(6), at(7), at(8), at(9), {Decision: Stale, Version: 3}},
			[]string{"1:6>7 x1 running", "1:7>8 x1 running", "1:8>9 x1 running", "4:9>3 x1 "}},
		{"the row was looked at first", []Note{{Decision: Stale, Version: 3, Stored: 7, KnowsStored: true}, at(8)},
			[]string{"4:7>3 x1 ", "1:7>8 x1 running"}},
		{"somebody else has written", []Note{at(5), {Decision: Stale, Version: 6, Stored: 9, KnowsStored: true}},
			[]string{"1:?>5 x1 running", "4:9>6 x1 "}},
		{"a refused one changes nothing", []Note{at(5), {Decision: Quarantined, Version: 6}, at(7)},
			[]string{"1:?>5 x1 running", "8:5>6 x1 ", "1:5>7 x1 running"}},
		{"versions beyond any", []Note{at(math.MaxUint64 - 1), at(math.MaxUint64)},
			[]string{"1:?>18446744073709551614 x1 running", "1:18446744073709551614>18446744073709551615 x1 running"}},
		{"very many", []Note{{Decision: Repeat, Version: 1, Updates: 65_000}, {Decision: Repeat, Version: 2, Updates: 65_000}}, []string{"3:?>2 x65535 "}},
	} {
		b := newBook(t, 3)
		ref := Ref(0)
		for i, n := range test.notes {
			n.At = b.begun.Add(time.Duration(i) * time.Second)
			ref = b.Put(ref, name(1), n)
		}
		if got := words(read(b, name(1), 1)); !slices.Equal(got, test.want) {
			t.Errorf("%s:\n%q\nwant\n%q", test.name, got, test.want)
		}
	}
}

func TestSkipIsPut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	quick, slow := newBook(t, 4), newBook(t, 4)
	slow.begun = quick.begun
	var q, s Ref
	for i := range 500 {
		d := []Decision{Repeat, Stale, Unknown, Applied}[rnd.IntN(4)]
		at, version := quick.begun.Add(time.Duration(i)*time.Second), rnd.Uint64()
		s = slow.Put(s, name(1), Note{Decision: d, Version: version, At: at})
		if d == Applied {
			q = quick.Put(q, name(1), Note{Decision: d, Version: version, At: at})
		} else {
			q = quick.Skip(q, name(1), d, version, at)
		}
		if got, want := read(quick, name(1), 8), read(slow, name(1), 8); !slices.Equal(got, want) {
			t.Fatalf("after %d: %v, want %v", i, got, want)
		}
	}
}

// The time of an entry is right to a tick, also after a year.
func TestTime(t *testing.T) {
	b := newBook(t, 1)
	for _, since := range []time.Duration{0, time.Second + 3*time.Millisecond, 365 * 24 * time.Hour} {
		b.Skip(1, name(1), Repeat, 1, b.begun.Add(since))
		if got := read(b, name(1), 1)[0].At.Sub(b.begun); got > since || since-got >= tick {
			t.Errorf("%s is read as %s", since, got)
		}
	}
	b.Skip(1, name(1), Repeat, 1, b.begun.Add(-time.Hour))
	if got := read(b, name(1), 1)[0].At.Sub(b.begun); got != 0 {
		t.Errorf("before the beginning is %s", got)
	}
}

// When all pages are used, those go that were not written on for long, and a
// reference to one that another instance has now is not followed.
func TestOldestGoes(t *testing.T) {
	const pages = 64
	b := newBook(t, pages)
	refs := make(map[int]Ref)
	now := b.begun
	note := func(n int) {
		now = now.Add(time.Second)
		refs[n] = b.Skip(refs[n], name(n), Repeat, uint64(n), now)
	}
	for n := range pages {
		note(n)
	}
	// The second half is heard all the time; new ones come in.
	for n := pages; n < pages+pages/4; n++ {
		for other := pages / 2; other < pages; other++ {
			note(other)
		}
		note(n)
	}
	for n := pages / 2; n < pages+pages/4; n++ {
		entries := read(b, name(n), 7)
		if len(entries) != 1 || entries[0].Version != uint64(n) {
			t.Errorf("of %d is remembered %v", n, entries)
		}
	}
	gone := 0
	for n := range pages / 2 {
		if len(read(b, name(n), 7)) == 0 {
			gone++
			note(n)
			if entries := read(b, name(n), 7); len(entries) != 1 || entries[0].Updates != 1 {
				t.Errorf("%d, heard again, has %v", n, entries)
			}
		}
	}
	if gone < pages/8 {
		t.Errorf("%d are gone", gone)
	}
}

// Terms are kept apart.
func TestTerms(t *testing.T) {
	b := newBook(t, 4)
	first, second := name(1), name(1)
	second.Term = 2
	ref := b.Put(0, first, Note{Decision: Applied, Version: 5, At: b.begun})
	b.Put(ref, second, Note{Decision: Repeat, Version: 6, At: b.begun.Add(time.Second)})
	got := read(b, first, 1)
	Sort(got)
	if len(got) != 2 || got[0].Term != 1 || got[1].Term != 2 || got[1].KnowsStored {
		t.Errorf("%+v", got)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	b := newBook(t, 16)
	n := 0
	if allocs := testing.AllocsPerRun(1000, func() {
		n++
		ref := b.Skip(0, name(n%40), Repeat, uint64(n), b.begun.Add(time.Duration(n)*time.Second))
		b.Put(ref, name(n%40), Note{Decision: Stale, Version: uint64(n), Stored: uint64(n), KnowsStored: true, At: b.begun})
	}); allocs > 1 {
		// stored, which looks at all entries, is for what the database has said.
		t.Errorf("%v allocations", allocs)
	}
	if allocs := testing.AllocsPerRun(1000, func() { n++; b.Skip(0, name(n%40), Repeat, uint64(n), b.begun) }); allocs != 0 {
		t.Errorf("%v allocations for what is skipped", allocs)
	}
}

func TestSizes(t *testing.T) {
	if pageBytes != 96 {
		t.Errorf("an instance takes %d bytes; docs/performance.md and the default of pipeline.traceBytes say 96", pageBytes)
	}
	for _, bytes := range []int{0, -1, pageBytes - 1, math.MaxInt} {
		if _, err := New(bytes); err == nil {
			t.Errorf("%d bytes are taken", bytes)
		}
	}
}
