package shard

import "time"

// ReslicePhase is where a change of a cluster's number of slices stands.
type ReslicePhase string

const (
	// ResliceRelease: all old shards are being released.
	ResliceRelease ReslicePhase = "RELEASE"
	// ResliceFence: all old shards are released, and the database is to end
	// their generation.
	ResliceFence ReslicePhase = "FENCE"
	// ResliceBack: an old shard was not released in time; they all go on.
	ResliceBack ReslicePhase = "BACK"
	// ResliceDone: the new shards are there.
	ResliceDone ReslicePhase = "DONE"
	// ResliceAborted: the old ones are there again.
	ResliceAborted ReslicePhase = "ABORTED"
)

// Reslice is a move of a whole cluster to another number of slices. No instance
// has two fences at any time: first every old shard is released, then the
// database ends the old generation (so that an owner that was lost and not
// released is refused), and only then are there new shards.
//
// It is a value, stored by the coordinator with its cluster.
type Reslice struct {
	Cluster string `json:"cluster"`
	// From and To are numbers of slices, at least 1.
	From int `json:"from"`
	To   int `json:"to"`
	// Generation is the new one.
	Generation int64        `json:"generation"`
	Phase      ReslicePhase `json:"phase"`
	Reason     string       `json:"reason,omitempty"`
	Author     string       `json:"author,omitempty"`
	// Due is when the phase is looked at without being told to; zero at the end.
	Due time.Time `json:"due,omitzero"`
}

// The limits are those of a few hand-overs, as all old shards go through one.
const (
	resliceRelease = time.Minute
	resliceRetry   = 5 * time.Second
)

// NewReslice begins a change; generation is above the cluster's last one.
func NewReslice(cluster string, from, to int, generation int64, now time.Time) Reslice {
	return Reslice{
		Cluster: cluster, From: from, To: to, Generation: generation,
		Phase: ResliceRelease, Due: now.Add(resliceRelease),
	}
}

// ResliceOutcome is what is to be done next.
type ResliceOutcome struct {
	// Write means that the Reslice has changed and must be stored first.
	Write bool
	// Retire, Cancel and Revive name old shards that are to get that event.
	Retire, Cancel, Revive []ID
	// Fence asks the database to end all generations below Generation. To ask
	// twice does no harm.
	Fence bool
	// Remove and Create name the shards that go and come, when all is done.
	Remove, Create []ID
}

// Step says what is next, given the record of each old shard (a missing one
// counts as retired) and whether the database has ended the old generation. It
// is to be called when any of that changes and at Due; calling it more often
// does no harm. What it asks for and does not see done, it asks for again.
func (r Reslice) Step(old map[ID]Record, fenced bool, now time.Time) (Reslice, ResliceOutcome) {
	var out ResliceOutcome
	before := r
	ids := Slices(r.Cluster, r.From)
	switch r.Phase {
	case ResliceRelease:
		left := 0
		for _, id := range ids {
			switch record, ok := old[id]; {
			case !ok || record.Phase == PhaseRetired:
				continue
			case record.Phase == PhaseOwned || record.Phase == PhasePrepare || record.Phase == PhaseUnowned || record.Phase == "":
				out.Retire = append(out.Retire, id)
			}
			left++
		}
		switch {
		case left == 0:
			r.Phase, r.Due, out.Fence = ResliceFence, now.Add(resliceRetry), true
		case !now.Before(r.Due):
			r.Phase, r.Due, out.Retire = ResliceBack, now.Add(resliceRetry), nil
			r.undo(old, ids, &out)
		}
	case ResliceFence:
		// From here there is no way back but forward: whether the database has
		// ended the old generation is not known until it says so.
		switch {
		case fenced:
			r.Phase, r.Due = ResliceDone, time.Time{}
			r.finish(ids, &out)
		case !now.Before(r.Due):
			r.Due, out.Fence = now.Add(resliceRetry), true
		}
	case ResliceBack:
		if !r.undo(old, ids, &out) {
			r.Phase, r.Due = ResliceAborted, time.Time{}
		} else if !now.Before(r.Due) {
			r.Due = now.Add(resliceRetry)
		}
	case ResliceDone:
		r.finish(ids, &out)
	}
	out.Write = r != before
	return r, out
}

func (r Reslice) finish(ids []ID, out *ResliceOutcome) {
	out.Remove, out.Create = ids, Slices(r.Cluster, r.To)
}

// undo says whether there is anything left to take back.
func (r Reslice) undo(old map[ID]Record, ids []ID, out *ResliceOutcome) bool {
	for _, id := range ids {
		switch record := old[id]; {
		case record.Phase == PhaseRetired:
			out.Revive = append(out.Revive, id)
		case record.Phase == PhaseRelease && record.Next == "":
			out.Cancel = append(out.Cancel, id)
		}
	}
	return len(out.Revive)+len(out.Cancel) > 0
}
