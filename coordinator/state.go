package coordinator

import (
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// State is what this replica knows of the fleet.
type State struct {
	// Known says that the table has been read at all; Detached that this replica
	// is cut off from the store, so that the rest may be old.
	Known, Detached bool
	Leader          table.Leader
	Shards          []ShardState
	Replicas        []ReplicaState
	Clusters        map[string]table.Cluster
	Drains          map[string]table.Drain
	Brake           shard.Brake
	Freeze          shard.Freeze
	// Commands are the last ones, oldest first.
	Commands []Command
}

// ShardState is one shard.
type ShardState struct {
	ID shard.ID
	// Stored is the assignment, with the intended epoch, weight, reason, pin and
	// last moves.
	Stored table.Shard
	// Observed is the epoch under which its owner says that it writes, 0 for
	// none; on the owner itself it is what it does.
	Observed shard.Epoch
	// Measured is what its owner measures.
	Measured Measured
}

// ReplicaState is one replica.
type ReplicaState struct {
	Incarnation string
	Member      table.Member
	Joined      time.Time
	// Gone is when it was found gone, zero while it lives.
	Gone     time.Time
	Draining bool
	// Heard is when it told its loads last, by its own clock.
	Heard time.Time
	// Load is the weight of its shards.
	Load   float64
	Shards int
}

// State returns what is known, and a channel that is closed when that has
// changed.
func (c *Coordinator) State() (State, <-chan struct{}) {
	changed := c.link.Changed()
	held := c.duties.Held()
	s := State{Detached: c.Detached()}
	c.link.Look(func(v *table.View) {
		s.Known = v.Revision != 0
		s.Leader, s.Brake, s.Freeze = v.Leader.Value, v.Fleet.Value.Brake, v.Fleet.Value.Freeze
		s.Clusters, s.Drains = make(map[string]table.Cluster), make(map[string]table.Drain)
		for name, cluster := range v.Clusters {
			s.Clusters[name] = cluster.Value
		}
		for name, drain := range v.Drains {
			s.Drains[name] = drain.Value
		}
		for _, command := range v.Commands {
			s.Commands = append(s.Commands, command.Value)
		}
		s.Shards = c.shardStates(v, held)
		s.Replicas = replicaStates(v)
	})
	slices.SortFunc(s.Commands, func(a, b Command) int { return a.At.Compare(b.At) })
	return s, changed
}

func (c *Coordinator) shardStates(v *table.View, held map[shard.ID]shard.Fence) []ShardState {
	list := make([]ShardState, 0, len(v.Shards))
	for id, stored := range v.Shards {
		st := ShardState{ID: id, Stored: stored.Value}
		st.Stored.Moves = slices.Clone(stored.Value.Moves)
		owner := stored.Value.Owner
		if a := v.Answers[id][owner].Value; a.Kind == table.Holds {
			st.Observed = a.Epoch
		}
		if fence, ours := held[id]; ours {
			st.Observed = fence.Epoch
		}
		st.Measured = v.Loads[owner].Value.Shards[id.String()]
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b ShardState) int { return a.ID.Compare(b.ID) })
	return list
}

func replicaStates(v *table.View) []ReplicaState {
	all := make(map[string]*ReplicaState)
	for who, r := range v.Roster {
		all[who] = &ReplicaState{
			Incarnation: who, Member: table.Member{Name: r.Value.Name, Revision: r.Value.Revision},
			Joined: r.Value.Joined, Gone: r.Value.Gone, Draining: r.Value.Draining,
		}
	}
	for who, m := range v.Members {
		if all[who] == nil {
			all[who] = &ReplicaState{Incarnation: who, Joined: m.Value.Started}
		}
		all[who].Member, all[who].Heard = m.Value, v.Loads[who].Value.At
		drain, drained := v.Drains[m.Value.Name]
		all[who].Draining = m.Value.Draining || drained && drain.Value.Active(time.Now())
	}
	for _, stored := range v.Shards {
		if r := all[stored.Value.Owner]; r != nil {
			r.Load += stored.Value.Weight
			r.Shards++
		}
	}
	list := make([]ReplicaState, 0, len(all))
	for _, r := range all {
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b ReplicaState) int { return strings.Compare(a.Incarnation, b.Incarnation) })
	return list
}

// Detached says that this replica is cut off from the store: it goes on with
// what it holds.
func (c *Coordinator) Detached() bool { return !c.left.Load() && !c.link.Trusted() }

// Leading says that this replica leads, as far as it knows. What is done in that
// role is safe by what the store and the database check, not by this.
func (c *Coordinator) Leading() bool { return c.leading.Load() }

// Held lists the fences under which this replica writes.
func (c *Coordinator) Held() map[shard.ID]shard.Fence { return c.duties.Held() }
