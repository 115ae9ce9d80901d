package sweep

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

func id(i int) (out status.InstanceID) {
	binary.BigEndian.PutUint64(out[8:], uint64(i))
	return out
}

func row(i int, version uint64, phase status.Phase) store.OpenInstance {
	return store.OpenInstance{ID: id(i), Version: version, Phase: phase}
}

func running(from, to int) (rows []store.OpenInstance) {
	for i := from; i < to; i++ {
		rows = append(rows, row(i, 1, status.PhaseRunning))
	}
	return rows
}

func TestJudge(t *testing.T) {
	const second, hold = 10 * time.Second, 15 * time.Minute
	type seen struct {
		at      time.Duration // each look takes a second
		missing []store.OpenInstance
		total   int
		confirm bool // after the look
	}
	for name, test := range map[string]struct {
		looks []seen
		// of the last look
		stop  []store.OpenInstance
		held  int
		again bool
	}{
		"nothing is missing": {looks: []seen{{}}},
		"missed once":        {looks: []seen{{missing: running(1, 3)}}, again: true},
		"missed twice, too near to each other": {
			// From the end of the first to the beginning of the second.
			looks: []seen{{missing: running(1, 3)}, {at: 10*time.Second + 999*time.Millisecond, missing: running(1, 3)}}, again: true,
		},
		"missed twice": {
			looks: []seen{{missing: running(1, 3)}, {at: 11 * time.Second, missing: running(1, 3)}}, stop: running(1, 3),
		},
		"missed twice, another once": {
			looks: []seen{{missing: running(1, 2)}, {at: 11 * time.Second, missing: running(1, 3)}}, stop: running(1, 2), again: true,
		},
		"known in between": {
			looks: []seen{{missing: running(1, 2)}, {at: 11 * time.Second}, {at: 22 * time.Second, missing: running(1, 2)}}, again: true,
		},
		"another version": {
			looks: []seen{{missing: running(1, 2)}, {at: 11 * time.Second, missing: []store.OpenInstance{row(1, 2, status.PhaseRunning)}}}, again: true,
		},
		"another phase": {
			looks: []seen{{missing: running(1, 2)}, {at: 11 * time.Second, missing: []store.OpenInstance{row(1, 1, status.PhaseInterrupted)}}}, again: true,
		},
		"20 of 20": { // not more than 20
			looks: []seen{{missing: running(0, 20), total: 20}, {at: 11 * time.Second, missing: running(0, 20), total: 20}}, stop: running(0, 20),
		},
		"21 of 21": {
			looks: []seen{{missing: running(0, 21), total: 21}, {at: 11 * time.Second, missing: running(0, 21), total: 21}}, held: 21,
		},
		"21 of 105": { // not more than 20 %
			looks: []seen{{missing: running(0, 21), total: 105}, {at: 11 * time.Second, missing: running(0, 21), total: 105}}, stop: running(0, 21),
		},
		"21 of 104": {
			looks: []seen{{missing: running(0, 21), total: 104}, {at: 11 * time.Second, missing: running(0, 21), total: 104}}, held: 21,
		},
		"held, but not for ever": {
			looks: []seen{{missing: running(0, 50), total: 50}, {at: time.Second + hold, missing: running(0, 50), total: 50}}, stop: running(0, 50),
		},
		"held until then": {
			looks: []seen{{missing: running(0, 50), total: 50}, {at: hold, missing: running(0, 50), total: 50}}, held: 50,
		},
		"held, confirmed": {
			looks: []seen{{missing: running(0, 50), total: 50, confirm: true}, {at: time.Minute, missing: running(0, 50), total: 50}}, stop: running(0, 50),
		},
		"confirmed, then many more": {
			looks: []seen{{missing: running(0, 50), total: 100, confirm: true}, {at: time.Minute, missing: running(0, 100), total: 100}}, stop: running(0, 50), held: 50,
		},
		"confirmed, then a few more": {
			looks: []seen{{missing: running(0, 50), total: 100, confirm: true}, {at: time.Minute, missing: running(0, 60), total: 100}}, stop: running(0, 50), again: true,
		},
		"a few, then many": { // all are missing at once
			looks: []seen{{missing: running(0, 5)}, {at: time.Minute, missing: running(0, 50), total: 100}}, held: 50,
		},
		"many, then a few": {
			looks: []seen{{missing: running(0, 50), total: 100}, {at: time.Minute, missing: running(0, 5)}}, stop: running(0, 5),
		},
		"many, known again, many": { // the time begins anew
			looks: []seen{{missing: running(0, 50), total: 50}, {at: time.Minute}, {at: hold, missing: running(0, 50), total: 50}, {at: hold + time.Minute, missing: running(0, 50), total: 50}}, held: 50,
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			var before looks
			var v verdict
			for _, s := range test.looks {
				v = judge(look{began: begin.Add(s.at), ended: begin.Add(s.at + time.Second), missing: s.missing, total: s.total}, before, second, hold)
				before = v.after
				if s.confirm {
					for id, m := range before {
						m.confirmed = true
						before[id] = m
					}
				}
			}
			if !slices.Equal(v.stop, test.stop) || v.held != test.held || v.again != test.again {
				t.Errorf("stop %d (want %d), held %d (want %d), again %t (want %t)", len(v.stop), len(test.stop), v.held, test.held, v.again, test.again)
			}
		})
	}
}

// moment is a look as the oracle keeps it: all of it, for ever.
type moment struct {
	look
	confirmed bool // after it
}

// oracle decides by all that was ever seen, as the rules are written.
func oracle(history []moment, second, hold time.Duration) (stop map[status.InstanceID]bool, held int) {
	last := history[len(history)-1]
	stop = map[status.InstanceID]bool{}
	type fate struct{ twice, fresh bool }
	fates := map[status.InstanceID]fate{}
	for _, row := range last.missing {
		f := fate{fresh: true}
		for i := len(history) - 1; i >= 0 && slices.Contains(history[i].missing, row); i-- {
			if last.began.Sub(history[i].ended) >= second {
				f.twice = true
			}
			if last.began.Sub(history[i].ended) >= hold || i < len(history)-1 && history[i].confirmed {
				f.fresh = false
			}
		}
		fates[row.ID] = f
		if f.fresh {
			held++
		}
	}
	if held <= 20 || held*5 <= last.total {
		held = 0
	}
	for id, f := range fates {
		if f.twice && (held == 0 || !f.fresh) {
			stop[id] = true
		}
	}
	return stop, held
}

func TestJudgeAgreesWithTheRules(t *testing.T) {
	const second, hold = 10 * time.Second, 15 * time.Minute
	stopped, heldBack := 0, 0
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 7))
		instances := []int{10, 30, 120}[random.IntN(3)]
		current := running(0, instances)
		now := time.Now()
		var history []moment
		var before looks
		for range 12 {
			// Mostly the same rows are missing as before, sometimes all or half.
			share := []float64{0, 0.05, 0.5, 1}[random.IntN(4)]
			m := moment{look: look{began: now, ended: now.Add(time.Duration(random.IntN(3000)) * time.Millisecond), total: instances}}
			for i := range current {
				if random.IntN(20) == 0 {
					current[i].Version++
				}
				if float64(i) < share*float64(instances) || random.IntN(30) == 0 {
					m.missing = append(m.missing, current[i])
				}
			}
			history = append(history, m)
			v := judge(m.look, before, second, hold)
			before = v.after
			stop, held := oracle(history, second, hold)
			got := map[status.InstanceID]bool{}
			for _, row := range v.stop {
				got[row.ID] = true
			}
			if !maps.Equal(got, stop) || v.held != held {
				t.Fatalf("seed %d: stop %d, want %d; held %d, want %d", seed, len(got), len(stop), v.held, held)
			}
			stopped, heldBack = stopped+len(stop), heldBack+held
			if random.IntN(8) == 0 {
				history[len(history)-1].confirmed = true
				for id, m := range before {
					m.confirmed = true
					before[id] = m
				}
			}
			now = m.ended.Add([]time.Duration{5 * time.Second, 10 * time.Second, time.Minute, 7 * time.Minute}[random.IntN(4)])
		}
	}
	if stopped == 0 || heldBack == 0 {
		t.Errorf("%d rows were stopped and %d held back: the property has shown nothing", stopped, heldBack)
	}
}

func TestMissing(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var rows, want []store.OpenInstance
		var known []status.InstanceID
		for i := range random.IntN(40) {
			has, knows := random.IntN(2) == 0, random.IntN(2) == 0
			if has {
				rows = append(rows, row(i, 1, status.PhaseRunning))
			}
			for range random.IntN(2) + 1 { // a list may name one twice
				if knows {
					known = append(known, id(i))
				}
			}
			if has && !knows {
				want = append(want, row(i, 1, status.PhaseRunning))
			}
		}
		random.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
		if got := missing(rows, known); !slices.Equal(got, want) {
			t.Fatalf("%d of %d rows are missing in a list of %d, want %d", len(got), len(rows), len(known), len(want))
		}
	}
}
