package main

import (
	"fmt"
	"strings"
	"time"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// Enums, for people.

func phaseName(p trestlev1.ShardPhase) string {
	return strings.TrimPrefix(p.String(), "SHARD_PHASE_")
}

func reasonName(r trestlev1.Reason) string {
	if r == trestlev1.Reason_REASON_UNSPECIFIED {
		return "-"
	}
	return strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))
}

func stateName(s trestlev1.ReplicaState) string {
	return strings.TrimPrefix(s.String(), "REPLICA_STATE_")
}

func kindName(k trestlev1.CommandKind) string {
	switch k {
	case trestlev1.CommandKind_COMMAND_KIND_SET_SLICES:
		return "slices"
	case trestlev1.CommandKind_COMMAND_KIND_RELEASE_BRAKE:
		return "brake release"
	}
	return strings.ToLower(strings.TrimPrefix(k.String(), "COMMAND_KIND_"))
}

func unplacedText(r trestlev1.UnplacedReason) string {
	switch r {
	case trestlev1.UnplacedReason_UNPLACED_REASON_BRAKE:
		return "the brake holds"
	case trestlev1.UnplacedReason_UNPLACED_REASON_NOBODY:
		return "no replica takes shards"
	case trestlev1.UnplacedReason_UNPLACED_REASON_CAP:
		return "after a loss of many, all others are full"
	}
	return "no owner is found"
}

func reslicePhase(r trestlev1.ReslicePhase) string {
	switch r {
	case trestlev1.ReslicePhase_RESLICE_PHASE_RELEASE:
		return "the old shards are being released"
	case trestlev1.ReslicePhase_RESLICE_PHASE_FENCE:
		return "the database is to end their generation"
	case trestlev1.ReslicePhase_RESLICE_PHASE_BACK:
		return "one was not released in time, and they all go on"
	}
	return strings.ToLower(strings.TrimPrefix(r.String(), "RESLICE_PHASE_"))
}

// who names a replica: the name, or the process when that name is forgotten.
func who(r *trestlev1.ReplicaRef) string {
	switch {
	case r == nil:
		return "-"
	case r.GetName() == "":
		return r.GetIncarnation()
	}
	return r.GetName()
}

// epoch is what the owner is to write under, and what it does if that differs.
func epoch(s *trestlev1.Shard) string {
	intended, observed := s.GetEpochIntended(), s.GetEpochObserved()
	switch {
	case intended == observed, s.GetOwner() == nil:
		return fmt.Sprint(intended)
	case observed == 0:
		return fmt.Sprintf("%d (held: none)", intended)
	}
	return fmt.Sprintf("%d (held: %d)", intended, observed)
}

func pinned(g *page, p *trestlev1.Pin) string {
	if p == nil {
		return "-"
	}
	return p.GetReplica() + g.ends(p.GetUntil())
}

func lag(m *trestlev1.Measurement) string {
	switch d := m.GetLag().AsDuration(); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(100 * time.Millisecond).String()
	}
}

// number has no more digits than anybody wants to read.
func number(v float64) string {
	if v >= 100 || v == float64(int64(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// limit is a cap; 0 is none.
func limit(v float64) string {
	if v <= 0 {
		return "-"
	}
	return number(v)
}

// concerns shows what concerns the whole fleet.
func (g *page) concerns(f *trestlev1.Fleet) {
	if f.GetLeader() == nil {
		g.line("Nobody leads: nothing is moved until a replica does.")
	} else {
		g.line("%s leads since %s.", who(f.GetLeader()), g.age(f.GetLeadsSince()))
	}
	if z := f.GetFreeze(); z != nil {
		g.line("Frozen%s by %s: %s. Only shards without an owner move; trestlectl unfreeze ends it.", g.ends(z.GetUntil()), z.GetAuthor(), z.GetReason())
	}
	switch b := f.GetBrake(); {
	case b == nil:
	case b.GetLimited():
		g.line("More than half of %d replicas were lost %s ago: shards move within the caps alone until each has an owner.", b.GetRoster(), g.age(b.GetSince()))
	default:
		g.line("BRAKE: more than half of %d replicas were lost %s ago, and nothing moves; trestlectl brake release ends it.", b.GetRoster(), g.age(b.GetSince()))
	}
}
