package shard

import "time"

// Brake is what the planner remembers of a sudden loss of many replicas. The
// others would be crushed by what the lost ones carried, and a loss like that
// is more often a network that fails than that many machines. A loss counts for
// one lease time, so a plan is to be made whenever a replica is lost.
//
// The zero value is a brake that is off.
type Brake struct {
	// Since is when it was applied, zero when it is off.
	Since time.Time `json:"since,omitzero"`
	// Roster is how many replicas there were then.
	Roster int `json:"roster,omitempty"`
	// Limited means that its time is over: shards move again, but no replica
	// is loaded above its Cap, until all shards have an owner.
	Limited bool `json:"limited,omitempty"`
	// Cleared is when it was let go last; losses up to then count no more.
	Cleared time.Time `json:"cleared,omitzero"`
}

// Holds says that nothing moves.
func (b Brake) Holds() bool { return !b.Since.IsZero() && !b.Limited }

// Release lets the brake go, as an operator wished. It does not come back for
// the same loss.
func (b Brake) Release(now time.Time) Brake { return Brake{Cleared: now} }

// next is the brake as of now. Replicas are counted by name: one that has
// started anew has returned. One that was draining was told to go, and is no
// loss, however soon its lease ended.
func (b Brake) next(replicas []Replica, s Settings, now time.Time) Brake {
	alive := map[string]bool{}
	for _, r := range replicas {
		if r.Gone.IsZero() {
			alive[r.name()] = true
		}
	}
	if !b.Since.IsZero() {
		switch {
		case 2*len(alive) >= b.Roster:
			return b.Release(now)
		case !now.Before(b.Since.Add(s.BrakeFor)):
			b.Limited = true
		}
		return b
	}
	lost := map[string]bool{}
	for _, r := range replicas {
		if !r.Gone.IsZero() && !r.Draining && !alive[r.name()] && r.Gone.After(b.Cleared) && r.Gone.After(now.Add(-s.Lease)) {
			lost[r.name()] = true
		}
	}
	if len(lost) > len(alive) {
		return Brake{Since: now, Roster: len(alive) + len(lost), Cleared: b.Cleared}
	}
	return b
}

func (r Replica) name() string {
	if r.Name == "" {
		return r.ID
	}
	return r.Name
}
