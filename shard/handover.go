package shard

import "time"

// maxEpoch is far above what any shard reaches, and far enough below the end
// of the type that a few more fit. A claim above it is damage.
const maxEpoch Epoch = 1 << 60

// Handover is a shard's assignment in motion. It is a value: Step returns the
// next one, and the coordinator keeps it once its record is stored. Nothing but
// the record outlives the leader; its successor begins with Resume, and each
// time limit begins anew.
//
//	            move               ready              released           holds
//	OWNED -----------> PREPARE -----------> RELEASE -----------> RAISE --------> OWNED
//	  ^                   |                    |                   |
//	  +--- unready, lost, cancel, timeout -----+     lost, timeout: back to the former
//	                                                 owner by a RAISE of its own, or UNOWNED
//
// When the owner is lost, its next owner goes to RAISE at once, or the shard is
// UNOWNED until a move names one.
//
// The next owner hears RELEASED together with the coordinator, and does not wait
// until RAISE is stored (see Succeeded). Its claim may come first: then RELEASE
// goes to OWNED.
type Handover struct {
	Record Record
	limits Limits
	// due is when the phase ends by itself, zero when it does not.
	due time.Time
	// Moves that failed in a row, and owners in a row that did not raise.
	failures, unraised int
	hold               time.Time
	avoid              string
}

// Resume takes a stored record up; the zero Record is a shard never owned.
func Resume(r Record, limits Limits, now time.Time) Handover {
	h := Handover{Record: r.normalised(), limits: limits.withDefaults()}
	h.arm(now)
	if h.Record.Phase == PhaseUnowned {
		h.due = now
	}
	return h
}

// Wake is when the next EventTick is due; zero when nothing is waited for.
func (h Handover) Wake() time.Time { return h.due }

// Shard is how the planner sees it.
func (h Handover) Shard(id ID, weight float64) Shard {
	r := h.Record
	return Shard{
		ID: id, Weight: weight, Owner: r.Owner, Next: r.Next, Former: r.Former, Pin: r.Pin,
		Busy: r.Phase == PhaseRelease || r.Phase == PhaseRaise || r.Phase == PhaseRetired,
		Hold: h.hold, Avoid: h.avoid, Cut: r.Reason == ReasonReslice && r.Former == "" && r.Owner == "",
	}
}

// Step is what follows from an event. It never panics; events that do not fit
// are ignored, with the reason in the Outcome.
func (h Handover) Step(e Event, now time.Time) (Handover, Outcome) {
	if h.limits == (Limits{}) {
		h = Resume(h.Record, Limits{}, now)
	}
	before := h.Record
	out := h.step(e, now)
	if out.Ignored != "" {
		return h, out
	}
	out.Write = h.Record != before
	if h.Record.Phase != before.Phase {
		out.Left = before.Phase
	}
	return h, out
}

func ignored(why Ignored) Outcome { return Outcome{Ignored: why} }

func (h *Handover) step(e Event, now time.Time) Outcome {
	switch e.Kind {
	case EventTick:
		return h.tick(now)
	case EventMove:
		return h.move(e, now)
	case EventCancel:
		if h.Record.Phase == PhasePrepare || h.Record.Phase == PhaseRelease {
			return h.back(AbortCancelled, now)
		}
		return h.unfit()
	case EventPin:
		if h.Record.Pin == e.Pin {
			return ignored(IgnoredLate)
		}
		h.Record.Pin = e.Pin
		return Outcome{Plan: true}
	case EventReady, EventUnready, EventReleased:
		return h.answer(e, now)
	case EventHolds:
		return h.holds(e, now)
	case EventBehind:
		return h.behind(e, now)
	case EventLost:
		return h.lost(e.Replica, now)
	case EventRetire:
		return h.retire(now)
	case EventRevive:
		if h.Record.Phase != PhaseRetired {
			return ignored(IgnoredLate)
		}
		h.enter(PhaseUnowned, now)
		return Outcome{Plan: true}
	}
	return ignored(IgnoredIllegal)
}

// unfit is the answer to a wish that the phase does not allow.
func (h *Handover) unfit() Outcome {
	if h.Record.Phase == PhaseRaise || h.Record.Phase == PhaseRelease {
		return ignored(IgnoredBusy)
	}
	return ignored(IgnoredLate)
}

// enter begins a phase and its time limit.
func (h *Handover) enter(phase Phase, now time.Time) {
	h.Record.Phase, h.Record.Handed = phase, false
	h.arm(now)
}

func (h *Handover) arm(now time.Time) {
	switch h.Record.Phase {
	case PhaseUnowned:
		h.due = now.Add(h.limits.Unowned)
	case PhasePrepare:
		h.due = now.Add(h.limits.Prepare)
	case PhaseRelease:
		h.due = now.Add(h.limits.Release)
	case PhaseRaise:
		h.due = now.Add(h.limits.Raise << min(h.unraised, 4))
	default:
		h.due = time.Time{}
	}
}

// grant gives the shard to an owner at a new epoch; this is the only place, save
// for claims that the database has proven, where an owner is named.
func (h *Handover) grant(owner, former string, reason Reason, now time.Time) {
	r := &h.Record
	if former == owner {
		former = ""
	}
	r.Epoch++
	r.Owner, r.Former, r.Next, r.Reason = owner, former, "", reason
	h.enter(PhaseRaise, now)
}

// back leaves the shard with the owner that it has. That owner may have stopped
// its intake already; it takes it up again when it reads the record, and its
// epoch still holds.
func (h *Handover) back(why Abort, now time.Time) Outcome {
	h.Record.Next, h.Record.Former, h.Record.Reason = "", "", ReasonReturn
	if why == AbortTimeout || why == AbortUnready {
		h.fail(now)
	}
	h.enter(PhaseOwned, now)
	return Outcome{Plan: true, Aborted: why}
}

// Succeeded is the record of a shard after its owner has said, in answer to this
// attempt, that it has released it. Nothing but that answer decides, so its next
// owner need not wait until the coordinator has stored it: it may raise the fence
// that the record grants. If the coordinator has decided otherwise meanwhile, its
// next epoch is above that one. Any other record stays as it is.
func (r Record) Succeeded(attempt int64) Record {
	if r.Phase != PhaseRelease || r.Next == "" {
		return r
	}
	h, _ := Handover{Record: r}.Step(Event{Kind: EventReleased, Replica: r.Owner, Attempt: attempt}, time.Time{})
	return h.Record
}

// orphan leaves the shard without an owner until a plan names one.
func (h *Handover) orphan(reason Reason, now time.Time) {
	r := &h.Record
	r.Former, r.Owner, r.Next, r.Reason = r.Owner, "", "", reason
	h.enter(PhaseUnowned, now)
}

func (h *Handover) fail(now time.Time) {
	wait := min(h.limits.Backoff<<min(h.failures, 10), h.limits.BackoffMax)
	h.failures++
	h.hold = now.Add(wait)
}

// settle ends a hand-over that went well, whatever failed before it.
func (h *Handover) settle(now time.Time) {
	h.Record.Next, h.Record.Former = "", ""
	h.failures, h.unraised, h.hold, h.avoid = 0, 0, time.Time{}, ""
	h.enter(PhaseOwned, now)
}

func (h *Handover) move(e Event, now time.Time) Outcome {
	r := &h.Record
	if e.Replica == "" {
		return ignored(IgnoredIllegal)
	}
	switch r.Phase {
	case PhaseUnowned:
		reason := e.Reason
		if r.Reason == ReasonOrphan {
			// However often the successor changes, the crash is not yet mended.
			reason = ReasonOrphan
		}
		h.grant(e.Replica, "", reason, now)
		return Outcome{}
	case PhaseOwned:
		if e.Replica == r.Owner {
			return ignored(IgnoredLate)
		}
		if now.Before(h.hold) {
			return ignored(IgnoredHeld)
		}
		h.prepare(e, now)
		return Outcome{}
	case PhasePrepare:
		switch e.Replica {
		case r.Next:
			return ignored(IgnoredLate)
		case r.Owner:
			return h.back(AbortCancelled, now)
		}
		h.prepare(e, now)
		return Outcome{Aborted: AbortCancelled}
	}
	return h.unfit()
}

func (h *Handover) prepare(e Event, now time.Time) {
	h.Record.Attempt++
	h.Record.Next, h.Record.Reason = e.Replica, e.Reason
	h.enter(PhasePrepare, now)
}

func (h *Handover) answer(e Event, now time.Time) Outcome {
	r := &h.Record
	if e.Replica == "" {
		return ignored(IgnoredIllegal)
	}
	if e.Attempt != r.Attempt {
		return ignored(IgnoredLate)
	}
	switch {
	case e.Kind == EventReady && r.Phase == PhasePrepare && e.Replica == r.Next:
		h.enter(PhaseRelease, now)
		return Outcome{}
	case e.Kind == EventUnready && e.Replica == r.Next:
		h.avoid = r.Next
		return h.back(AbortUnready, now)
	case e.Kind == EventReleased && r.Phase == PhaseRelease && e.Replica == r.Owner:
		if r.Next == "" {
			h.retired(now)
			return Outcome{}
		}
		h.grant(r.Next, r.Owner, r.Reason, now)
		r.Handed = true
		return Outcome{}
	}
	return ignored(IgnoredLate)
}

func (h *Handover) holds(e Event, now time.Time) Outcome {
	r := &h.Record
	if e.Replica == "" || e.Epoch <= 0 || e.Epoch > maxEpoch {
		return ignored(IgnoredIllegal)
	}
	if r.Phase == PhaseRetired || e.Epoch < r.Epoch {
		return ignored(IgnoredLate)
	}
	if r.Phase == PhaseRelease && e.Replica == r.Next && e.Epoch == r.Epoch+1 {
		// It has read itself that the owner has released.
		h.grant(r.Next, r.Owner, r.Reason, now)
	}
	if e.Epoch > r.Epoch {
		// The store of the assignments is older than the database, as it was
		// lost or restored. Who holds the fence goes on with the shard.
		var out Outcome
		if r.Phase == PhasePrepare || r.Phase == PhaseRelease {
			out.Aborted = AbortFenced
		}
		r.Epoch, r.Owner, r.Reason = e.Epoch, e.Replica, ReasonResumed
		h.settle(now)
		out.Plan = true
		return out
	}
	switch {
	case r.Phase == PhaseRaise && e.Replica == r.Owner:
		sweep := r.Reason == ReasonOrphan
		h.settle(now)
		return Outcome{Sweep: sweep}
	case r.Phase == PhaseUnowned && e.Replica == r.Former:
		// It was cut off, or slow, and nobody has taken over.
		sweep := r.Reason == ReasonOrphan
		r.Owner, r.Reason = e.Replica, ReasonResumed
		h.settle(now)
		return Outcome{Plan: true, Sweep: sweep}
	}
	return ignored(IgnoredLate)
}

// behind grants a new epoch above the one that the database has, to the owner
// that was refused.
func (h *Handover) behind(e Event, now time.Time) Outcome {
	r := &h.Record
	if e.Epoch <= 0 || e.Epoch > maxEpoch || e.Replica == "" {
		return ignored(IgnoredIllegal)
	}
	if e.Replica != r.Owner || e.Epoch < r.Epoch {
		return ignored(IgnoredLate)
	}
	var out Outcome
	reason, former, handed := r.Reason, r.Former, r.Handed
	switch r.Phase {
	case PhasePrepare, PhaseRelease:
		out.Aborted = AbortFenced
		reason = ReasonResumed
	case PhaseOwned:
		reason = ReasonResumed
	}
	r.Epoch = e.Epoch
	h.grant(r.Owner, former, reason, now)
	r.Handed = handed
	return out
}

func (h *Handover) lost(replica string, now time.Time) Outcome {
	r := &h.Record
	if replica == "" {
		return ignored(IgnoredIllegal)
	}
	switch {
	case r.Owner == replica:
		return h.ownerLost(now)
	case r.Next == replica:
		return h.back(AbortLost, now)
	case r.Phase == PhaseRaise && r.Former == replica:
		r.Former = ""
		return Outcome{}
	}
	return ignored(IgnoredLate)
}

func (h *Handover) ownerLost(now time.Time) Outcome {
	r := &h.Record
	switch {
	case r.Next != "":
		// Ready or not, it is nearer to it than any other.
		h.grant(r.Next, "", ReasonOrphan, now)
		return Outcome{}
	case r.Phase == PhaseRelease:
		h.retired(now)
		return Outcome{}
	case r.Phase == PhaseRaise && r.Former != "":
		h.grant(r.Former, "", ReasonOrphan, now)
		return Outcome{Aborted: AbortLost}
	}
	h.orphan(ReasonOrphan, now)
	return Outcome{Plan: true}
}

func (h *Handover) tick(now time.Time) Outcome {
	r := &h.Record
	if h.due.IsZero() || now.Before(h.due) {
		return ignored(IgnoredEarly)
	}
	switch r.Phase {
	case PhasePrepare:
		h.avoid = r.Next
		return h.back(AbortTimeout, now)
	case PhaseRelease:
		return h.back(AbortTimeout, now)
	case PhaseRaise:
		h.avoid = r.Owner
		h.unraised++
		h.fail(now)
		reason := ReasonReturn
		if r.Reason == ReasonOrphan {
			reason = ReasonOrphan
		}
		if r.Former != "" {
			h.grant(r.Former, "", reason, now)
			return Outcome{Aborted: AbortTimeout}
		}
		h.orphan(reason, now)
		return Outcome{Plan: true, Aborted: AbortTimeout}
	}
	h.arm(now)
	return Outcome{Plan: true}
}

// retire begins to release the shard for good.
func (h *Handover) retire(now time.Time) Outcome {
	r := &h.Record
	switch r.Phase {
	case PhaseUnowned:
		h.retired(now)
		return Outcome{}
	case PhaseOwned, PhasePrepare:
		var out Outcome
		if r.Phase == PhasePrepare {
			out.Aborted = AbortCancelled
		}
		r.Attempt++
		r.Next, r.Reason = "", ReasonReslice
		h.enter(PhaseRelease, now)
		return out
	}
	return h.unfit()
}

// retired keeps the epoch. An owner that was lost, not released, may still
// write; the new generation in the database ends that (see Reslice).
func (h *Handover) retired(now time.Time) {
	r := &h.Record
	if r.Owner != "" {
		r.Former = r.Owner
	}
	r.Owner, r.Next = "", ""
	h.enter(PhaseRetired, now)
}
