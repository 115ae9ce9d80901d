package term

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// batch is what one pass decides.
type batch struct {
	t   *Term
	v   *table.View
	now time.Time

	drafts  map[shard.ID]*draft
	changes []change
	fleet   table.Fleet
	// roster and drains are as they will be.
	roster map[string]table.Roster
	drains map[string]table.Drain
	// adopted are clusters whose cut was taken over from the database.
	adopted map[string]bool
	// released says that an operator has let the brake go.
	released  bool
	questions []func(context.Context)
}

// draft is a shard's next assignment.
type draft struct {
	id       shard.ID
	entry    *entry
	h        shard.Handover
	value    table.Shard
	outcomes []shard.Outcome
	remove   bool
	// rank is that of its change.
	rank int
}

// change is one key to be written.
type change struct {
	op  kv.Op
	mod int64
	// rank orders changes: what belongs together with a command goes first, as
	// one part, then what is urgent.
	rank  int
	draft *draft
	t     *Term
	now   time.Time
}

const (
	rankCommand = iota
	rankFleet
	rankUrgent
	rankMove
)

// partSize leaves room for the leader's guards.
const partSize = kv.MaxOps - 8

// draft begins a change of a shard that is stored.
func (b *batch) draft(id shard.ID) *draft {
	if d := b.drafts[id]; d != nil {
		return d
	}
	e := b.t.shards[id]
	if e == nil {
		return nil
	}
	d := &draft{id: id, entry: e, h: e.h, value: e.value, rank: rankMove}
	b.drafts[id] = d
	return d
}

// create begins a shard that is not stored.
func (b *batch) create(id shard.ID, r shard.Record, weight float64, hold time.Time) {
	h := shard.Resume(r, b.t.cfg.Limits, b.now)
	e := &entry{h: h, weight: weight, hold: hold}
	b.drafts[id] = &draft{
		id: id, entry: e, h: h, rank: rankMove,
		value: table.Shard{Record: h.Record, Weight: round(weight), Since: b.now},
	}
	b.t.planDue = true
}

// handover is the shard as decided so far.
func (b *batch) handover(id shard.ID) (shard.Handover, bool) {
	if d := b.drafts[id]; d != nil {
		return d.h, !d.remove
	}
	e := b.t.shards[id]
	if e == nil {
		return shard.Handover{}, false
	}
	return e.h, true
}

// step gives an event to a shard.
func (b *batch) step(id shard.ID, e shard.Event) shard.Outcome {
	h, exists := b.handover(id)
	if !exists {
		return shard.Outcome{Ignored: shard.IgnoredIllegal}
	}
	before := h.Record
	next, out := h.Step(e, b.now)
	if out.Ignored != "" {
		return out
	}
	d := b.draft(id)
	d.h = next
	d.outcomes = append(d.outcomes, out)
	after := next.Record
	d.value.Record = after
	if after.Owner != before.Owner || after.Phase != before.Phase {
		d.value.Since = b.now
	}
	if after.Owner != before.Owner && after.Owner != "" {
		from := before.Owner
		if from == "" {
			from = before.Former
		}
		past := table.Past{At: b.now, From: from, To: after.Owner, Epoch: after.Epoch, Reason: after.Reason}
		d.value.Moves = append(slices.Clone(d.value.Moves[max(0, len(d.value.Moves)-4):]), past)
	}
	if before.Phase == shard.PhaseUnowned || after.Phase == shard.PhaseUnowned || e.Kind == shard.EventLost {
		d.rank = min(d.rank, rankUrgent)
	}
	if out.Plan {
		b.t.planDue = true
	}
	return out
}

func (b *batch) put(rank int, key string, mod int64, value any) {
	b.changes = append(b.changes, change{op: kv.Put(key, table.Encode(value), 0), mod: mod, rank: rank})
}

func (b *batch) remove(rank int, key string, mod int64) {
	b.changes = append(b.changes, change{op: kv.Delete(key), mod: mod, rank: rank})
}

// finish turns drafts into changes.
func (b *batch) finish() {
	for id, d := range b.drafts {
		key := b.t.cfg.Layout.Shard(id)
		c := change{mod: d.entry.mod, rank: d.rank, draft: d, t: b.t, now: b.now}
		switch {
		case d.remove && d.entry.mod == 0:
			continue
		case d.remove:
			c.op = kv.Delete(key)
		case d.entry.mod != 0 && d.h.Record == d.entry.value.Record && d.value.Weight == d.entry.value.Weight:
			// Nothing to store; limits and pauses have changed perhaps.
			d.entry.h = d.h
			b.t.cfg.Metrics.outcomes(d, b.now)
			continue
		default:
			c.op = kv.Put(key, table.Encode(d.value), 0)
		}
		b.changes = append(b.changes, c)
	}
}

// parts cuts the changes into transactions.
func (b *batch) parts() [][]change {
	slices.SortStableFunc(b.changes, func(x, y change) int { return x.rank - y.rank })
	return slices.Collect(slices.Chunk(b.changes, partSize))
}

// stored is called when the change has been written.
func (c change) stored(revision int64) {
	d := c.draft
	if d == nil {
		return
	}
	c.t.cfg.Metrics.outcomes(d, c.now)
	c.sweep()
	if d.remove {
		delete(c.t.shards, d.id)
		delete(c.t.queue, d.id)
		return
	}
	d.entry.h, d.entry.value, d.entry.mod = d.h, d.value, revision
	c.t.shards[d.id] = d.entry
}

// doubtful is called when the change may have been written: a sweep too many
// does no harm.
func (c change) doubtful() {
	if c.draft != nil {
		c.sweep()
	}
}

func (c change) sweep() {
	if slices.ContainsFunc(c.draft.outcomes, func(o shard.Outcome) bool { return o.Sweep }) {
		c.t.cfg.Sweep(c.draft.id.Cluster)
	}
}

// round keeps three digits, so that a weight at rest is not written again.
func round(w float64) float64 {
	if !(w >= 1) || math.IsInf(w, 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(w))-2)
	return math.Round(w/unit) * unit
}
