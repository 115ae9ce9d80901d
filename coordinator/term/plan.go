package term

import (
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// PlannerState is what a plan is made from, as the table has it: for those who
// only want to know what a plan would be. A leader plans from what it has in
// mind beside that.
func PlannerState(v *table.View, settings shard.Settings, now time.Time) shard.State {
	roster, drains := make(map[string]table.Roster), make(map[string]table.Drain)
	for who, r := range v.Roster {
		roster[who] = r.Value
	}
	for name, d := range v.Drains {
		if d.Value.Active(now) {
			drains[name] = d.Value
		}
	}
	s := shard.State{
		Replicas: replicas(v, roster, drains, now), Settings: settings,
		Freeze: v.Fleet.Value.Freeze, Brake: v.Fleet.Value.Brake, Levelled: v.Fleet.Value.Levelled,
	}
	for id, stored := range v.Shards {
		if stored.Value.Phase != shard.PhaseRetired {
			s.Shards = append(s.Shards, shard.Resume(stored.Value.Record, shard.Limits{}, now).Shard(id, stored.Value.Weight))
		}
	}
	return s
}

func replicas(v *table.View, roster map[string]table.Roster, drains map[string]table.Drain, now time.Time) []shard.Replica {
	list := make([]shard.Replica, 0, len(roster))
	for who, r := range roster {
		_, drained := drains[r.Name]
		m := v.Members[who].Value
		replica := shard.Replica{
			ID: who, Name: r.Name, Revision: r.Revision, Joined: r.Joined, Gone: r.Gone,
			Draining: r.Draining || drained, Capacity: m.Capacity, Cap: m.Cap,
		}
		if replica.Gone.IsZero() && !alive(v, who) {
			replica.Gone = now
		}
		list = append(list, replica)
	}
	return list
}

// plan decides about moves, if anything has changed that a plan looks at.
func (b *batch) plan() {
	t := b.t
	fresh := t.planDue || !t.planAt.IsZero() && !b.now.Before(t.planAt)
	t.planDue = false
	if fresh && b.now.Before(t.gather) {
		fresh, t.planAt = false, t.gather
	}
	var p shard.Plan
	if fresh {
		p = b.newPlan()
		t.planAt = p.Wake
		switch was := b.v.Fleet.Value.Brake; {
		case p.Brake.Holds():
			t.braked = true
		case t.braked && was.Holds() && !b.released && !p.Brake.Limited:
			// Enough are back; the others are given a moment, as they went together.
			t.braked, t.mercy = false, b.now.Add(t.cfg.Planner.Lease/2)
		default:
			t.braked = false
		}
	}
	if b.released {
		t.mercy = b.now
	}
	if b.now.Before(t.mercy) {
		// What the plan said is asked again then.
		t.planDue, t.planAt = false, t.mercy
	} else if !t.braked {
		b.lose()
		b.carryOut(p)
	}
	if fleet := b.v.Fleet; b.fleet.Brake != fleet.Value.Brake || b.fleet.Freeze != fleet.Value.Freeze || !b.fleet.Levelled.Equal(fleet.Value.Levelled) {
		b.put(rankCommand, t.cfg.Layout.Fleet(), fleet.Mod, b.fleet)
	}
}

func (b *batch) newPlan() shard.Plan {
	t := b.t
	s := shard.State{
		Replicas: replicas(b.v, b.roster, b.drains, b.now), Settings: t.cfg.Planner,
		Freeze: b.fleet.Freeze, Brake: b.fleet.Brake, Levelled: b.fleet.Levelled,
	}
	b.unqueue(s)
	add := func(id shard.ID, h shard.Handover, value table.Shard, hold time.Time) {
		if h.Record.Phase == shard.PhaseRetired || h.Record.Phase == shard.PhaseUnowned && b.now.Before(hold) {
			return
		}
		sh := h.Shard(id, value.Weight)
		if m, queued := t.queue[id]; queued && sh.Next == "" {
			sh.Next = m.To
		}
		s.Shards = append(s.Shards, sh)
	}
	for id, e := range t.shards {
		if b.drafts[id] == nil {
			add(id, e.h, e.value, e.hold)
		}
	}
	for id, d := range b.drafts {
		if !d.remove {
			add(id, d.h, d.value, d.entry.hold)
		}
	}
	begun := time.Now()
	p := s.Plan(b.now)
	t.cfg.Metrics.planned(time.Since(begun), p)
	if p.Brake.Holds() && !b.fleet.Brake.Holds() {
		t.cfg.Logger.Error("more than half of the replicas are gone; nothing moves for now", "replicas", p.Brake.Roster)
	}
	b.fleet.Brake = p.Brake
	if p.Levelled {
		b.fleet.Levelled = b.now
	}
	for _, who := range p.Forget {
		b.forget(who)
	}
	return p
}

// unqueue drops moves that have lost their sense.
func (b *batch) unqueue(s shard.State) {
	open := make(map[string]bool)
	for _, r := range s.Replicas {
		open[r.ID] = r.Gone.IsZero() && !r.Draining
	}
	frozen := b.frozen()
	for id, m := range b.t.queue {
		h, exists := b.handover(id)
		if !exists || !open[m.To] || frozen && h.Record.Phase != shard.PhaseUnowned {
			delete(b.t.queue, id)
		}
	}
}

func (b *batch) frozen() bool {
	f := b.fleet.Freeze
	return f.On && (f.Until.IsZero() || b.now.Before(f.Until))
}

// lose tells the shards of replicas that are gone.
func (b *batch) lose() {
	gone := make(map[string]bool)
	lost := func(who string) bool {
		if who == "" {
			return false
		}
		is, asked := gone[who]
		if !asked {
			is = !alive(b.v, who)
			gone[who] = is
		}
		return is
	}
	for id := range b.t.shards {
		h, exists := b.handover(id)
		if !exists {
			continue
		}
		r := h.Record
		// The next owner first: nobody takes over from one that is gone, too.
		for _, who := range []string{r.Next, r.Former, r.Owner} {
			if lost(who) && (who != r.Former || r.Phase == shard.PhaseRaise) {
				b.step(id, shard.Event{Kind: shard.EventLost, Replica: who})
			}
		}
	}
}

// carryOut begins the moves of a plan, and those that wait since earlier ones.
func (b *batch) carryOut(p shard.Plan) {
	t := b.t
	for _, id := range p.Cancel {
		delete(t.queue, id)
		b.step(id, shard.Event{Kind: shard.EventCancel})
	}
	order := make([]shard.ID, 0, len(p.Moves)+len(t.queue))
	for id := range t.queue {
		order = append(order, id)
	}
	for _, m := range p.Moves {
		if _, queued := t.queue[m.Shard]; !queued {
			order = append(order, m.Shard)
		}
		t.queue[m.Shard] = m
	}
	if len(order) == 0 {
		return
	}
	busy := b.busy()
	for _, id := range order {
		m := t.queue[id]
		h, exists := b.handover(id)
		if !exists {
			delete(t.queue, id)
			continue
		}
		if h.Record.Phase != shard.PhaseUnowned && busy[m.To] >= t.cfg.MovesAtOnce {
			continue
		}
		delete(t.queue, id)
		out := b.step(id, shard.Event{Kind: shard.EventMove, Replica: m.To, Reason: m.Reason})
		if out.Ignored != "" {
			continue
		}
		busy[m.To]++
		b.drafts[id].value.Text = m.Text
		t.cfg.Metrics.Moves.WithLabelValues(string(m.Reason)).Inc()
		t.cfg.Logger.Info("a shard moves", "shard", id.String(), "from", m.From, "to", m.To, "reason", string(m.Reason), "why", m.Text)
	}
}

// busy counts the hand-overs under way to each replica.
func (b *batch) busy() map[string]int {
	busy := make(map[string]int)
	for id := range b.t.shards {
		h, exists := b.handover(id)
		if !exists {
			continue
		}
		switch r := h.Record; r.Phase {
		case shard.PhasePrepare, shard.PhaseRelease:
			busy[r.Next]++
		case shard.PhaseRaise:
			busy[r.Owner]++
		}
	}
	return busy
}
