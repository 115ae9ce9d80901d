package api

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// converter tells of one state, as of one time.
type converter struct {
	state coordinator.State
	now   time.Time
	names map[string]string // of replicas, by incarnation
}

func newConverter(state coordinator.State, now time.Time) *converter {
	c := &converter{state: state, now: now, names: make(map[string]string, len(state.Replicas))}
	for _, r := range state.Replicas {
		c.names[r.Incarnation] = r.Member.Name
	}
	return c
}

// ref names a process; nil for none.
func (c *converter) ref(incarnation string) *trestlev1.ReplicaRef {
	if incarnation == "" {
		return nil
	}
	return &trestlev1.ReplicaRef{Name: c.names[incarnation], Incarnation: incarnation}
}

// lapsed says whether something is over that holds until then.
func (c *converter) lapsed(until time.Time) bool { return !until.IsZero() && !c.now.Before(until) }

func (c *converter) shard(s *coordinator.ShardState) *trestlev1.Shard {
	stored := s.Stored
	out := &trestlev1.Shard{
		Id: s.ID.String(), Cluster: s.ID.Cluster, Slice: int32(s.ID.Slice), Slices: int32(max(s.ID.Slices, 1)),
		Owner: c.ref(stored.Owner), Next: c.ref(stored.Next), Former: c.ref(stored.Former),
		EpochIntended: int64(stored.Epoch), EpochObserved: int64(s.Observed), Generation: stored.Generation,
		Phase: phase(stored.Phase), Weight: stored.Weight, Reason: reason(stored.Reason), Text: stored.Text,
		Since: timestamp(stored.Since),
	}
	if m := s.Measured; m != (coordinator.Measured{}) {
		out.Measured = &trestlev1.Measurement{
			Rate: m.Rate, LiveInstances: int64(m.Live), Lag: durationpb.New(m.Lag), LastEvent: timestamp(m.LastEvent), Deaf: m.Deaf,
		}
	}
	if p := stored.Pin; p.Replica != "" && !c.lapsed(p.Until) {
		out.Pin = &trestlev1.Pin{Replica: p.Replica, Until: timestamp(p.Until), Reason: p.Reason, Author: p.Author}
	}
	for _, m := range stored.Moves {
		out.Moves = append(out.Moves, &trestlev1.PastMove{
			At: timestamp(m.At), From: c.ref(m.From), To: c.ref(m.To), Epoch: int64(m.Epoch), Reason: reason(m.Reason),
		})
	}
	return out
}

func (c *converter) replica(r *coordinator.ReplicaState, me string) *trestlev1.Replica {
	out := &trestlev1.Replica{
		Name: r.Member.Name, Incarnation: r.Incarnation, Revision: r.Member.Revision, PeerAddress: r.Member.Peer,
		State: trestlev1.ReplicaState_REPLICA_STATE_LIVE,
		Load:  r.Load, Cap: r.Member.Cap, Capacity: r.Member.Capacity, Shards: int32(r.Shards),
		Joined: timestamp(r.Joined), Heard: timestamp(r.Heard), Gone: timestamp(r.Gone),
		Leads: r.Incarnation == c.state.Leader.Incarnation, Answers: r.Incarnation == me,
		Drain: c.drain(r.Member.Name),
	}
	switch {
	case !r.Gone.IsZero():
		out.State = trestlev1.ReplicaState_REPLICA_STATE_GONE
	case r.Draining:
		out.State = trestlev1.ReplicaState_REPLICA_STATE_DRAINING
	}
	if out.Capacity <= 0 {
		out.Capacity = 1 // what it counts as
	}
	return out
}

// drain is that of a replica's name; nil if there is none, or no more.
func (c *converter) drain(name string) *trestlev1.Drain {
	d, drained := c.state.Drains[name]
	if !drained || !d.Active(c.now) {
		return nil
	}
	return &trestlev1.Drain{Replica: name, At: timestamp(d.At), Until: timestamp(d.Until), Reason: d.Reason, Author: d.Author}
}

func (c *converter) fleet(me string) *trestlev1.Fleet {
	out := &trestlev1.Fleet{Answering: c.ref(me), Detached: c.state.Detached}
	if l := c.state.Leader; l.Incarnation != "" {
		out.Leader = &trestlev1.ReplicaRef{Name: l.Name, Incarnation: l.Incarnation}
		out.LeadsSince = timestamp(l.Since)
	}
	if f := c.state.Freeze; f.On && !c.lapsed(f.Until) {
		out.Freeze = &trestlev1.Freeze{Until: timestamp(f.Until), Reason: f.Reason, Author: f.Author}
	}
	if b := c.state.Brake; !b.Since.IsZero() {
		out.Brake = &trestlev1.Brake{Since: timestamp(b.Since), Roster: int32(b.Roster), Limited: b.Limited}
	}
	return out
}

func (c *converter) preference(r shard.Ranked) *trestlev1.Preference {
	return &trestlev1.Preference{
		Replica: c.ref(r.Replica), Score: r.Score, Load: r.Load, Fair: r.Fair, Cap: r.Cap, Draining: r.Draining,
	}
}

func (c *converter) move(m shard.Move) *trestlev1.PlannedMove {
	return &trestlev1.PlannedMove{Shard: m.Shard.String(), From: c.ref(m.From), To: c.ref(m.To), Reason: reason(m.Reason), Text: m.Text}
}

func reslice(r *shard.Reslice) *trestlev1.Reslice {
	if r == nil {
		return nil
	}
	out := &trestlev1.Reslice{
		From: int32(r.From), To: int32(r.To), Generation: r.Generation, Reason: r.Reason, Author: r.Author,
	}
	switch r.Phase {
	case shard.ResliceRelease:
		out.Phase = trestlev1.ReslicePhase_RESLICE_PHASE_RELEASE
	case shard.ResliceFence:
		out.Phase = trestlev1.ReslicePhase_RESLICE_PHASE_FENCE
	case shard.ResliceBack:
		out.Phase = trestlev1.ReslicePhase_RESLICE_PHASE_BACK
	case shard.ResliceDone:
		out.Phase = trestlev1.ReslicePhase_RESLICE_PHASE_DONE
	case shard.ResliceAborted:
		out.Phase = trestlev1.ReslicePhase_RESLICE_PHASE_ABORTED
	}
	return out
}

func proposal(p shard.Proposal) *trestlev1.Proposal {
	return &trestlev1.Proposal{Cluster: p.Cluster, Slices: int32(p.Slices), Text: p.Text}
}

func imbalance(i shard.Imbalance) *trestlev1.Imbalance {
	return &trestlev1.Imbalance{Max: i.Max, Mean: i.Mean, Heaviest: i.Heaviest, Ratio: i.Ratio()}
}

func command(c coordinator.Command) *trestlev1.Command {
	out := &trestlev1.Command{
		Kind: commandKind(c.Kind), Shard: c.Shard, Replica: c.Replica, Cluster: c.Cluster, Slices: int32(c.Slices),
		Reason: c.Reason, Author: c.Author, At: timestamp(c.At), Until: timestamp(c.Until), Done: timestamp(c.Done), Refused: c.Refused,
	}
	switch {
	case c.Done.IsZero():
		out.State = trestlev1.CommandState_COMMAND_STATE_WAITING
	case c.Refused != "":
		out.State = trestlev1.CommandState_COMMAND_STATE_REFUSED
	default:
		out.State = trestlev1.CommandState_COMMAND_STATE_DONE
	}
	return out
}

// What another version has written and this one does not know is unspecified.

func phase(p shard.Phase) trestlev1.ShardPhase {
	switch p {
	case shard.PhaseUnowned:
		return trestlev1.ShardPhase_SHARD_PHASE_UNOWNED
	case shard.PhaseOwned:
		return trestlev1.ShardPhase_SHARD_PHASE_OWNED
	case shard.PhasePrepare:
		return trestlev1.ShardPhase_SHARD_PHASE_PREPARE
	case shard.PhaseRelease:
		return trestlev1.ShardPhase_SHARD_PHASE_RELEASE
	case shard.PhaseRaise:
		return trestlev1.ShardPhase_SHARD_PHASE_RAISE
	case shard.PhaseRetired:
		return trestlev1.ShardPhase_SHARD_PHASE_RETIRED
	}
	return trestlev1.ShardPhase_SHARD_PHASE_UNSPECIFIED
}

func reason(r shard.Reason) trestlev1.Reason {
	switch r {
	case shard.ReasonNew:
		return trestlev1.Reason_REASON_NEW
	case shard.ReasonOrphan:
		return trestlev1.Reason_REASON_ORPHAN
	case shard.ReasonPin:
		return trestlev1.Reason_REASON_PIN
	case shard.ReasonDrain:
		return trestlev1.Reason_REASON_DRAIN
	case shard.ReasonUpgrade:
		return trestlev1.Reason_REASON_UPGRADE
	case shard.ReasonJoin:
		return trestlev1.Reason_REASON_JOIN
	case shard.ReasonLevel:
		return trestlev1.Reason_REASON_LEVEL
	case shard.ReasonResumed:
		return trestlev1.Reason_REASON_RESUMED
	case shard.ReasonReturn:
		return trestlev1.Reason_REASON_RETURN
	case shard.ReasonReslice:
		return trestlev1.Reason_REASON_RESLICE
	}
	return trestlev1.Reason_REASON_UNSPECIFIED
}

func unplacedReason(w shard.Why) trestlev1.UnplacedReason {
	switch w {
	case shard.WhyBrake:
		return trestlev1.UnplacedReason_UNPLACED_REASON_BRAKE
	case shard.WhyNobody:
		return trestlev1.UnplacedReason_UNPLACED_REASON_NOBODY
	case shard.WhyCap:
		return trestlev1.UnplacedReason_UNPLACED_REASON_CAP
	}
	return trestlev1.UnplacedReason_UNPLACED_REASON_UNSPECIFIED
}

func commandKind(k table.CommandKind) trestlev1.CommandKind {
	switch k {
	case coordinator.CommandPin:
		return trestlev1.CommandKind_COMMAND_KIND_PIN
	case coordinator.CommandUnpin:
		return trestlev1.CommandKind_COMMAND_KIND_UNPIN
	case coordinator.CommandDrain:
		return trestlev1.CommandKind_COMMAND_KIND_DRAIN
	case coordinator.CommandUndrain:
		return trestlev1.CommandKind_COMMAND_KIND_UNDRAIN
	case coordinator.CommandFreeze:
		return trestlev1.CommandKind_COMMAND_KIND_FREEZE
	case coordinator.CommandUnfreeze:
		return trestlev1.CommandKind_COMMAND_KIND_UNFREEZE
	case coordinator.CommandSlices:
		return trestlev1.CommandKind_COMMAND_KIND_SET_SLICES
	case coordinator.CommandBrakeRelease:
		return trestlev1.CommandKind_COMMAND_KIND_RELEASE_BRAKE
	}
	return trestlev1.CommandKind_COMMAND_KIND_UNSPECIFIED
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
