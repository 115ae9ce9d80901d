package statustest

import (
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

// Apply writes a change as one statement of the store would. It reports
// whether the change counted; one that does not is stale and changes nothing.
func Apply(row *Row, c *status.Change) bool {
	rung, counts := choose(row, c.Rungs())
	if !counts {
		return false
	}
	applyPrebuild(row, c.PrebuildSteps())
	applyTimes(row, rung.Effect)
	row.Version, row.Swept = c.Version, false
	row.IDEURL = c.IDEURL
	applyDocument(row, c, rung.Effect)
	if metrics := rung.Metrics.JSON(); metrics != nil {
		if row.Metrics == nil {
			row.Metrics = map[string]any{}
		}
		merge(row.Metrics, mustDecode(metrics))
	}
	return true
}

func choose(row *Row, rungs []status.Step) (status.Step, bool) {
	for _, rung := range rungs {
		if applies(row, rung.Version) {
			return rung, true
		}
	}
	return status.Step{}, false
}

func applies(row *Row, version uint64) bool {
	return status.Step{Version: version}.AppliesTo(row.Version) || (row.Swept && version == row.Version)
}

func applyTimes(row *Row, e status.Effect) {
	wasStopped, stoppedTime := row.Phase == "stopped", row.Stopped

	if row.Deployed.IsZero() {
		row.Deployed = e.DeployedAt
	}
	if row.Started.IsZero() && !e.RunningAt.IsZero() {
		row.Started = e.RunningAt
		row.tell("wsrun", e.RunningAt)
	}
	switch {
	case e.Cleared:
		row.Stopping, row.Stopped = e.StoppingAt, e.StoppedAt
	case wasStopped:
		row.Stopping = coalesce(row.Stopping, e.StoppedAt)
		row.Stopped = coalesce(row.Stopped, e.StoppedAt)
	default:
		row.Stopping = coalesce(row.Stopping, e.StoppingAt)
		row.Stopped = coalesce(row.Stopped, e.StoppedAt)
	}
	if e.Phase != "" && (e.Cleared || !wasStopped) {
		row.Phase = string(e.Phase)
	}
	switch {
	case stoppedTime.IsZero() && !e.OpenStopAt.IsZero():
		row.stop(e.OpenStopAt)
	case !e.LaterStopAt.IsZero():
		row.stop(e.LaterStopAt)
	}
}

func applyDocument(row *Row, c *status.Change, e status.Effect) {
	if kept := e.Kept(); kept != nil {
		fill(row.Status, mustDecode(kept))
	}
	for key, value := range mustDecode(c.Document) {
		row.Status[key] = value
	}
	row.Status["phase"] = row.Phase

	conditions := object(row.Status, "conditions")
	for _, key := range status.SpokenConditions() {
		delete(conditions, key)
	}
	merge(conditions, mustDecode(c.Conditions))
	if e.Failed != "" {
		conditions["failed"] = e.Failed
	}
}

func applyPrebuild(row *Row, steps []status.PrebuildStep) {
	p := row.Prebuild
	if p == nil || row.newerSpeaks() {
		return
	}
	bound := !row.olderSpeaks()
	var counting []status.PrebuildStep
	for _, step := range steps {
		if applies(row, step.Version) && (!bound || p.Version == 0 || step.Version > p.Version) {
			counting = append(counting, step)
		}
	}
	if len(counting) == 0 {
		return
	}
	// The state that stands: the one the prebuild has ended with, or ends
	// with now. Without an end it is the last.
	last := counting[len(counting)-1]
	state := string(last.State)
	if bound && terminal(p.State) {
		state = p.State
	} else {
		for _, step := range counting {
			if step.State.Terminal() {
				state = string(step.State)
				break
			}
		}
	}
	p.State = state
	for _, step := range counting {
		if string(step.State) == state {
			if step.Error != nil {
				p.Error = *step.Error
			}
			if step.Snapshot != nil {
				p.Snapshot = *step.Snapshot
			}
		}
	}
	p.Version, p.Instance, p.InstanceCreated = last.Version, row.ID, row.Created
}

// fill sets what document does not have, at any depth.
func fill(document, values map[string]any) {
	for key, value := range values {
		if inner, is := value.(map[string]any); is {
			fill(object(document, key), inner)
		} else if blank(document[key]) {
			document[key] = value
		}
	}
}

// merge sets everything that values has, at any depth.
func merge(document, values map[string]any) {
	for key, value := range values {
		if inner, is := value.(map[string]any); is {
			merge(object(document, key), inner)
		} else {
			document[key] = value
		}
	}
}

func coalesce(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return a
}

func mustDecode(encoded []byte) map[string]any {
	document, err := Decode(encoded)
	if err != nil {
		panic(err)
	}
	return document
}
