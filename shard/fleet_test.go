package shard

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// carried is the state after a plan was carried out to the end.
func carried(s State, p Plan, now time.Time) State {
	s.Shards = slices.Clone(s.Shards)
	at := make(map[ID]int, len(s.Shards))
	for i := range s.Shards {
		at[s.Shards[i].ID] = i
		if sh := &s.Shards[i]; sh.Next != "" && aliveIn(s, sh.Next) {
			sh.Owner, sh.Next = sh.Next, ""
		}
		s.Shards[i].Next, s.Shards[i].Busy = "", false
	}
	for _, m := range p.Moves {
		s.Shards[at[m.Shard]].Owner = m.To
	}
	s.Brake = p.Brake
	if p.Levelled {
		s.Levelled = now
	}
	s.Replicas = slices.DeleteFunc(slices.Clone(s.Replicas), func(r Replica) bool { return slices.Contains(p.Forget, r.ID) })
	return s
}

func aliveIn(s State, id string) bool {
	return slices.ContainsFunc(s.Replicas, func(r Replica) bool { return r.ID == id && r.Gone.IsZero() })
}

func weigh(r *rand.Rand, kind int) float64 {
	switch kind {
	case 0:
		return 10
	case 1:
		return 1 + 99*r.Float64()
	case 2:
		return math.Pow(1-r.Float64(), -1/1.2) // few are very heavy
	default:
		return []float64{0, 1, 1000, math.NaN(), math.Inf(1), -3}[r.IntN(6)]
	}
}

// loads is the dumb oracle's idea of who carries what.
func loads(t *testing.T, s State) (map[string]float64, float64, float64) {
	t.Helper()
	load := map[string]float64{}
	for _, r := range s.Replicas {
		if r.Gone.IsZero() && !r.Draining {
			load[r.ID] = 0
		}
	}
	total, heaviest := 0.0, 0.0
	for _, sh := range s.Shards {
		if _, ok := load[sh.Owner]; !ok {
			t.Fatalf("%s is on %q, which takes no shards", sh.ID, sh.Owner)
		}
		load[sh.Owner] += sh.Weight
		total += sh.Weight
		heaviest = max(heaviest, sh.Weight)
	}
	return load, total / float64(len(load)), heaviest
}

func balanced(t *testing.T, when string, s State) {
	t.Helper()
	load, mean, heaviest := loads(t, s)
	for id, l := range load {
		if l > 1.05*mean+heaviest+1e-6 {
			t.Fatalf("%s: %s carries %v, mean %v, heaviest %v", when, id, l, mean, heaviest)
		}
	}
}

func owners(s State) map[ID]string {
	o := make(map[ID]string, len(s.Shards))
	for _, sh := range s.Shards {
		o[sh.ID] = sh.Owner
	}
	return o
}

func fleet(r *rand.Rand, n, k, kind int) State {
	var s State
	for i := range n {
		s.Replicas = append(s.Replicas, Replica{ID: fmt.Sprintf("r%d", i), Revision: "1", Joined: t0.Add(time.Duration(i) * time.Second)})
	}
	for i := 0; i < k; i++ {
		w := weigh(r, kind)
		if r.IntN(30) == 0 {
			for _, id := range Slices(fmt.Sprintf("c%d", i), 2+r.IntN(4)) {
				s.Shards = append(s.Shards, Shard{ID: id, Weight: w})
			}
			continue
		}
		s.Shards = append(s.Shards, Shard{ID: Whole(fmt.Sprintf("c%d", i)), Weight: w})
	}
	return s
}

// Balance and the number of moves, through the life of a fleet.
func TestPlanBounds(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		life(t, r, fmt.Sprintf("seed %d", seed), 1+r.IntN(12), r.IntN(150), r.IntN(3), true)
	}
}

func TestPlanBoundsLarge(t *testing.T) {
	for kind := range 3 {
		life(t, rand.New(rand.NewPCG(1, uint64(kind))), fmt.Sprintf("kind %d", kind), 100, 10_000, kind, kind == 2 && !testing.Short())
	}
}

// surging is a moment at which one replica more than needed is there, and waits
// with empty hands for the next one that drains; the mean is that much lower.
const surging = "upgrade, join"

func life(t *testing.T, r *rand.Rand, name string, n, k, kind int, upgrades bool) {
	t.Helper()
	now := t0.Add(time.Hour)
	s := fleet(r, n, k, kind)
	k = len(s.Shards)
	step := func(when string) Plan {
		t.Helper()
		p := s.Plan(now)
		s = carried(s, p, now)
		if when != surging {
			balanced(t, name+", "+when, s)
		}
		return p
	}
	if p := step("start"); len(p.Moves) != k {
		t.Fatalf("%s: %d moves for %d shards without owner", name, len(p.Moves), k)
	}
	// Where a few shards are very heavy, preference may leave a replica empty at
	// first.
	for range 3 {
		now = now.Add(2 * time.Minute)
		step("settle")
	}
	now = now.Add(2 * time.Minute)
	if p := step("rest"); len(p.Moves) > 0 {
		t.Fatalf("%s: at rest %v", name, p.Moves)
	}

	s.Replicas = append(s.Replicas, Replica{ID: "joiner", Revision: "1", Joined: now})
	p := step("join")
	if most := (k + n) / (n + 1); len(p.Moves) > most {
		t.Fatalf("%s: join moves %d of %d shards onto %d replicas", name, len(p.Moves), k, n+1)
	}
	for _, m := range p.Moves {
		if m.To != "joiner" || m.Reason != ReasonJoin {
			t.Fatalf("%s: join: %v", name, m)
		}
	}
	if k >= 2*n && len(p.Moves) == 0 && kind == 0 && n > 0 {
		t.Fatalf("%s: the joiner got nothing of %d shards on %d replicas", name, k, n)
	}
	now = now.Add(2 * time.Minute)
	// With the mean lower now, others may be due for levelling; the joiner has
	// what it gets.
	for _, m := range step("rest after join").Moves {
		if m.Reason != ReasonLevel {
			t.Fatalf("%s: at rest after the join %v", name, m)
		}
	}

	gone := r.IntN(n + 1)
	leaver := s.Replicas[gone].ID
	before := owners(s)
	if r.IntN(2) == 0 {
		s.Replicas[gone].Gone = now
	} else {
		s.Replicas[gone].Draining = true
	}
	left := 0
	for _, sh := range s.Shards {
		if sh.Owner == leaver {
			left++
		}
	}
	p = step("leave")
	if len(p.Moves) != left {
		t.Fatalf("%s: %d moves as one with %d shards leaves", name, len(p.Moves), left)
	}
	for _, m := range p.Moves {
		if before[m.Shard] != leaver {
			t.Fatalf("%s: leave of %s: %v", name, leaver, m)
		}
	}
	s.Replicas = slices.Delete(s.Replicas, gone, gone+1)

	if !upgrades {
		return
	}
	now = now.Add(2 * time.Minute)
	upgrade(t, r, name, &s, &now, step)
}

// upgrade rolls all replicas one by one, one more than needed at a time, and
// sometimes rolls back from the middle.
func upgrade(t *testing.T, r *rand.Rand, name string, s *State, now *time.Time, step func(string) Plan) {
	t.Helper()
	// What levelling has left to do is not the upgrade's.
	for range 3 {
		step("before the upgrade")
		*now = now.Add(2 * time.Minute)
	}
	moved := map[ID]int{}
	count := func(p Plan) {
		t.Helper()
		for _, m := range p.Moves {
			moved[m.Shard]++
			if m.Reason != ReasonUpgrade {
				t.Fatalf("%s: upgrade: %v", name, m)
			}
		}
	}
	born := 0
	roll := func(old, revision string, most int) {
		t.Helper()
		var todo []string
		for _, rep := range s.Replicas {
			if rep.Revision == old {
				todo = append(todo, rep.ID)
			}
		}
		slices.Sort(todo)
		r.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
		// Once the last of the old ones is gone the upgrade is over, and levelling
		// may go on.
		for _, id := range todo[:min(most, len(todo))] {
			born++
			s.Replicas = append(s.Replicas, Replica{ID: fmt.Sprintf("u%d", born), Revision: revision, Joined: *now})
			count(step(surging))
			*now = now.Add(time.Duration(1+r.IntN(90)) * time.Second)
			j := slices.IndexFunc(s.Replicas, func(rep Replica) bool { return rep.ID == id })
			s.Replicas[j].Draining = true
			count(step("upgrade, drain"))
			*now = now.Add(time.Duration(1+r.IntN(90)) * time.Second)
			s.Replicas = slices.Delete(s.Replicas, j, j+1)
			if slices.ContainsFunc(s.Replicas, func(rep Replica) bool { return rep.Revision == old }) {
				count(step("upgrade, end"))
			}
		}
	}
	roll("1", "2", len(s.Replicas))
	for _, sh := range s.Shards {
		if moved[sh.ID] != 1 {
			t.Fatalf("%s: %s moved %d times in an upgrade", name, sh.ID, moved[sh.ID])
		}
	}
	clear(moved)
	*now = now.Add(time.Hour)
	for range 3 {
		step("between upgrades")
		*now = now.Add(2 * time.Minute)
	}
	half := r.IntN(len(s.Replicas) + 1)
	roll("2", "3", half)
	onNew := len(moved)
	roll("3", "2", len(s.Replicas))
	for id, n := range moved {
		if n != 2 {
			t.Fatalf("%s: %s moved %d times, forth and back", name, id, n)
		}
	}
	if len(moved) != onNew {
		t.Fatalf("%s: roll-back moved %d shards that the roll-out had not", name, len(moved)-onNew)
	}
}

// mess is a fleet in which everything goes on at once.
func mess(r *rand.Rand, now time.Time) State {
	kind := r.IntN(4)
	s := fleet(r, 1+r.IntN(12), r.IntN(60), kind)
	around := func() time.Time { return now.Add(time.Duration(r.IntN(200)-100) * time.Second) }
	for i := range s.Replicas {
		rep := &s.Replicas[i]
		rep.Name = fmt.Sprintf("n%d", i)
		rep.Revision = fmt.Sprint(r.IntN(2))
		rep.Joined = now.Add(-time.Duration(r.IntN(1000)) * time.Second)
		switch r.IntN(8) {
		case 0:
			rep.Gone = now.Add(-time.Duration(r.IntN(30)) * time.Second)
		case 1, 2:
			rep.Draining = true
		}
		switch r.IntN(4) {
		case 0:
			rep.Cap = 100 * r.Float64()
		case 1:
			rep.Capacity = 3 * r.Float64()
		}
	}
	any := func() string {
		if r.IntN(6) == 0 {
			return "stranger"
		}
		return s.Replicas[r.IntN(len(s.Replicas))].ID
	}
	for i := range s.Shards {
		sh := &s.Shards[i]
		if r.IntN(4) > 0 {
			sh.Owner = any()
			if r.IntN(4) == 0 {
				sh.Next = any()
				sh.Busy = r.IntN(2) == 0
			}
		} else if r.IntN(2) == 0 {
			sh.Former = any()
		}
		if r.IntN(5) == 0 {
			sh.Pin = Pin{Replica: fmt.Sprintf("n%d", r.IntN(14)), Until: around()}
		}
		if r.IntN(5) == 0 {
			sh.Hold = around()
		}
		if r.IntN(5) == 0 {
			sh.Avoid = any()
		}
	}
	if r.IntN(4) == 0 {
		s.Freeze = Freeze{On: true, Until: around()}
	}
	if r.IntN(3) == 0 {
		s.Levelled = around()
	}
	switch r.IntN(6) {
	case 0:
		s.Brake = Brake{Since: now.Add(-time.Duration(r.IntN(100)) * time.Second), Roster: 1 + r.IntN(30), Limited: r.IntN(2) == 0}
	case 1:
		s.Brake.Cleared = around()
	}
	return s
}

func TestPlanInAnyMess(t *testing.T) {
	rounds := 10_000
	if testing.Short() {
		rounds = 2000
	}
	now := t0.Add(24 * time.Hour)
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 11))
		s := mess(r, now)
		p := s.Plan(now)
		check(t, fmt.Sprintf("seed %d", seed), s, p, now)

		shuffled := s
		shuffled.Replicas, shuffled.Shards = slices.Clone(s.Replicas), slices.Clone(s.Shards)
		r.Shuffle(len(s.Replicas), func(i, j int) {
			shuffled.Replicas[i], shuffled.Replicas[j] = shuffled.Replicas[j], shuffled.Replicas[i]
		})
		r.Shuffle(len(s.Shards), func(i, j int) {
			shuffled.Shards[i], shuffled.Shards[j] = shuffled.Shards[j], shuffled.Shards[i]
		})
		if again := shuffled.Plan(now); !reflect.DeepEqual(p, again) {
			t.Fatalf("seed %d: the order of input matters:\n%+v\n%+v", seed, p, again)
		}

		// Once it is carried out, there is nothing more to do now.
		after := carried(s, p, now)
		after.Levelled = now
		if more := after.Plan(now); len(more.Moves) > 0 {
			for _, m := range more.Moves {
				sh := after.Shards[slices.IndexFunc(after.Shards, func(sh Shard) bool { return sh.ID == m.Shard })]
				was := s.Shards[slices.IndexFunc(s.Shards, func(sh Shard) bool { return sh.ID == m.Shard })]
				if was.Busy || was.Next != "" || !sh.Hold.IsZero() {
					continue // it could not be moved then, and can be now
				}
				if slices.Contains(p.Unplaced, Unplaced{m.Shard, WhyCap}) {
					continue // the moves of the first plan made room
				}
				t.Fatalf("seed %d: moves again: %+v (shard %+v)", seed, m, sh)
			}
		}
	}
}

// check holds a plan against what anyone can say who knows only the rules.
func check(t *testing.T, name string, s State, p Plan, now time.Time) {
	t.Helper()
	replicas := map[string]Replica{}
	open := 0
	byName := map[string]Replica{}
	for _, r := range s.Replicas {
		if r.Gone.IsZero() {
			replicas[r.ID] = r
			if !r.Draining {
				open++
				byName[r.Name] = r
			}
		}
	}
	moves := map[ID]Move{}
	for _, m := range p.Moves {
		if _, twice := moves[m.Shard]; twice {
			t.Fatalf("%s: %s moves twice in one plan", name, m.Shard)
		}
		if to, ok := replicas[m.To]; !ok || to.Draining {
			t.Fatalf("%s: moves to one that takes nothing: %+v", name, m)
		}
		if m.Text == "" || !slices.Contains(Reasons(), m.Reason) {
			t.Fatalf("%s: moves without a reason: %+v", name, m)
		}
		if _, alive := replicas[m.From]; m.From != "" && !alive {
			t.Fatalf("%s: moves away from the dead: %+v", name, m)
		}
		moves[m.Shard] = m
	}
	unplaced := map[ID]bool{}
	for _, u := range p.Unplaced {
		unplaced[u.Shard] = true
	}
	frozen := s.Freeze.On && now.Before(s.Freeze.Until)
	for _, sh := range s.Shards {
		_, owned := replicas[sh.Owner]
		_, coming := replicas[sh.Next]
		m, moving := moves[sh.ID]
		orphan := !owned && !coming
		if n := count(orphan && moving, orphan && unplaced[sh.ID], !orphan); n != 1 {
			t.Fatalf("%s: %s has %d fates: %+v", name, sh.ID, n, sh)
		}
		if orphan && unplaced[sh.ID] && open > 0 && !p.Brake.Holds() && s.Brake.Since.IsZero() {
			t.Fatalf("%s: %s is left without owner", name, sh.ID)
		}
		if moving && p.Brake.Holds() {
			t.Fatalf("%s: %+v though the brake holds", name, m)
		}
		if moving && frozen && !orphan {
			t.Fatalf("%s: %+v though frozen", name, m)
		}
		if moving && owned && (sh.Busy || now.Before(sh.Hold)) {
			t.Fatalf("%s: %+v though it is held", name, m)
		}
		if p.Brake.Holds() || owned && (sh.Busy || now.Before(sh.Hold)) {
			continue
		}
		if frozen && !orphan {
			continue
		}
		where := sh.Owner
		if coming && !(owned && replicas[sh.Next].Draining) {
			where = sh.Next
		}
		if moving {
			where = m.To
		}
		if pin, ok := byName[sh.Pin.Replica]; ok && now.Before(sh.Pin.Until) && where != pin.ID {
			t.Fatalf("%s: %s is pinned to %s and goes to %q", name, sh.ID, pin.ID, where)
		}
		if replicas[where].Draining && open > 0 {
			t.Fatalf("%s: %s stays on %s, which drains", name, sh.ID, where)
		}
	}
	for _, m := range p.Moves {
		if (m.Reason == ReasonLevel || m.Reason == ReasonJoin) && now.Sub(s.Levelled) < time.Minute {
			t.Fatalf("%s: %+v after %v", name, m, now.Sub(s.Levelled))
		}
	}
	if !p.Wake.IsZero() && !p.Wake.After(now) {
		t.Fatalf("%s: to be woken in the past", name)
	}
}

func count(truths ...bool) int {
	n := 0
	for _, b := range truths {
		if b {
			n++
		}
	}
	return n
}

// Levelling takes no more than it must and then rests.
func TestLevelling(t *testing.T) {
	for seed := range 500 {
		r := rand.New(rand.NewPCG(uint64(seed), 13))
		s := fleet(r, 2+r.IntN(10), 20+r.IntN(200), 1)
		now := t0.Add(time.Hour)
		s = carried(s, s.Plan(now), now)
		hot := s.Replicas[0].ID
		for i := range s.Shards {
			if s.Shards[i].Owner == hot {
				s.Shards[i].Weight *= 1.5 + r.Float64()
			}
		}
		var p Plan
		for range 20 {
			now = now.Add(time.Minute)
			p = s.Plan(now)
			if p.After.Max > p.Before.Max {
				t.Fatalf("seed %d: levelling made it worse: %+v to %+v", seed, p.Before, p.After)
			}
			s = carried(s, p, now)
		}
		if len(p.Moves) > 0 {
			t.Fatalf("seed %d: levelling never rests: %+v", seed, p.Moves)
		}
		load, mean, heaviest := loads(t, s)
		for id, l := range load {
			if l > 1.10*mean+heaviest {
				t.Fatalf("seed %d: %s still carries %v, mean %v, heaviest %v", seed, id, l, mean, heaviest)
			}
		}
	}
}

func TestSlicesHaveDifferentOwners(t *testing.T) {
	for seed := range 300 {
		r := rand.New(rand.NewPCG(uint64(seed), 17))
		n := 2 + r.IntN(8)
		s := fleet(r, n, r.IntN(40), 0)
		for _, id := range Slices("hot", n) {
			s.Shards = append(s.Shards, Shard{ID: id, Weight: 20})
		}
		s = carried(s, s.Plan(t0), t0)
		on := map[string]bool{}
		for _, sh := range s.Shards {
			if sh.ID.Cluster == "hot" && on[sh.Owner] {
				t.Fatalf("seed %d: two slices on %s", seed, sh.Owner)
			} else if sh.ID.Cluster == "hot" {
				on[sh.Owner] = true
			}
		}
	}
}

// Shards go where they are preferred, in proportion to capacity, and a replica
// more or less changes nothing in the order of the others.
func TestRank(t *testing.T) {
	s := State{Replicas: []Replica{
		{ID: "a"}, {ID: "b"}, {ID: "c", Capacity: 2}, {ID: "gone", Gone: t0},
	}}
	first := map[string]int{}
	less := State{Replicas: s.Replicas[1:]}
	for i := range 4000 {
		id := Whole(fmt.Sprint(i))
		order := s.Rank(id)
		first[order[0].Replica]++
		if !slices.IsSortedFunc(order, func(a, b Ranked) int { return cmp.Compare(b.Score, a.Score) }) || len(order) != 3 {
			t.Fatalf("%v", order)
		}
		without := slices.DeleteFunc(slices.Clone(order), func(r Ranked) bool { return r.Replica == "a" })
		for j, r := range less.Rank(id) {
			if r.Replica != without[j].Replica {
				t.Fatalf("%s: %v without a: %v", id, order, less.Rank(id))
			}
		}
	}
	for id, want := range map[string]int{"a": 1000, "b": 1000, "c": 2000} {
		if got := first[id]; got < want*9/10 || got > want*11/10 {
			t.Errorf("%s is preferred by %d of 4000, want about %d", id, got, want)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	now := t0.Add(time.Hour)
	scratch := fleet(rand.New(rand.NewPCG(1, 1)), 100, 10_000, 2)
	settled := carried(scratch, scratch.Plan(now), now)
	now = now.Add(time.Hour)
	join := settled
	join.Replicas = append(slices.Clone(settled.Replicas), Replica{ID: "joiner", Revision: "1", Joined: now})
	leave := settled
	leave.Replicas = slices.Clone(settled.Replicas)
	leave.Replicas[7].Gone = now
	double := fleet(rand.New(rand.NewPCG(1, 1)), 50, 10_000, 2)
	double = carried(double, double.Plan(now), now)
	for i := range 50 {
		double.Replicas = append(double.Replicas, Replica{ID: fmt.Sprintf("j%d", i), Revision: "1", Joined: now})
	}
	for _, c := range []struct {
		name  string
		state State
	}{{"scratch", scratch}, {"rest", settled}, {"join", join}, {"leave", leave}, {"double", double}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			moves := 0
			for b.Loop() {
				moves = len(c.state.Plan(now).Moves)
			}
			b.ReportMetric(float64(moves), "moves")
		})
	}
}
