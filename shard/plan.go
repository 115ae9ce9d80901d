package shard

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Plan says what is to be done in this state at this time. It is a pure
// function, does not depend on the order of the slices in the state, changes
// nothing in it, and is safe to call at once from several goroutines.
//
// A shard that need not move stays. With equal capacities and no Cap in the
// way, a plan that places or levels leaves no replica above 1.05 times the
// mean plus the heaviest shard if none was before, a replica that joins takes
// at most its share of the number of shards, rounded up, and only shards of a
// replica that leaves or drains move because of it.
func (s State) Plan(now time.Time) Plan {
	settings := s.Settings.withDefaults()
	p := newPlanner(s)
	p.now, p.settings = now, settings
	p.pin()
	p.plan.Before = p.imbalance()
	p.plan.Brake = s.Brake.next(s.Replicas, settings, now)
	if p.plan.Brake.Holds() {
		p.wake(p.plan.Brake.Since.Add(settings.BrakeFor))
		p.unplaced(WhyBrake)
		return p.finish()
	}
	p.orphans()
	if s.Freeze.active(now) {
		p.wake(s.Freeze.Until)
		return p.finish()
	}
	p.pins()
	p.drains()
	p.level()
	return p.finish()
}

// An item is a shard and where it is, or is about to be.
type item struct {
	Shard
	hash     uint64
	at       *seat // nil for a shard without an owner
	owner    *seat // where it is served now, nil when that replica is gone
	pin      *seat // nil without a pin that can be obeyed
	inFlight bool
	cancel   bool
}

// A seat is a living replica and what it carries.
type seat struct {
	Replica
	hash     uint64
	load     float64
	items    int
	heaviest float64
	clusters map[string]int // slices it has of a sliced cluster
}

func (s *seat) relative() float64 { return s.load / s.Capacity }

func (s *seat) take(it *item) {
	s.load += it.Weight
	s.items++
	s.heaviest = max(s.heaviest, it.Weight)
	if it.ID.Sliced() {
		if s.clusters == nil {
			s.clusters = map[string]int{}
		}
		s.clusters[it.ID.Cluster]++
	}
}

// drop leaves heaviest as it was: within one plan it stands for what the seat
// had at first.
func (s *seat) drop(it *item) {
	s.load -= it.Weight
	s.items--
	if s.items == 0 {
		s.load = 0 // whatever rounding has left of it
	}
	if it.ID.Sliced() {
		s.clusters[it.ID.Cluster]--
	}
}

// sibling says that another slice of the shard's cluster is here.
func (s *seat) sibling(it *item) bool {
	return it.ID.Sliced() && s.clusters[it.ID.Cluster] > 0
}

func (s *seat) fits(it *item) bool { return s.Cap <= 0 || s.load+it.Weight <= s.Cap }

type planner struct {
	state    State
	settings Settings
	now      time.Time
	seats    []*seat // living, by name and ID
	open     []*seat // of these, those that take shards
	byID     map[string]*seat
	items    []*item // heaviest first, then by ID
	total    float64 // weight of all shards
	capacity float64 // of all open seats
	heaviest float64
	plan     Plan
}

func newPlanner(s State) *planner {
	p := &planner{state: s, byID: make(map[string]*seat, len(s.Replicas))}
	roster := slices.Clone(s.Replicas)
	slices.SortFunc(roster, compareReplicas)
	for _, r := range roster {
		if !r.Gone.IsZero() || p.byID[r.ID] != nil {
			continue
		}
		r.Name = r.name()
		if !(r.Capacity > 0) || math.IsInf(r.Capacity, 0) {
			r.Capacity = 1
		}
		seat := &seat{Replica: r, hash: hashID(Whole(r.Name))}
		p.byID[r.ID] = seat
		p.seats = append(p.seats, seat)
		if !r.Draining {
			p.open = append(p.open, seat)
			p.capacity += r.Capacity
		}
	}
	items := make([]item, len(s.Shards))
	p.items = make([]*item, 0, len(s.Shards))
	for i, sh := range s.Shards {
		if !(sh.Weight >= 1) || math.IsInf(sh.Weight, 0) {
			sh.Weight = 1
		}
		items[i].Shard = sh
		p.items = append(p.items, &items[i])
	}
	slices.SortFunc(p.items, func(a, b *item) int {
		if c := a.ID.Compare(b.ID); c != 0 {
			return c
		}
		return compareTwins(&a.Shard, &b.Shard)
	})
	// A shard named twice is the caller's fault; one of the two is as good as
	// any, so long as it is the same one for every order of input.
	p.items = slices.CompactFunc(p.items, func(a, b *item) bool { return a.ID == b.ID })
	slices.SortStableFunc(p.items, func(a, b *item) int { return cmp.Compare(b.Weight, a.Weight) })
	for _, it := range p.items {
		it.hash = hashID(it.ID)
		p.total += it.Weight
		p.heaviest = max(p.heaviest, it.Weight)
		p.locate(it)
		if it.at != nil {
			it.at.take(it)
		}
	}
	return p
}

// locate decides where a shard counts as being: where a hand-over takes it, as
// long as that replica lives and wants it.
func (p *planner) locate(it *item) {
	owner, next := p.byID[it.Owner], p.byID[it.Next]
	it.owner = owner
	switch {
	case next == nil || next == owner:
		it.at = owner
	case next.Draining && owner != nil:
		it.at, it.cancel = owner, true
	default:
		it.at, it.inFlight = next, true
	}
}

// pin finds the replica of each pin that can be obeyed.
func (p *planner) pin() {
	byName := make(map[string]*seat, len(p.open))
	for _, s := range p.open {
		// The last incarnation of a name is the one that lives.
		if other := byName[s.Name]; other == nil || other.Joined.Before(s.Joined) {
			byName[s.Name] = s
		}
	}
	for _, it := range p.items {
		if it.Pin.active(p.now) {
			it.pin = byName[it.Pin.Replica]
			p.wake(it.Pin.Until)
		}
	}
}

// fair is what a seat would carry if all loads were even.
func (p *planner) fair(s *seat) float64 {
	if p.capacity <= 0 {
		return 0
	}
	return p.total / p.capacity * s.Capacity
}

// limit is the load up to which a seat takes shards as long as there is a
// choice.
func (p *planner) limit(s *seat) float64 { return 1.05*p.fair(s) + p.heaviest }

// How well a seat suits a shard, best first.
const (
	suitsSnug    = iota // stays within its fair share
	suitsLimit          // stays within the limit
	suitsSibling        // the same, but has another slice of that cluster
	suitsCap            // stays within its own Cap
	suitsNot
)

// place chooses a seat for a shard: of those that stay within their fair share
// the one that the shard prefers, else the least loaded. Filling up to the fair
// share and no further keeps a replica that has its share already from taking
// what belongs to one that came later. It returns nil when no seat suits as
// well as worst.
func (p *planner) place(it *item, among []*seat, worst int) *seat {
	return p.choose(it, among, worst, true)
}

// choose is place, where preference may be left out: then it is the least
// loaded that suits.
func (p *planner) choose(it *item, among []*seat, worst int, prefer bool) *seat {
	var best *seat
	bestTier, bestValue := 0, 0.0
	for _, s := range among {
		after := s.load + it.Weight
		tier := suitsNot
		switch {
		case !s.fits(it):
		case after > p.limit(s):
			tier = suitsCap
		case s.sibling(it):
			tier = suitsSibling
		case !prefer || after > p.fair(s):
			tier = suitsLimit
		default:
			tier = suitsSnug
		}
		if tier > worst {
			continue
		}
		if s.ID == it.Avoid {
			tier += suitsNot + 1
		}
		if best != nil && tier > bestTier {
			continue
		}
		value := -after / s.Capacity
		if tier == suitsSnug {
			value = score(it.hash, s)
		}
		if best == nil || tier < bestTier || value > bestValue {
			best, bestTier, bestValue = s, tier, value
		}
	}
	return best
}

// move puts a shard on another seat and notes it.
func (p *planner) move(it *item, to *seat, reason Reason, text string) {
	if it.at != nil {
		it.at.drop(it)
	}
	to.take(it)
	it.at = to
	it.cancel = false
	from := ""
	if it.owner != nil {
		from = it.Owner
	}
	p.plan.Moves = append(p.plan.Moves, Move{Shard: it.ID, From: from, To: to.ID, Reason: reason, Text: text})
}

// orphans places what has no living owner. Pins go first, as they leave no
// choice, then the heavy ones, while there is room for them.
func (p *planner) orphans() {
	var free []*item
	for _, it := range p.items {
		switch {
		case it.at != nil:
		case it.pin != nil:
			p.orphan(it, it.pin)
		default:
			free = append(free, it)
		}
	}
	worst := suitsNot
	if p.plan.Brake.Limited {
		worst = suitsCap
	}
	for _, it := range free {
		if to := p.place(it, p.open, worst); to != nil {
			p.orphan(it, to)
		}
	}
	if len(p.open) == 0 {
		p.unplaced(WhyNobody)
	} else {
		p.unplaced(WhyCap)
	}
	if p.plan.Brake.Limited && len(p.plan.Unplaced) == 0 {
		p.plan.Brake = p.plan.Brake.Release(p.now)
	}
}

func (p *planner) orphan(it *item, to *seat) {
	reason, text := ReasonOrphan, ""
	switch {
	case it.Owner != "":
		text = "its owner " + it.Owner + " is gone"
	case it.Former != "":
		text = it.Former + " had it last"
	case it.Cut:
		reason, text = ReasonReslice, "its cluster was cut anew"
	default:
		reason, text = ReasonNew, "it has had no owner"
	}
	if to == it.pin {
		text += ", and it is pinned to " + to.Name
	}
	p.move(it, to, reason, text)
}

func (p *planner) unplaced(why Why) {
	for _, it := range p.items {
		if it.at == nil {
			p.plan.Unplaced = append(p.plan.Unplaced, Unplaced{it.ID, why})
		}
	}
}

// held says that a shard is not to be moved yet, and sees to it that it is
// looked at again.
func (p *planner) held(it *item) bool {
	if it.owner == nil || !it.Busy && !p.now.Before(it.Hold) {
		return false
	}
	p.wake(it.Hold)
	return true
}

func (p *planner) pins() {
	for _, it := range p.items {
		if it.pin == nil || it.at == it.pin || it.at == nil || p.held(it) {
			continue
		}
		p.move(it, it.pin, ReasonPin, "pinned to "+it.pin.Name)
	}
}

func (p *planner) drains() {
	for _, it := range p.items {
		if it.at == nil || !it.at.Draining || p.held(it) {
			continue
		}
		from := it.at.Name
		newest := p.newest(it.at.Revision)
		// The emptiest is the one that came for this replica; by preference the
		// shards would go to all that have any room, and the last to come would
		// be left empty.
		if to := p.choose(it, newest, suitsCap, false); to != nil && to.load+it.Weight <= 2*p.fair(to)+p.heaviest {
			p.plan.Levelled = true
			p.move(it, to, ReasonUpgrade, from+" drains, and "+to.Revision+" is the revision that joined last")
			continue
		}
		// Beyond twice its share a lone first replica of a revision would be
		// crushed by what it is to relieve.
		if to := p.place(it, p.open, suitsNot); to != nil {
			p.move(it, to, ReasonDrain, from+" drains")
		}
	}
}

// newest lists the open seats of the revision that joined last, the given one
// apart.
func (p *planner) newest(other string) []*seat {
	var last *seat
	for _, s := range p.open {
		if s.Revision == other {
			continue
		}
		if last == nil || s.Joined.After(last.Joined) || s.Joined.Equal(last.Joined) && s.Revision > last.Revision {
			last = s
		}
	}
	if last == nil {
		return nil
	}
	var seats []*seat
	for _, s := range p.open {
		if s.Revision == last.Revision {
			seats = append(seats, s)
		}
	}
	return seats
}

func (p *planner) imbalance() Imbalance {
	i := Imbalance{Heaviest: p.heaviest}
	if len(p.open) == 0 {
		return i
	}
	// One unit of capacity is that of the average replica.
	unit := p.capacity / float64(len(p.open))
	for _, s := range p.open {
		i.Max = max(i.Max, s.relative()*unit)
	}
	i.Mean = p.total / p.capacity * unit
	return i
}

// wake asks for another plan at that time, if it is to come.
func (p *planner) wake(at time.Time) {
	if at.After(p.now) && (p.plan.Wake.IsZero() || at.Before(p.plan.Wake)) {
		p.plan.Wake = at
	}
}

func (p *planner) finish() Plan {
	p.plan.After = p.imbalance()
	for _, it := range p.items {
		if it.cancel && !p.plan.Brake.Holds() {
			p.plan.Cancel = append(p.plan.Cancel, it.ID)
		}
	}
	slices.SortFunc(p.plan.Cancel, ID.Compare)
	for _, s := range p.seats {
		if s.Cap > 0 && s.load > s.Cap {
			p.plan.Overloaded = append(p.plan.Overloaded, s.ID)
		}
	}
	p.propose()
	if p.plan.Brake.Since.IsZero() {
		p.forget()
	}
	return p.plan
}

// forget names the gone that the brake counts no more.
func (p *planner) forget() {
	for _, r := range p.state.Replicas {
		switch counts := r.Gone.Add(p.settings.Lease); {
		case r.Gone.IsZero():
		case counts.After(p.now) && r.Gone.After(p.plan.Brake.Cleared):
			p.wake(counts)
		default:
			p.plan.Forget = append(p.plan.Forget, r.ID)
		}
	}
	slices.Sort(p.plan.Forget)
}

// propose finds clusters of which one shard alone is more than any replica may
// carry. It asks for as many slices as leave each a third of room to grow, but
// for no more than there are replicas to carry them.
func (p *planner) propose() {
	most := 0.0
	for _, s := range p.open {
		if s.Cap <= 0 {
			return
		}
		most = max(most, s.Cap)
	}
	if most <= 0 || p.heaviest <= most {
		return
	}
	whole, now := map[string]float64{}, map[string]int{}
	hot := map[string]*item{}
	for _, it := range p.items {
		whole[it.ID.Cluster] += it.Weight
		now[it.ID.Cluster] = max(now[it.ID.Cluster], it.ID.Slices, 1)
		if it.Weight > most && hot[it.ID.Cluster] == nil {
			hot[it.ID.Cluster] = it
		}
	}
	for cluster, it := range hot {
		n := int(min(math.Ceil(whole[cluster]/(0.75*most)), float64(len(p.open)), MaxSlices))
		if n <= now[cluster] {
			continue
		}
		p.plan.Proposals = append(p.plan.Proposals, Proposal{
			Cluster: cluster, Slices: n,
			Text: fmt.Sprintf("%s weighs %.0f, and no replica may carry more than %.0f", it.ID, it.Weight, most),
		})
	}
	slices.SortFunc(p.plan.Proposals, func(a, b Proposal) int { return strings.Compare(a.Cluster, b.Cluster) })
}

func compareReplicas(a, b Replica) int {
	return cmp.Or(
		strings.Compare(a.name(), b.name()), strings.Compare(a.ID, b.ID),
		a.Gone.Compare(b.Gone), b.Joined.Compare(a.Joined), strings.Compare(a.Revision, b.Revision),
	)
}

func compareTwins(a, b *Shard) int {
	return cmp.Or(
		strings.Compare(b.Owner, a.Owner), strings.Compare(b.Next, a.Next), cmp.Compare(b.Weight, a.Weight),
		strings.Compare(b.Pin.Replica, a.Pin.Replica), b.Pin.Until.Compare(a.Pin.Until), b.Hold.Compare(a.Hold),
		strings.Compare(b.Former, a.Former), strings.Compare(b.Avoid, a.Avoid), a.ID.Slices-b.ID.Slices,
	)
}
