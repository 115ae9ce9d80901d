package status

import (
	"time"
)

// Phase is the phase of an instance as the database writes it. The empty
// Phase says nothing.
type Phase string

// The phases that an update can bring. Others (unknown, preparing, building)
// are written by the API server, before a cluster knows the instance.
const (
	PhasePending      Phase = "pending"
	PhaseCreating     Phase = "creating"
	PhaseInitializing Phase = "initializing"
	PhaseRunning      Phase = "running"
	PhaseInterrupted  Phase = "interrupted"
	PhaseStopping     Phase = "stopping"
	PhaseStopped      Phase = "stopped"
)

// Effect is what an update, or several in a row, do to those parts of a row
// whose outcome depends on what the row held before: times that are set once,
// values of which the first is kept, the phase. A zero time or an empty text
// means that the update does not speak of it.
//
// Effects compose: see then. Effect{} is the neutral element.
type Effect struct {
	// DeployedAt and RunningAt are set on a row that has no such time yet.
	DeployedAt time.Time
	RunningAt  time.Time

	// Cleared says that a phase before STOPPING was heard: whatever stopping
	// and stopped times the row had are gone.
	Cleared bool
	// StoppingAt and StoppedAt are the times heard after the last clearing.
	// Without a clearing they are set only where the row has none, and on a
	// row that is stopped StoppingAt does not count.
	StoppingAt time.Time
	StoppedAt  time.Time
	// OpenStopAt is the first STOPPED before any clearing: it brings the stop
	// actions about if the row has no stopped time. LaterStopAt is the first
	// STOPPED after a clearing: it brings them about whatever the row was.
	OpenStopAt  time.Time
	LaterStopAt time.Time
	// Revived says that a clearing followed a STOPPING or STOPPED within the
	// effect itself.
	Revived bool

	// Phase is the last phase heard; a row that is stopped and not cleared
	// stays stopped.
	Phase Phase

	// Failed is the last reason of failure heard; it is never cleared.
	Failed string

	// Of these, a row keeps the first value that it was given.
	NodeName string
	PodName  string
	NodeIP   string
	Image    ImageSizes

	// Metrics are merged into those stored.
	Metrics Metrics
}

// then gives the effect of e followed by next.
func (e Effect) then(next Effect) Effect {
	out := Effect{
		DeployedAt: firstTime(e.DeployedAt, next.DeployedAt),
		RunningAt:  firstTime(e.RunningAt, next.RunningAt),
		Cleared:    e.Cleared || next.Cleared,
		Revived:    e.Revived || next.Revived,
		Phase:      next.Phase,
		Failed:     firstText(next.Failed, e.Failed),
		NodeName:   firstText(e.NodeName, next.NodeName),
		PodName:    firstText(e.PodName, next.PodName),
		NodeIP:     firstText(e.NodeIP, next.NodeIP),
		Image:      e.Image.or(next.Image),
		Metrics:    e.Metrics.overlaid(next.Metrics),
	}

	if next.Cleared {
		out.StoppingAt, out.StoppedAt = next.StoppingAt, next.StoppedAt
		out.Revived = out.Revived || !e.StoppingAt.IsZero()
	} else {
		out.StoppingAt = firstTime(e.StoppingAt, next.StoppingAt)
		out.StoppedAt = firstTime(e.StoppedAt, next.StoppedAt)
		switch {
		case next.Phase == "":
			out.Phase = e.Phase
		case e.Phase == PhaseStopped && next.Phase == PhaseStopping:
			out.Phase = PhaseStopped
		}
	}

	if e.Cleared {
		out.OpenStopAt = e.OpenStopAt
		out.LaterStopAt = firstTime(e.LaterStopAt, next.OpenStopAt, next.LaterStopAt)
	} else {
		out.OpenStopAt = firstTime(e.OpenStopAt, next.OpenStopAt)
		out.LaterStopAt = next.LaterStopAt
	}
	return out
}

// Kept gives those values of which a row keeps the first, as a JSON object in
// the shape of the status document; nil if there are none.
func (e Effect) Kept() []byte {
	if e.NodeName == "" && e.PodName == "" && e.NodeIP == "" && e.Image == (ImageSizes{}) {
		return nil
	}
	b := append(make([]byte, 0, 192), '{')
	text := func(name, text string) {
		if text != "" {
			b = appendText(appendKey(b, name), text)
		}
	}
	text("nodeName", e.NodeName)
	text("podName", e.PodName)
	text("nodeIp", e.NodeIP)
	if e.Image != (ImageSizes{}) {
		b = append(appendKey(b, "metrics"), '{')
		b = append(e.Image.appendTo(b), '}')
	}
	return append(b, '}')
}

// Step is the Effect of one update, or of several in a row whose versions the
// store need not tell apart.
type Step struct {
	// Version is that of the (last) update. 0: unversioned.
	Version uint64
	Effect
}

// AppliesTo says whether the step counts for a row of this stored version.
func (s Step) AppliesTo(stored uint64) bool {
	if s.Version == 0 {
		return stored == 0
	}
	return s.Version > stored
}

func firstTime(times ...time.Time) time.Time {
	for _, t := range times {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

func firstText(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
