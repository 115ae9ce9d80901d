package status

import (
	"time"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// step is what a Step is made of: what one update says of the parts of a row that
// Effect is about, in a third of its space. A change that waits has one for each
// update that was folded in.
type step struct {
	version  uint64
	at       time.Time // when it was heard
	phase    Phase
	deployed bool
	failed   string
	runtime  *runtime // nil: it does not speak of it
	metrics  Metrics

	// joined, if set, is the effect of several updates in a row, instead of what
	// stands above.
	joined *Effect
}

// runtime is where an instance runs. It is not changed once made: the steps of a
// change share it.
type runtime struct{ nodeName, podName, nodeIP string }

func newStep(h Heard, s *wsman.WorkspaceStatus) step {
	out := step{
		version:  h.Version,
		at:       h.At,
		phase:    phase(s.GetPhase()),
		deployed: s.GetConditions().GetDeployed() == wsman.WorkspaceConditionBool_TRUE,
		failed:   clean(s.GetConditions().GetFailed()),
		metrics:  Metrics{Image: imageSizes(s.GetMetadata().GetMetrics()), Initializer: initializer(s.GetInitializerMetrics())},
	}
	if r := s.GetRuntime(); r.GetNodeName() != "" || r.GetPodName() != "" || r.GetNodeIp() != "" {
		out.runtime = &runtime{clean(r.GetNodeName()), clean(r.GetPodName()), clean(r.GetNodeIp())}
	}
	return out
}

// effect gives the effect of the step.
func (s *step) effect() Effect {
	if s.joined != nil {
		return *s.joined
	}
	e := Effect{Phase: s.phase, Failed: s.failed, Image: s.metrics.Image, Metrics: s.metrics}
	if s.runtime != nil {
		e.NodeName, e.PodName, e.NodeIP = s.runtime.nodeName, s.runtime.podName, s.runtime.nodeIP
	}
	if s.deployed {
		e.DeployedAt = s.at
	}
	switch s.phase {
	case PhaseStopping:
		e.StoppingAt = s.at
	case PhaseStopped:
		e.StoppingAt, e.StoppedAt, e.OpenStopAt = s.at, s.at, s.at
	case PhaseRunning:
		e.RunningAt, e.Cleared = s.at, true
	case "":
	default:
		e.Cleared = true
	}
	return e
}

// join gives the step that has the effect of both, under the later's version.
func (s *step) join(next step) step {
	joined := s.effect().then(next.effect())
	return step{version: next.version, joined: &joined}
}

// lastPhase is the last phase that the step speaks of; empty if none.
func (s *step) lastPhase() Phase {
	if s.joined != nil {
		return s.joined.Phase
	}
	return s.phase
}
