package duty

import "github.com/trestle-bridge/trestle/shard"

// Assigned is what the table says of a shard.
type Assigned struct {
	Record shard.Record
	// Found says that there is a record.
	Found bool
	// Exists says that the cluster does, as far as this replica knows.
	Exists bool
}

type wantKind int

const (
	wantNothing wantKind = iota
	// wantKeep leaves the shard as it is.
	wantKeep
	wantReady
	wantFence
	wantReleased
)

// wanted is what a replica is to have of a shard; comparable.
type wanted struct {
	kind    wantKind
	attempt int64
	fence   shard.Fence
}

type haveKind int

const (
	haveNothing haveKind = iota
	haveReady
	haveFence
	// haveHalf is a release that has begun: the intake may have stopped.
	haveHalf
	haveReleased
)

// held is what a replica has of a shard. Of a released one, fence is the last.
type held struct {
	kind  haveKind
	fence shard.Fence
}

// writes says that something may be written under the fence.
func (h held) writes() bool { return h.kind == haveFence || h.kind == haveHalf }

// want says what a replica is to have of a shard.
func want(me string, id shard.ID, as Assigned, have held) wanted {
	r := as.Record
	writes := have.writes()
	switch {
	case !as.Found:
		// The store was wiped, or the record removed with its cluster.
		if writes && as.Exists {
			return wanted{kind: wantKeep}
		}
		return wanted{}
	case writes && have.fence.Epoch > r.Epoch && have.fence.Generation >= r.Generation:
		// The record is older than what the database has granted.
		return wanted{kind: wantKeep}
	case r.Owner == me:
		switch r.Phase {
		case shard.PhaseRelease:
			return wanted{kind: wantReleased, attempt: r.Attempt}
		case shard.PhaseRetired, shard.PhaseUnowned:
			return wanted{}
		}
		return wanted{kind: wantFence, fence: r.Fence(id)}
	case r.Next == me && (r.Phase == shard.PhasePrepare || r.Phase == shard.PhaseRelease):
		return wanted{kind: wantReady, attempt: r.Attempt}
	case r.Phase == shard.PhaseUnowned && r.Former == me && writes && have.fence.Epoch == r.Epoch:
		// It was taken for lost; as nobody has taken over, it goes on and says so.
		return wanted{kind: wantKeep}
	}
	return wanted{}
}
