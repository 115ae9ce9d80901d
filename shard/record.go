package shard

import "time"

// Phase is where a shard's hand-over stands.
type Phase string

const (
	// PhaseUnowned has no owner; a plan is to name one.
	PhaseUnowned Phase = "UNOWNED"
	// PhaseOwned is the resting state.
	PhaseOwned Phase = "OWNED"
	// PhasePrepare: Next subscribes, snapshots, buffers and says READY, while
	// Owner writes.
	PhasePrepare Phase = "PREPARE"
	// PhaseRelease: Owner stops its intake, writes out what it holds and says
	// RELEASED. Without a Next the shard is released for good.
	PhaseRelease Phase = "RELEASE"
	// PhaseRaise: Owner raises the fence to Epoch and says that it holds it.
	PhaseRaise Phase = "RAISE"
	// PhaseRetired is a shard that was released for good, as its cluster is cut
	// anew.
	PhaseRetired Phase = "RETIRED"
)

// Phases lists every Phase.
func Phases() []Phase {
	return []Phase{PhaseUnowned, PhaseOwned, PhasePrepare, PhaseRelease, PhaseRaise, PhaseRetired}
}

// Record is the assignment of one shard, as it is stored. Only the coordinator
// writes it; replicas read what they are to do from it: a shard is served by
// Owner at Epoch, and prepared by Next. Fields are only ever added, and readers
// skip what they do not know, as versions run side by side.
type Record struct {
	Epoch Epoch `json:"epoch"`
	// Owner and Next are incarnations.
	Owner  string `json:"owner,omitempty"`
	Next   string `json:"next,omitempty"`
	Phase  Phase  `json:"phase"`
	Reason Reason `json:"reason,omitempty"`
	Pin    Pin    `json:"pin,omitzero"`
	// Attempt counts the hand-overs begun. READY and RELEASED repeat it, so
	// that an answer to one that was given up is not taken for another's.
	Attempt int64 `json:"attempt,omitempty"`
	// Former is, in PhaseRaise, who gets the shard back if Owner does not take
	// it ("" for nobody), and without an owner, who had this epoch.
	Former string `json:"former,omitempty"`
	// Handed says, in PhaseRaise, that the owner before has released the shard in
	// order, also when it has gone since.
	Handed bool `json:"handed,omitempty"`
	// Generation counts the changes of the cluster's number of slices.
	Generation int64 `json:"generation,omitempty"`
}

// Fence is what the owner must hold in the database.
func (r Record) Fence(id ID) Fence {
	return Fence{Shard: id, Epoch: r.Epoch, Owner: r.Owner, Generation: r.Generation}
}

// normalised mends what another version or a damaged store may have left, in
// the direction of doing less: a hand-over that makes no sense is none.
func (r Record) normalised() Record {
	r.Epoch, r.Attempt = max(r.Epoch, 0), max(r.Attempt, 0)
	r.Handed = r.Handed && r.Phase == PhaseRaise
	if r.Next == r.Owner && r.Next != "" {
		r.Next, r.Phase = "", PhaseOwned
	}
	switch {
	case r.Phase == PhaseRetired:
		r.Owner, r.Next = "", ""
	case r.Owner == "":
		r.Phase, r.Next = PhaseUnowned, ""
	case r.Phase == PhaseRelease:
		r.Former = ""
	case r.Phase == PhasePrepare && r.Next != "":
		r.Former = ""
	case r.Phase == PhaseRaise:
		r.Next = ""
		if r.Former == r.Owner {
			r.Former = ""
		}
	default:
		r.Phase, r.Next, r.Former = PhaseOwned, "", ""
	}
	return r
}

// EventKind says what happened; the set is bounded.
type EventKind string

const (
	// EventTick means that time has passed; due at Handover.Wake, harmless at
	// any time.
	EventTick EventKind = "tick"
	// EventMove is a plan's wish that Replica become the owner, for Reason.
	EventMove EventKind = "move"
	// EventCancel is a plan's or an operator's wish to give the hand-over up.
	EventCancel EventKind = "cancel"
	// EventPin sets Pin, an empty one unpins.
	EventPin EventKind = "pin"
	// EventReady and EventUnready are answers of Replica, as Next, to Attempt;
	// the latter also when it finds that it cannot get ready.
	EventReady   EventKind = "ready"
	EventUnready EventKind = "unready"
	// EventReleased is the answer of Replica, as Owner, to Attempt.
	EventReleased EventKind = "released"
	// EventHolds is the word of Replica that it holds the fence at Epoch: after
	// it has raised it, and when it comes back after having been cut off.
	EventHolds EventKind = "holds"
	// EventBehind is the word of Replica, as Owner, that the database refused
	// its fence and has Epoch there.
	EventBehind EventKind = "behind"
	// EventLost means that Replica's lease ended, or that it was proven dead.
	EventLost EventKind = "lost"
	// EventRetire releases the shard for good, EventRevive takes that back.
	EventRetire EventKind = "retire"
	EventRevive EventKind = "revive"
)

// Event is something that happened to a shard. Which fields count depends on
// the Kind.
type Event struct {
	Kind    EventKind
	Replica string
	Reason  Reason
	Epoch   Epoch
	Attempt int64
	Pin     Pin
}

// Outcome is what is to be done after an event.
type Outcome struct {
	// Write means that the record has changed. It must be stored, on condition
	// that nobody else has changed it, before the new Handover counts; if that
	// fails, the Handover is to be loaded anew.
	Write bool
	// Plan asks for a plan: the shard has no owner, or a move of it has ended.
	Plan bool
	// Sweep asks for a sweep of the cluster: a crashed owner may have heard of
	// instances that the cluster has forgotten since.
	Sweep bool
	// Left is the phase that has ended, "" when none has.
	Left Phase
	// Aborted says why a hand-over was given up, "" when none was.
	Aborted Abort
	// Ignored says why the event changed nothing, "" when it did something.
	Ignored Ignored
}

// Abort says why a hand-over was given up; the set is bounded.
type Abort string

// Why a hand-over was given up.
const (
	AbortCancelled Abort = "cancelled" // by a plan or an operator
	AbortTimeout   Abort = "timeout"   // of the phase
	AbortUnready   Abort = "unready"   // the next owner withdrew
	AbortLost      Abort = "lost"      // the next or the old owner is gone
	AbortFenced    Abort = "fenced"    // the database or another claim knew better
)

// Ignored says why an event changed nothing; the set is bounded.
type Ignored string

// Why an event changed nothing.
const (
	IgnoredLate    Ignored = "late"    // of an earlier attempt or epoch, or repeated
	IgnoredBusy    Ignored = "busy"    // the hand-over cannot be redirected now
	IgnoredHeld    Ignored = "held"    // the last one failed a short while ago
	IgnoredEarly   Ignored = "early"   // a tick before its time
	IgnoredIllegal Ignored = "illegal" // makes no sense in any order of events
)

// Limits bound each phase of a hand-over; zero values mean the defaults.
type Limits struct {
	Prepare time.Duration // 30 s
	Release time.Duration // 15 s
	// Raise doubles with each owner in a row that does not raise: a database that is away is no
	// reason to hunt for another owner.
	Raise time.Duration // 10 s
	// Unowned is how often a plan is asked for while there is no owner.
	Unowned time.Duration // 1 s
	// Backoff doubles from here to BackoffMax while moves of a shard fail.
	Backoff    time.Duration // 1 s
	BackoffMax time.Duration // 1 min
}

func (l Limits) withDefaults() Limits {
	fill := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	fill(&l.Prepare, 30*time.Second)
	fill(&l.Release, 15*time.Second)
	fill(&l.Raise, 10*time.Second)
	fill(&l.Unowned, time.Second)
	fill(&l.Backoff, time.Second)
	fill(&l.BackoffMax, time.Minute)
	return l
}
