package status

import "github.com/trestle-bridge/trestle/proto/wsman"

// PrebuildState is the state of a prebuild as the database writes it.
type PrebuildState string

// The states that an update can bring.
const (
	PrebuildQueued    PrebuildState = "queued"
	PrebuildBuilding  PrebuildState = "building"
	PrebuildAborted   PrebuildState = "aborted"
	PrebuildTimeout   PrebuildState = "timeout"
	PrebuildAvailable PrebuildState = "available"
	PrebuildFailed    PrebuildState = "failed"
)

// Terminal says whether a prebuild ends with this state: for the same
// instance no later update leaves it.
func (s PrebuildState) Terminal() bool {
	switch s {
	case PrebuildAborted, PrebuildTimeout, PrebuildAvailable, PrebuildFailed:
		return true
	}
	return false
}

// HeadlessType is what the headless channel says of a change of a prebuild.
type HeadlessType string

// The types of headless events.
const (
	HeadlessStarted        HeadlessType = "started"
	HeadlessFinishSuccess  HeadlessType = "finish-success"
	HeadlessFinishFail     HeadlessType = "finish-fail"
	HeadlessAbortedTimeout HeadlessType = "aborted-timeout"
	HeadlessAborted        HeadlessType = "aborted"
	HeadlessFailed         HeadlessType = "failed"
)

// PrebuildStep is what one update says of its prebuild. A nil text leaves the
// column as it is.
type PrebuildStep struct {
	Version  uint64        `json:"version"`
	State    PrebuildState `json:"state"`
	Error    *string       `json:"error"`
	Snapshot *string       `json:"snapshot"`
	Headless HeadlessType  `json:"headless"`
}

// sameState says whether both bring the same state, and so speak of the same
// columns.
func (s PrebuildStep) sameState(other PrebuildStep) bool { return s.State == other.State }

// prebuildStep gives what a status of a prebuild's instance says of the
// prebuild; false if it says nothing.
func (r Rules) prebuildStep(s *wsman.WorkspaceStatus) (PrebuildStep, bool) {
	step := PrebuildStep{Version: s.GetStatusVersion(), Headless: HeadlessStarted}
	decisive := wsman.WorkspacePhase_STOPPING
	if r.DecidedWhenStopped {
		decisive = wsman.WorkspacePhase_STOPPED
	}
	switch s.GetPhase() {
	case decisive:
		decided := step.decide(s.GetConditions())
		return step, decided
	case wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_STOPPING:
		step.State = PrebuildBuilding
	case wsman.WorkspacePhase_STOPPED:
		return PrebuildStep{}, false
	default:
		step.State = PrebuildQueued
	}
	return step, true
}

// decide fills in how the prebuild ended: the first condition that holds says
// it. It reports false if none does.
func (s *PrebuildStep) decide(c *wsman.WorkspaceConditions) bool {
	end := func(state PrebuildState, headless HeadlessType, why string) bool {
		why = clean(why)
		s.State, s.Headless, s.Error = state, headless, &why
		return true
	}
	snapshot := clean(c.GetSnapshot())
	switch {
	case c.GetTimeout() != "":
		return end(PrebuildTimeout, HeadlessAbortedTimeout, c.GetTimeout())
	case c.GetFailed() != "":
		return end(PrebuildFailed, HeadlessFailed, c.GetFailed())
	case c.GetStoppedByRequest() == wsman.WorkspaceConditionBool_TRUE:
		return end(PrebuildAborted, HeadlessAborted, "Cancelled")
	case c.GetHeadlessTaskFailed() != "":
		s.Snapshot = &snapshot
		return end(PrebuildAvailable, HeadlessFinishFail, c.GetHeadlessTaskFailed())
	case snapshot != "":
		s.Snapshot = &snapshot
		return end(PrebuildAvailable, HeadlessFinishSuccess, "")
	}
	return false
}
