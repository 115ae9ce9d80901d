package status

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Kind is the type of an instance's workspace, as labels and rows write it.
type Kind string

// The kinds of instances.
const (
	KindRegular    Kind = "regular"
	KindPrebuild   Kind = "prebuild"
	KindImageBuild Kind = "imagebuild"
)

// maxSteps bounds what a waiting change holds of its past. Beyond it two old
// steps become one that carries the later version; the outcome differs only
// for a row whose stored version lies between the two and that was written by
// somebody who had not heard the first.
const maxSteps = 32

// Rules are the settings that decide what an update means.
type Rules struct {
	// DecidedWhenStopped moves the phase that decides how a prebuild ended
	// from STOPPING to STOPPED.
	DecidedWhenStopped bool
}

// Change is what one update, or several folded in order, do to the rows of
// one instance. It does not print its content, which holds the owner's token.
// It is not safe for concurrent use while it is folded.
type Change struct {
	ID   InstanceID
	Kind Kind
	// Version is that of the last update, 0 if none was versioned.
	Version uint64
	// Hash is that of the last update; see Heard.
	Hash uint64
	// FirstAt and LastAt are when the first and the last update were heard.
	FirstAt, LastAt time.Time
	// Updates counts the updates folded in.
	Updates int
	// First says that nothing was known of the instance when the first of them
	// was heard, as after a change of owner: it may repeat what is stored.
	First bool
	// Trace is the trace context of the last update that had one.
	Trace string

	// The rest is of the last update, which always wins.

	IDEURL string
	// Document is a JSON object: the keys of the status document that an
	// update overwrites.
	Document []byte
	// Conditions is a JSON object: the conditions that are set. Those that
	// an update speaks of and that are not in it are unset; see
	// SpokenConditions. It never has the key failed, which is Effect.Failed.
	Conditions []byte

	// steps are in the order of their versions; at most the first has none.
	steps []step
	// prebuild holds what the updates said of the prebuild, in their order.
	prebuild []PrebuildStep
}

// SpokenConditions are the keys of the conditions that an update sets or
// unsets. The key failed is apart: it is never unset.
func SpokenConditions() []string {
	return []string{"timeout", "pullingImages", "deployed", "firstUserActivity", "headlessTaskFailed", "stoppedByRequest"}
}

// Change decodes what was heard, and keeps nothing of h.Raw. Its errors are
// *InvalidError.
func (r Rules) Change(h Heard) (*Change, error) {
	d := newDecoded()
	defer d.free()
	if d.quickly(h.Raw) {
		return r.change(h, &d.status), nil
	}
	s, err := decodeAny(h)
	if err != nil {
		return nil, err
	}
	return r.change(h, s), nil
}

// change keeps nothing of s: its texts may be parts of what was heard.
func (r Rules) change(h Heard, s *wsman.WorkspaceStatus) *Change {
	c := &Change{
		ID:         h.ID,
		Kind:       kind(s.GetSpec().GetType()),
		Version:    h.Version,
		Hash:       h.Hash,
		FirstAt:    h.At,
		LastAt:     h.At,
		Updates:    1,
		Trace:      h.Trace,
		IDEURL:     clean(s.GetSpec().GetUrl()),
		Document:   document(s),
		Conditions: conditions(s.GetConditions()),
		steps:      []step{newStep(h, s)},
	}
	if c.Kind == KindPrebuild {
		if step, says := r.prebuildStep(s); says {
			c.prebuild = []PrebuildStep{step}
		}
	}
	return c
}

// Phase is the last phase that the updates speak of; empty if none does.
func (c *Change) Phase() Phase {
	for _, step := range slices.Backward(c.steps) {
		if phase := step.lastPhase(); phase != "" {
			return phase
		}
	}
	return ""
}

// Fold joins a later change of the same instance to c. It reports false, and
// changes nothing, if next is stale: not above c, as it would be if the two
// were written in turn.
func (c *Change) Fold(next *Change) bool {
	if next.Version <= c.Version && (c.Version != 0 || next.Version != 0) {
		return false
	}
	steps, prebuild := c.steps, c.prebuild
	first, at := c.First, c.FirstAt
	updates := c.Updates + next.Updates
	trace := firstText(next.Trace, c.Trace)

	for _, step := range next.steps {
		// What lies between the two, unversioned or not above c, would
		// find the row at c's version.
		last := steps[len(steps)-1]
		if c.Version == 0 && step.version == 0 {
			steps[len(steps)-1] = last.join(step)
		} else if step.version > c.Version {
			if last.runtime != nil && step.runtime != nil && *last.runtime == *step.runtime {
				step.runtime = last.runtime
			}
			steps = append(steps, step)
		}
	}
	for _, step := range next.prebuild {
		if step.Version > c.Version || (c.Version == 0 && step.Version == 0) {
			prebuild = appendPrebuild(prebuild, step)
		}
	}

	*c = *next
	c.First, c.FirstAt, c.Updates, c.Trace = first, at, updates, trace
	c.steps, c.prebuild = compact(steps), prebuild
	return true
}

// compact joins old steps until there are few enough. A row that has seen the
// first of the two sees it again with the second. That is without effect, but
// for a STOPPED before a clearing: it would stop an instance that has come
// back since. Such a pair is left apart; the next one begins with a clearing.
func compact(steps []step) []step {
	for len(steps) > maxSteps {
		at := 0
		if steps[0].version == 0 {
			at = 1 // an unversioned step applies to other rows than the next
		}
		if first := steps[at].effect(); !first.OpenStopAt.IsZero() && !first.Cleared && steps[at+1].effect().Cleared {
			at++
		}
		steps = slices.Replace(steps, at, at+2, steps[at].join(steps[at+1]))
	}
	return steps
}

// appendPrebuild adds what a later update says. Where an earlier step counts,
// all later ones do, so of those before only the ones that end the prebuild
// matter, and of several in a row with one state the last.
func appendPrebuild(steps []PrebuildStep, next PrebuildStep) []PrebuildStep {
	for n := len(steps); n > 0 && (!steps[n-1].State.Terminal() || steps[n-1].State == next.State); n-- {
		steps = steps[:n-1]
	}
	steps = append(steps, next)
	// The first end decides and the last step of its state gives the texts:
	// what is neither may go.
	for i := 1; len(steps) > maxSteps; i++ {
		firstVersioned := steps[i-1].Version == 0 && steps[i].Version != 0
		if !firstVersioned && slices.ContainsFunc(steps[i+1:], steps[i].sameState) {
			steps = slices.Delete(steps, i, i+1)
			break
		}
	}
	return steps
}

// Rungs gives, in ascending order of versions, what the change does to a row:
// the first of them that AppliesTo the row's stored version has the whole
// effect; if none does, the change is stale. There is always at least one.
func (c *Change) Rungs() []Step { return c.AppendRungs(nil) }

// AppendRungs appends the Rungs to a slice.
func (c *Change) AppendRungs(to []Step) []Step {
	from := len(to)
	to = slices.Grow(to, len(c.steps))[:from+len(c.steps)]
	var sum Effect
	for i, step := range slices.Backward(c.steps) {
		sum = step.effect().then(sum)
		to[from+i] = Step{Version: step.version, Effect: sum}
	}
	return to
}

// PrebuildSteps gives what the folded updates said of the instance's
// prebuild, in their order; empty if nothing. The caller must not change it.
func (c *Change) PrebuildSteps() []PrebuildStep { return c.prebuild }

// LastAlone gives the change that the last of the folded updates makes by
// itself, and false if there is only one, or none that has a version: those
// are not told apart.
func (c *Change) LastAlone() (*Change, bool) {
	if len(c.steps) == 1 {
		return nil, false
	}
	last := *c
	last.steps = slices.Clone(c.steps[len(c.steps)-1:])
	last.prebuild = nil
	for _, step := range c.prebuild {
		if step.Version == c.Version {
			last.prebuild = append(last.prebuild, step)
		}
	}
	last.Updates, last.FirstAt = 1, c.LastAt
	return &last, true
}

// String names the change without its content. Like the methods below it is on
// the value, so that a copy shows no more than what a pointer does.
func (c Change) String() string {
	return fmt.Sprintf("change of %s to version %d (%d updates)", c.ID, c.Version, c.Updates)
}

// Format is String for every verb.
func (c Change) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is String.
func (c Change) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String, also for encoding/json.
func (c Change) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func phase(p wsman.WorkspacePhase) Phase {
	switch p {
	case wsman.WorkspacePhase_PENDING:
		return PhasePending
	case wsman.WorkspacePhase_CREATING:
		return PhaseCreating
	case wsman.WorkspacePhase_INITIALIZING:
		return PhaseInitializing
	case wsman.WorkspacePhase_RUNNING:
		return PhaseRunning
	case wsman.WorkspacePhase_STOPPING:
		return PhaseStopping
	case wsman.WorkspacePhase_STOPPED:
		return PhaseStopped
	case wsman.WorkspacePhase_INTERRUPTED:
		return PhaseInterrupted
	}
	return "" // UNKNOWN, and what a newer cluster may invent, leave the phase as it is
}

func kind(t wsman.WorkspaceType) Kind {
	switch t {
	case wsman.WorkspaceType_PREBUILD:
		return KindPrebuild
	case wsman.WorkspaceType_IMAGEBUILD:
		return KindImageBuild
	}
	return KindRegular
}

// clean copies a text to keep it, and replaces what PostgreSQL takes in no
// text: the NUL character.
func clean(text string) string {
	if strings.IndexByte(text, 0) < 0 {
		return strings.Clone(text)
	}
	return strings.ReplaceAll(text, "\x00", "\uFFFD")
}
