package shard

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// level evens out the load when it is worth it. It waits for calm: during a
// loss, a drain or a hand-over the loads are not what they are about to be,
// and in the middle of an upgrade a shard that moves now would move again.
func (p *planner) level() {
	if len(p.plan.Moves) > 0 || p.plan.Brake.Limited || len(p.open) < 2 {
		return
	}
	for _, it := range p.items {
		if it.inFlight || it.cancel || it.Busy || it.at == nil || it.at.Draining {
			return
		}
	}
	var over, under, empty []*seat
	for _, s := range p.open {
		switch fair := p.fair(s); {
		case s.load > 1.10*fair+s.heaviest:
			over = append(over, s)
		// An empty replica is worth a shard even where shards are so heavy that
		// it is within the usual tolerance.
		case s.items == 0:
			empty = append(empty, s)
		// The same for one that got a few orphans before it could be filled. One
		// that is light though it was levelled is not: where a few shards are very
		// heavy most replicas are below the mean, and that is as good as it gets.
		case s.load < 0.90*fair && 2*s.items < p.share(s) && s.Joined.After(p.state.Levelled):
			under = append(under, s)
		}
	}
	if len(empty) > 0 {
		under = empty
	}
	if len(over) == 0 && len(under) == 0 || p.upgrading() {
		return
	}
	moves := p.fill(under)
	if len(moves) == 0 {
		moves = p.relieve(over)
	}
	if len(moves) == 0 {
		return
	}
	if due := p.state.Levelled.Add(p.settings.LevelEvery); due.After(p.now) {
		p.wake(due)
		return
	}
	p.plan.Levelled = true
	for _, m := range moves {
		from := m.it.at
		text := fmt.Sprintf("%s carries %.0f, its share is %.0f", from.Name, from.load, p.fair(from))
		if m.reason == ReasonJoin {
			text = fmt.Sprintf("%s carries %.0f, its share is %.0f", m.to.Name, m.to.load, p.fair(m.to))
		}
		p.move(m.it, m.to, m.reason, text)
	}
}

// upgrading says that the fleet seems to be on its way to another revision.
func (p *planner) upgrading() bool {
	last, mixed := p.open[0].Joined, false
	for _, s := range p.open {
		mixed = mixed || s.Revision != p.open[0].Revision
		if s.Joined.After(last) {
			last = s.Joined
		}
	}
	settled := last.Add(p.settings.Settle)
	if !mixed || !settled.After(p.now) {
		return false
	}
	p.wake(settled)
	return true
}

type step struct {
	it     *item
	to     *seat
	reason Reason
}

// movable lists what each open seat could give away, heaviest first.
func (p *planner) movable() map[*seat][]*item {
	give := make(map[*seat][]*item, len(p.open))
	for _, it := range p.items {
		if it.at != nil && !it.at.Draining && it.pin == nil && !p.held(it) {
			give[it.at] = append(give[it.at], it)
		}
	}
	return give
}

// try makes steps on the seats, so that the next ones see the load they leave.
func (st step) try() { st.it.at.drop(st.it); st.to.take(st.it) }

func undo(steps []step, heaviest map[*seat]float64) {
	for _, st := range slices.Backward(steps) {
		st.to.drop(st.it)
		st.it.at.take(st.it)
	}
	for s, h := range heaviest {
		s.heaviest = h
	}
}

// fill gives shards to seats that have little or nothing, up to their fair
// share and to their share of the number of shards: those that prefer them
// most. If a seat would still be above the limit, as what preference chose was
// too light, it begins with the heaviest of those seats instead.
func (p *planner) fill(under []*seat) []step {
	if len(under) == 0 {
		return nil
	}
	heaviest := make(map[*seat]float64, len(p.seats))
	for _, s := range p.seats {
		heaviest[s] = s.heaviest
	}
	give := p.movable()
	steps := p.fillWith(under, give, false)
	above := p.above()
	undo(steps, heaviest)
	if above {
		steps = p.fillWith(under, give, true)
		undo(steps, heaviest)
	}
	return steps
}

// above says that a seat is above the limit.
func (p *planner) above() bool {
	return slices.ContainsFunc(p.open, func(s *seat) bool { return s.load > p.limit(s) })
}

// share is how many shards a seat would have if counts were even, rounded up.
func (p *planner) share(s *seat) int {
	return int(math.Ceil(float64(len(p.items)) * s.Capacity / p.capacity * (1 - 1e-12)))
}

func (p *planner) fillWith(under []*seat, give map[*seat][]*item, heavyFirst bool) []step {
	budget := make(map[*seat]int, len(under))
	for _, s := range under {
		budget[s] = p.share(s) - s.items
	}
	moved := map[*item]bool{}
	var steps []step
	hand := func(it *item, to *seat) {
		st := step{it, to, ReasonJoin}
		st.try()
		moved[it] = true
		budget[to]--
		steps = append(steps, st)
	}
	if heavyFirst {
		p.fillHeavy(under, give, budget, hand)
	}
	queues := make(map[*seat][]wish, len(give))
	for s, items := range give {
		if slices.Contains(under, s) {
			continue
		}
		queues[s] = p.wishes(s, items, under)
	}
	hungry := func(s *seat) bool { return budget[s] > 0 && s.load < 0.95*p.fair(s) }
	for slices.ContainsFunc(under, hungry) {
		donor := p.mostLoaded(func(s *seat) bool { return len(queues[s]) > 0 })
		if donor == nil {
			break
		}
		it := queues[donor][0].it
		queues[donor] = queues[donor][1:]
		if moved[it] {
			continue
		}
		var best *seat
		bestScore := 0.0
		for _, to := range under {
			after := to.load + it.Weight
			// A shard lighter than what each of the shards left must weigh would
			// use up the count before the seat is full; but any is better than none.
			if to.items > 0 && it.Weight*float64(budget[to]) < 0.95*p.fair(to)-to.load {
				continue
			}
			if !hungry(to) || !to.fits(it) || to.sibling(it) || to.ID == it.Avoid ||
				after/to.Capacity >= donor.relative() || after > p.fair(to) && to.items > 0 {
				continue
			}
			if sc := score(it.hash, to); best == nil || sc > bestScore {
				best, bestScore = to, sc
			}
		}
		if best != nil {
			hand(it, best)
		}
	}
	return steps
}

// fillHeavy takes from the seats above the limit until none is, with as few
// shards as it can.
func (p *planner) fillHeavy(under []*seat, give map[*seat][]*item, budget map[*seat]int, take func(*item, *seat)) {
	rest := make(map[*seat][]*item, len(give))
	for s, items := range give {
		if !slices.Contains(under, s) {
			rest[s] = items
		}
	}
	for {
		donor := p.mostLoaded(func(s *seat) bool { return len(rest[s]) > 0 && s.load > p.limit(s) })
		if donor == nil {
			return
		}
		it := rest[donor][0]
		rest[donor] = rest[donor][1:]
		var best *seat
		for _, to := range under {
			after := to.load + it.Weight
			if budget[to] <= 0 || !to.fits(it) || to.sibling(it) || to.ID == it.Avoid ||
				after > p.limit(to) || after/to.Capacity >= donor.relative() {
				continue
			}
			if best == nil || to.relative() < best.relative() {
				best = to
			}
		}
		if best != nil {
			take(it, best)
		}
	}
}

type wish struct {
	it      *item
	sibling bool
	score   float64
}

// wishes orders what a seat could give by how much each shard would prefer one
// of the receivers; slices that share their seat with another one go first.
func (p *planner) wishes(from *seat, items []*item, under []*seat) []wish {
	list := make([]wish, len(items))
	for i, it := range items {
		list[i] = wish{it: it, sibling: it.ID.Sliced() && from.clusters[it.ID.Cluster] > 1}
		for _, to := range under {
			list[i].score = max(list[i].score, score(it.hash, to))
		}
	}
	slices.SortStableFunc(list, func(a, b wish) int {
		if a.sibling != b.sibling {
			if a.sibling {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.score, a.score)
	})
	return list
}

func (p *planner) mostLoaded(which func(*seat) bool) *seat {
	var most *seat
	for _, s := range p.open {
		if (most == nil || s.relative() > most.relative()) && which(s) {
			most = s
		}
	}
	return most
}

// relieve takes from seats that have too much until they are within the limit,
// the heaviest first, so that few move.
func (p *planner) relieve(over []*seat) []step {
	if len(over) == 0 {
		return nil
	}
	heaviest := make(map[*seat]float64, len(p.seats))
	for _, s := range p.seats {
		heaviest[s] = s.heaviest
	}
	give := p.movable()
	var steps []step
	slices.SortStableFunc(over, func(a, b *seat) int { return cmp.Compare(b.relative(), a.relative()) })
	for _, from := range over {
		goal := 1.05*p.fair(from) + heaviest[from]
		others := slices.DeleteFunc(slices.Clone(p.open), func(s *seat) bool { return slices.Contains(over, s) })
		for _, it := range give[from] {
			if from.load <= goal {
				break
			}
			if it.Weight > from.load-p.fair(from) {
				continue
			}
			to := p.place(it, others, suitsLimit)
			if to == nil || (to.load+it.Weight)/to.Capacity >= from.relative() {
				continue
			}
			st := step{it, to, ReasonLevel}
			st.try()
			steps = append(steps, st)
		}
	}
	undo(steps, heaviest)
	return steps
}
