package term

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/duty"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// alive says that a replica has its lease and was not found dead.
func alive(v *table.View, incarnation string) bool { return !v.Dead(incarnation) }

// readRoster keeps the roster: who came, who went.
func (b *batch) readRoster() {
	v, t := b.v, b.t
	for who, stored := range v.Roster {
		b.roster[who] = stored.Value
	}
	changed := func(who string, r table.Roster) {
		b.roster[who] = r
		b.put(rankFleet, t.cfg.Layout.Roster(who), v.Roster[who].Mod, r)
		t.planDue = true
	}
	for _, who := range slices.Sorted(maps.Keys(v.Members)) {
		if !alive(v, who) {
			continue
		}
		m, r := v.Members[who].Value, b.roster[who]
		if v.Roster[who].Exists() && r.Gone.IsZero() && r.Draining == m.Draining {
			continue
		}
		if r.Joined.IsZero() {
			r.Joined = b.now
		}
		if m.Draining && !b.now.Before(t.gather) {
			t.gather = b.now.Add(t.cfg.Gather)
		}
		r.Name, r.Revision, r.Draining, r.Gone = m.Name, m.Revision, m.Draining, time.Time{}
		changed(who, r)
	}
	var serving map[string]bool
	for _, who := range slices.Sorted(maps.Keys(v.Roster)) {
		r := v.Roster[who].Value
		if alive(v, who) || !r.Gone.IsZero() {
			continue
		}
		if serving == nil {
			serving = t.serving()
		}
		if r.Draining && !serving[who] {
			// It left in order.
			b.forget(who)
			continue
		}
		r.Gone = b.now
		changed(who, r)
		t.cfg.Logger.Warn("a replica is gone", "replica", r.Name, "incarnation", who)
	}
}

func (b *batch) forget(who string) {
	if mod := b.v.Roster[who].Mod; mod != 0 {
		delete(b.roster, who)
		b.changes = slices.DeleteFunc(b.changes, func(c change) bool { return c.op.Key == b.t.cfg.Layout.Roster(who) })
		b.remove(rankFleet, b.t.cfg.Layout.Roster(who), mod)
		b.t.planDue = true
	}
}

func (t *Term) serving() map[string]bool {
	serving := make(map[string]bool)
	for _, e := range t.shards {
		serving[e.h.Record.Owner] = true
	}
	return serving
}

func (b *batch) readDrains() {
	for name, stored := range b.v.Drains {
		if stored.Value.Active(b.now) {
			b.drains[name] = stored.Value
			continue
		}
		b.remove(rankFleet, b.t.cfg.Layout.Drain(name), stored.Mod)
		b.t.planDue = true
	}
}

// clusters sees to it that every cluster has its shards, and only those.
func (b *batch) clusters() {
	for name, stored := range b.v.Clusters {
		if stored.Value.Reslice != nil {
			b.reslice(name, stored)
		}
	}
	list, known := b.t.cfg.Clusters()
	if !known {
		return
	}
	wanted := make(map[string]Cluster, len(list))
	var missing []shard.ID
	for _, c := range list {
		wanted[c.Name] = c
		cut := b.v.Clusters[c.Name].Value
		if cut.Reslice != nil {
			continue
		}
		for _, id := range shard.Slices(c.Name, cut.Slices) {
			h, exists := b.handover(id)
			switch {
			case !exists:
				missing = append(missing, id)
			case h.Record.Phase == shard.PhaseRetired:
				b.step(id, shard.Event{Kind: shard.EventRevive})
			}
		}
	}
	if len(missing) > 0 {
		b.begin(missing, wanted)
	}
	for id := range b.t.shards {
		cut := b.v.Clusters[id.Cluster].Value
		if _, still := wanted[id.Cluster]; cut.Reslice != nil || still && max(id.Slices, 1) == max(cut.Slices, 1) {
			continue
		}
		b.leave(id)
	}
}

// leave releases a shard for good, and then removes it.
func (b *batch) leave(id shard.ID) {
	h, exists := b.handover(id)
	switch {
	case !exists:
	case h.Record.Phase == shard.PhaseRetired:
		b.draft(id).remove = true
	default:
		b.step(id, shard.Event{Kind: shard.EventRetire})
	}
}

// begin creates shards. Which epochs they have had, the database knows, and
// also whether someone may still hold one: after the loss of the whole store,
// owners come back one by one, and are waited for.
func (b *batch) begin(missing []shard.ID, clusters map[string]Cluster) {
	var names []string
	for _, id := range missing {
		if !slices.Contains(names, id.Cluster) {
			names = append(names, id.Cluster)
		}
	}
	known := b.known(names)
	for _, id := range missing {
		k, answered := known[id.Cluster]
		if !answered || b.adopt(id.Cluster, k) {
			continue
		}
		cut := b.v.Clusters[id.Cluster].Value
		r := shard.Record{Phase: shard.PhaseUnowned, Generation: cut.Generation}
		hold := time.Time{}
		for _, fence := range k.Fences {
			if fence.Shard == id {
				r.Epoch, r.Former, r.Reason = fence.Epoch, fence.Owner, shard.ReasonOrphan
				hold = b.t.started.Add(b.t.cfg.Planner.Lease)
			}
		}
		b.create(id, r, max(clusters[id.Cluster].Weight, 1)/float64(max(cut.Slices, 1)), hold)
	}
}

// known gives what the database has said of clusters, and asks it about the
// others. An answer is used once.
func (b *batch) known(names []string) map[string]duty.Known {
	t := b.t
	answered := make(map[string]duty.Known)
	t.mu.Lock()
	var open []string
	for _, name := range names {
		if k, is := t.known[name]; is {
			answered[name] = k
			delete(t.known, name)
		} else {
			open = append(open, name)
		}
	}
	t.mu.Unlock()
	if len(open) == 0 {
		return answered
	}
	b.ask("what it knows of clusters", func(ctx context.Context) error {
		known, err := t.cfg.Fences.Known(ctx, open)
		if err != nil {
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, name := range open {
			t.known[name] = known[name]
		}
		return nil
	})
	return answered
}

// adopt takes over how the database says that a cluster is cut, if the table is
// older. What belongs to another cut then leaves, and the rest begins.
func (b *batch) adopt(cluster string, k duty.Known) bool {
	stored := b.v.Clusters[cluster]
	if k.Generation <= stored.Value.Generation || b.adopted[cluster] {
		return b.adopted[cluster]
	}
	key := b.t.cfg.Layout.Cluster(cluster)
	if slices.ContainsFunc(b.changes, func(c change) bool { return c.op.Key == key }) {
		return true // after what was decided for it in this pass
	}
	b.t.cfg.Logger.Warn("the table is older than the database, which has a cluster cut otherwise", "cluster", cluster, "slices", k.Slices, "generation", k.Generation)
	b.adopted[cluster] = true
	value := stored.Value
	value.Reslice, value.Slices, value.Generation = nil, k.Slices, k.Generation
	b.put(rankFleet, key, stored.Mod, value)
	b.t.planDue = true
	for _, id := range shard.Slices(cluster, k.Slices) {
		if h, exists := b.handover(id); exists && h.Record.Generation < k.Generation {
			d := b.draft(id)
			d.h.Record.Generation = k.Generation
			d.value.Record = d.h.Record
		}
	}
	return true
}

// reslice drives a change of a cluster's number of slices.
func (b *batch) reslice(cluster string, stored table.Entry[table.Cluster]) {
	t, value := b.t, stored.Value
	old := make(map[shard.ID]shard.Record)
	weight := 0.0
	for _, id := range shard.Slices(cluster, value.Reslice.From) {
		if h, exists := b.handover(id); exists {
			old[id] = h.Record
			weight += t.shards[id].value.Weight
		}
	}
	t.mu.Lock()
	fenced := t.ended[cluster] >= value.Reslice.Generation
	t.mu.Unlock()
	next, out := value.Reslice.Step(old, fenced, b.now)
	for _, id := range out.Retire {
		b.step(id, shard.Event{Kind: shard.EventRetire})
	}
	for _, id := range out.Cancel {
		b.step(id, shard.Event{Kind: shard.EventCancel})
	}
	for _, id := range out.Revive {
		b.step(id, shard.Event{Kind: shard.EventRevive})
	}
	if next.Phase == shard.ResliceFence && !fenced {
		b.ask("end of a generation of "+cluster, func(ctx context.Context) error {
			if err := t.cfg.Fences.Cut(ctx, cluster, next.Generation, next.To); err != nil {
				return err
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			t.ended[cluster] = next.Generation
			return nil
		})
	}
	open := false
	for _, id := range out.Create {
		if _, exists := b.handover(id); exists {
			continue
		}
		open = true
		r := shard.Record{Phase: shard.PhaseUnowned, Generation: next.Generation, Reason: shard.ReasonReslice}
		b.create(id, r, max(weight, 1)/float64(next.To), time.Time{})
	}
	// The new ones first: of their weight the old ones tell.
	for _, id := range out.Remove {
		if _, exists := b.handover(id); !open && exists {
			b.draft(id).remove = true
			open = true
		}
	}
	value.Reslice = &next
	switch {
	case next.Phase == shard.ResliceAborted:
		value.Reslice = nil
	case next.Phase == shard.ResliceDone && !open && !out.Write:
		value.Reslice, value.Slices, value.Generation = nil, next.To, next.Generation
	case !out.Write:
		return
	}
	b.put(rankFleet, t.cfg.Layout.Cluster(cluster), stored.Mod, value)
}

// events gives the shards what replicas answer, and the time.
func (b *batch) events() {
	t, v := b.t, b.v
	for id := range t.shards {
		if answers := v.Answers[id]; len(answers) > 0 {
			b.answers(id, answers)
		}
		if h, exists := b.handover(id); exists && !h.Wake().IsZero() && !b.now.Before(h.Wake()) {
			b.step(id, shard.Event{Kind: shard.EventTick})
		}
	}
}

func (b *batch) answers(id shard.ID, answers map[string]table.Entry[table.Answer]) {
	who := slices.DeleteFunc(slices.Collect(maps.Keys(answers)), func(who string) bool { return !alive(b.v, who) })
	// Who holds a fence is heard before who was refused: it goes on then.
	slices.SortFunc(who, func(x, y string) int {
		return cmp.Or(orderOf(answers[x].Value)-orderOf(answers[y].Value), strings.Compare(x, y))
	})
	for _, from := range who {
		a := answers[from].Value
		e := shard.Event{Replica: from, Attempt: a.Attempt, Epoch: a.Epoch}
		switch a.Kind {
		case table.Ready:
			e.Kind = shard.EventReady
		case table.Unready:
			e.Kind = shard.EventUnready
		case table.Released:
			e.Kind = shard.EventReleased
		case table.Holds:
			e.Kind = shard.EventHolds
		case table.Behind:
			e.Kind = shard.EventBehind
			if h, _ := b.handover(id); a.Generation > h.Record.Generation && from == h.Record.Owner {
				if k, answered := b.known([]string{id.Cluster})[id.Cluster]; answered {
					b.adopt(id.Cluster, k)
				}
				continue
			}
			if a.Holder != from && b.now.Before(b.t.started.Add(b.t.cfg.Planner.Lease)) && alive(b.v, a.Holder) {
				continue // it is about to say so itself
			}
		default:
			continue
		}
		b.step(id, e)
	}
}

func orderOf(a table.Answer) int {
	if a.Kind == table.Holds {
		return -int(min(a.Epoch, 1<<30))
	}
	return 1
}

// weigh follows the measured loads.
func (b *batch) weigh() {
	t := b.t
	if b.now.Before(t.weighAt) {
		return
	}
	t.weighAt = b.now.Add(t.cfg.WeighEvery)
	for id, e := range t.shards {
		h, exists := b.handover(id)
		if !exists || h.Record.Owner == "" {
			continue
		}
		measured, told := b.v.Loads[h.Record.Owner].Value.Shards[id.String()]
		if !told {
			continue
		}
		e.weight = max(1, e.weight+0.3*(measured.Weight()-e.weight))
		if stored := e.value.Weight; e.weight > 1.1*stored+1 || e.weight < 0.9*stored-1 {
			b.draft(id).value.Weight = round(e.weight)
			t.planDue = true
		}
	}
}
