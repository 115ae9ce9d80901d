package term

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

const (
	// commandsAtOnce bounds a pass, as commands and their effects are one
	// transaction.
	commandsAtOnce = 20
	// commandsKept is how many done ones are kept to be read.
	commandsKept = 100
)

// commands acts on what operators wish, in the order in which they wished it.
func (b *batch) commands() {
	var open, done []string
	for _, key := range slices.Sorted(maps.Keys(b.v.Commands)) {
		if b.v.Commands[key].Value.Done.IsZero() {
			open = append(open, key)
		} else {
			done = append(done, key)
		}
	}
	byAge := func(x, y string) int { return int(b.v.Commands[x].Create - b.v.Commands[y].Create) }
	slices.SortStableFunc(open, byAge)
	cuts := make(map[string]bool)
	for _, key := range open[:min(len(open), commandsAtOnce)] {
		stored := b.v.Commands[key]
		c := stored.Value
		if err := b.command(c, cuts); err != nil {
			c.Refused = err.Error()
		}
		c.Done = b.now
		b.put(rankCommand, b.t.cfg.Layout.Command(key), stored.Mod, c)
		b.t.planDue = true
		b.t.cfg.Logger.Info("an operator's command", "command", string(c.Kind), "shard", c.Shard, "replica", c.Replica,
			"cluster", c.Cluster, "slices", c.Slices, "reason", c.Reason, "author", c.Author, "refused", c.Refused)
	}
	slices.SortStableFunc(done, byAge)
	for _, key := range done[:min(max(0, len(done)-commandsKept), commandsAtOnce)] {
		b.remove(rankFleet, b.t.cfg.Layout.Command(key), b.v.Commands[key].Mod)
	}
}

func (b *batch) command(c table.Command, cuts map[string]bool) error {
	if !c.Until.IsZero() && !b.now.Before(c.Until) {
		return fmt.Errorf("it had lapsed already")
	}
	switch c.Kind {
	case table.Pin, table.Unpin:
		id, err := shard.ParseID(c.Shard)
		if err != nil {
			return err
		}
		if _, exists := b.handover(id); !exists {
			return fmt.Errorf("there is no shard %s", id)
		}
		pin := shard.Pin{}
		if c.Kind == table.Pin {
			if c.Replica == "" {
				return fmt.Errorf("a pin needs a replica")
			}
			pin = shard.Pin{Replica: c.Replica, Until: c.Until, Reason: c.Reason, Author: c.Author}
		}
		if b.step(id, shard.Event{Kind: shard.EventPin, Pin: pin}).Ignored == "" {
			b.drafts[id].rank = rankCommand
		}
	case table.DrainReplica:
		if c.Replica == "" {
			return fmt.Errorf("a drain needs a replica")
		}
		b.drain(c.Replica, table.Drain{At: b.now, Until: c.Until, Reason: c.Reason, Author: c.Author})
	case table.Undrain:
		b.undrain(c.Replica)
	case table.Freeze:
		b.fleet.Freeze = shard.Freeze{On: true, Until: c.Until, Reason: c.Reason, Author: c.Author}
	case table.Unfreeze:
		b.fleet.Freeze = shard.Freeze{}
	case table.BrakeRelease:
		b.fleet.Brake, b.released = b.fleet.Brake.Release(b.now), true
	case table.Slices:
		return b.cut(c, cuts)
	default:
		return fmt.Errorf("this version knows no command %q", c.Kind)
	}
	return nil
}

// replace puts a change in the place of an earlier one of this pass.
func (b *batch) replace(key string) {
	b.changes = slices.DeleteFunc(b.changes, func(c change) bool { return c.op.Key == key })
}

func (b *batch) drain(name string, d table.Drain) {
	key := b.t.cfg.Layout.Drain(name)
	b.replace(key)
	b.drains[name] = d
	d.Extra = b.v.Drains[name].Value.Extra
	b.put(rankCommand, key, b.v.Drains[name].Mod, d)
}

func (b *batch) undrain(name string) {
	key := b.t.cfg.Layout.Drain(name)
	b.replace(key)
	delete(b.drains, name)
	if stored := b.v.Drains[name]; stored.Exists() {
		b.remove(rankCommand, key, stored.Mod)
	}
}

// cut begins to cut a cluster anew.
func (b *batch) cut(c table.Command, cuts map[string]bool) error {
	list, known := b.t.cfg.Clusters()
	stored := b.v.Clusters[c.Cluster]
	from := max(stored.Value.Slices, 1)
	switch {
	case !known || !slices.ContainsFunc(list, func(x Cluster) bool { return x.Name == c.Cluster }):
		return fmt.Errorf("there is no cluster %q", c.Cluster)
	case c.Slices < 1 || c.Slices > shard.MaxSlices:
		return fmt.Errorf("%d slices: from 1 to %d are possible", c.Slices, shard.MaxSlices)
	case stored.Value.Reslice != nil || cuts[c.Cluster]:
		return fmt.Errorf("%s is being cut anew already", c.Cluster)
	case from == c.Slices:
		return nil
	}
	cuts[c.Cluster] = true
	generation := stored.Value.Generation
	for _, id := range shard.Slices(c.Cluster, from) {
		if h, exists := b.handover(id); exists {
			generation = max(generation, h.Record.Generation)
		}
	}
	re := shard.NewReslice(c.Cluster, from, c.Slices, generation+1, b.now)
	re.Reason, re.Author = c.Reason, c.Author
	value := stored.Value
	value.Reslice = &re
	b.put(rankCommand, b.t.cfg.Layout.Cluster(c.Cluster), stored.Mod, value)
	return nil
}

// observe sets what is seen of the fleet between passes.
func (t *Term) observe(now time.Time) {
	unowned, oldest := 0, time.Duration(0)
	for _, e := range t.shards {
		if e.h.Record.Phase == shard.PhaseUnowned || e.h.Record.Phase == shard.PhaseRaise && e.h.Record.Former == "" {
			unowned++
			oldest = max(oldest, now.Sub(e.value.Since))
		}
	}
	t.cfg.Metrics.Unowned.Set(float64(unowned))
	t.cfg.Metrics.UnownedSeconds.Set(oldest.Seconds())
}
