package status_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// maxSteps is how many versions of one history a change tells apart.
const maxSteps = 32

var testID = status.InstanceID{0x8d, 0x6a, 0x4f, 0x8e, 0x3f, 0x0d, 0x4a, 0x53, 0x9c, 0x56, 0x0a, 0x8f, 0x2f, 0x0f, 0x4b, 0x11}

// history is what is heard of one instance, one second after the other.
type history []*wsman.WorkspaceStatus

func heardAt(i int) time.Time { return statustest.Epoch.Add(time.Duration(i) * time.Second) }

func (h history) change(t testing.TB, rules status.Rules, i int) *status.Change {
	t.Helper()
	heard, err := statustest.Heard(h[i], heardAt(i))
	if err != nil {
		t.Fatal(err)
	}
	c, err := rules.Change(heard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fold folds statuses from up to below to, in groups as choose draws them:
// updates that wait are joined one by one, and with those of a batch that
// failed, and so on.
func (h history) fold(t testing.TB, rules status.Rules, from, to int, choose func(n int) int) *status.Change {
	t.Helper()
	if to-from == 1 {
		return h.change(t, rules, from)
	}
	middle := from + 1 + choose(to-from-1)
	c := h.fold(t, rules, from, middle, choose)
	c.Fold(h.fold(t, rules, middle, to, choose))
	return c
}

// inTurn writes one status after the other and reports whether any counted.
func (h history) inTurn(row *statustest.Row, rules status.Rules) bool {
	any := false
	for i, s := range h {
		any = statustest.InTurn(row, s, heardAt(i), rules) || any
	}
	return any
}

// folds checks that this row becomes the same by folding as in turn.
func (h history) folds(t testing.TB, row *statustest.Row, rules status.Rules, choose func(n int) int) string {
	t.Helper()
	want, got := row.Clone(), row.Clone()
	wantApplied := h.inTurn(want, rules)
	c := h.fold(t, rules, 0, len(h), choose)
	if applied := statustest.Apply(got, c); applied != wantApplied {
		return fmt.Sprintf("applied is %t, want %t\n", applied, wantApplied)
	}
	return statustest.Diff(got, want)
}

// shrink drops statuses as long as the row still comes out wrong, and tells
// what is left of the history.
func (h history) shrink(t testing.TB, row *statustest.Row, rules status.Rules) string {
	linear := func(n int) int { return n - 1 }
	for i := 0; i < len(h); i++ {
		shorter := append(h[:i:i], h[i+1:]...)
		if len(shorter) > 0 && shorter.folds(t, row, rules, linear) != "" {
			h, i = shorter, -1
		}
	}
	for i, s := range h {
		for _, lessen := range []func(*wsman.WorkspaceStatus){
			func(s *wsman.WorkspaceStatus) { s.Metadata.Metrics = nil },
			func(s *wsman.WorkspaceStatus) { s.InitializerMetrics = nil },
			func(s *wsman.WorkspaceStatus) { s.Spec = &wsman.WorkspaceSpec{Type: s.Spec.Type} },
			func(s *wsman.WorkspaceStatus) { s.Conditions = &wsman.WorkspaceConditions{} },
			func(s *wsman.WorkspaceStatus) { s.Message, s.Runtime, s.Auth = "", nil, nil },
			func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_UNKNOWN },
		} {
			h[i] = proto.CloneOf(s)
			if lessen(h[i]); h.folds(t, row, rules, linear) == "" {
				h[i] = s
			}
			s = h[i]
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "rules %+v\nrow that should become as different as this from none:\n%s", rules, statustest.Diff(&statustest.Row{}, row))
	for _, s := range h {
		fmt.Fprintf(&out, "  %v\n", s)
	}
	return out.String() + h.folds(t, row, rules, linear)
}

func seeded(t *testing.T) statustest.Random {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return statustest.Random{Rand: rand.New(rand.NewPCG(seed, 0)), ID: testID}
}

// statuses gives k of them; the versions are for the caller to set.
func statuses(r statustest.Random, k int) history {
	kind := wsman.WorkspaceType_REGULAR
	if r.IntN(3) > 0 {
		kind = wsman.WorkspaceType_PREBUILD
	}
	h := make(history, k)
	for i := range h {
		h[i] = r.Status(kind)
	}
	return h
}

// Up to maxSteps versions, folding is exact for every row there can be, and
// in whatever order and groups the updates are heard.
func TestFoldingIsWritingInTurn(t *testing.T) {
	r := seeded(t)
	for range 4000 {
		h := statuses(r, 1+r.IntN(12))
		version := uint64(3)
		for _, s := range h {
			switch r.IntN(8) {
			case 0: // unversioned
			case 1: // as old as the last one, or older
				s.StatusVersion = r.Uint64N(version + 1)
			default:
				version += 1 + r.Uint64N(2)
				s.StatusVersion = version
			}
		}
		check(t, r, h, r.Row(version+2))
	}
}

// A change that is only unversioned folds like any other.
func TestFoldingUnversionedIsWritingInTurn(t *testing.T) {
	r := seeded(t)
	for range 1000 {
		check(t, r, statuses(r, 1+r.IntN(6)), r.Row(1))
	}
}

// Beyond maxSteps the middle of a long history is not told apart. It must
// still be exact for a row that has seen none of it, or any beginning of it.
func TestLongFoldingIsWritingInTurn(t *testing.T) {
	r := seeded(t)
	for range 1000 {
		h := statuses(r, maxSteps-1+r.IntN(10))
		for i, s := range h {
			if i > 3 || r.IntN(2) == 0 {
				s.StatusVersion = uint64(10 + i)
			}
		}
		row := r.Row(9)
		seen := r.IntN(len(h) + 1)
		h[:seen].inTurn(row, status.Rules{})
		check(t, r, h, row)
	}
}

func check(t *testing.T, r statustest.Random, h history, row *statustest.Row) {
	t.Helper()
	rules := status.Rules{DecidedWhenStopped: r.IntN(2) == 0}
	if h.folds(t, row, rules, r.IntN) != "" {
		t.Fatal(h.shrink(t, row, rules))
	}
}

// What upstream hands over is a buffer that is used again.
func TestChangeKeepsNothingOfRaw(t *testing.T) {
	r := seeded(t)
	for range 100 {
		h := statuses(r, 1)
		heard, err := statustest.Heard(h[0], heardAt(0))
		if err != nil {
			t.Fatal(err)
		}
		c, err := status.Rules{}.Change(heard)
		if err != nil {
			t.Fatal(err)
		}
		clear(heard.Raw)
		want, got := r.Row(0), (*statustest.Row)(nil)
		got = want.Clone()
		h.inTurn(want, status.Rules{})
		statustest.Apply(got, c)
		if diff := statustest.Diff(got, want); diff != "" {
			t.Fatal(diff)
		}
	}
}

// LastAlone gives what hearing the last update only would have given.
func TestLastAlone(t *testing.T) {
	r := seeded(t)
	for range 500 {
		h := statuses(r, 2+r.IntN(5))
		for i, s := range h {
			s.StatusVersion = uint64(i + 1)
		}
		c := h.fold(t, status.Rules{}, 0, len(h), r.IntN)
		last, more := c.LastAlone()
		if !more {
			t.Fatalf("%s has no last update", c)
		}
		want, got := r.Row(3), (*statustest.Row)(nil)
		got = want.Clone()
		statustest.InTurn(want, h[len(h)-1], heardAt(len(h)-1), status.Rules{})
		statustest.Apply(got, last)
		if diff := statustest.Diff(got, want); diff != "" {
			t.Fatal(diff)
		}
		if _, more := last.LastAlone(); more || last.Updates != 1 {
			t.Fatalf("%s is not alone", last)
		}
	}
}

// FuzzFold reads a history's versions out of bytes, one a status: 0 is
// unversioned, the others add to the version before or, from 0x80 on, take
// from it. The seed draws the rest.
func FuzzFold(f *testing.F) {
	f.Add([]byte{}, uint64(1), false)
	f.Add([]byte("\x01\x02\x03\x04\x01\x02"), uint64(2), true)
	f.Add([]byte("\x00\x00\x01\x00\x01"), uint64(3), false)
	f.Add([]byte("\x05\xff\x05\xfe\x07"), uint64(4), true)
	f.Fuzz(func(t *testing.T, steps []byte, seed uint64, stopped bool) {
		if len(steps) == 0 || len(steps) > maxSteps {
			return
		}
		r := statustest.Random{Rand: rand.New(rand.NewPCG(seed, 1)), ID: testID}
		h := statuses(r, len(steps))
		version := uint64(0)
		for i, step := range steps {
			if step == 0 {
				continue
			}
			if delta := uint64(step & 0x7f); step < 0x80 {
				version += delta
			} else {
				version -= min(version, delta)
			}
			h[i].StatusVersion = version
		}
		row := r.Row(version + 2)
		rules := status.Rules{DecidedWhenStopped: stopped}
		if h.folds(t, row, rules, r.IntN) != "" {
			t.Fatal(h.shrink(t, row, rules))
		}
	})
}
