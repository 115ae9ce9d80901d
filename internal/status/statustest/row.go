// Package statustest is a model of our rows in plain Go, for tests only: no
// production code imports it.
//
// It writes a Row in two ways that share only how a row is kept and which of
// two instances is newer. InTurn takes one status after the other and does
// what the rules say of it, without any notion of folding. Apply does with a
// status.Change what the statements of the store do, so it shows what the
// comments on status.Effect and status.PrebuildStep promise. Whatever was
// heard, both must leave the same row; tests of the store compare real rows
// with either of them.
package statustest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

// Row is everything that the updates of one instance touch. A zero time is a
// null.
type Row struct {
	ID      status.InstanceID
	Created time.Time

	Version uint64
	// Swept says that a sweep has stopped the row: its own version, heard
	// again, counts as newer.
	Swept bool
	Phase string

	Deployed, Started, Stopping, Stopped time.Time

	IDEURL string
	// Status is the status document.
	Status map[string]any
	// Metrics is the document of the metrics table; nil if it has no row.
	Metrics map[string]any
	// Prebuild is the prebuild of the workspace; nil if it has none.
	Prebuild *Prebuild
	// Tokens are the names of the owner's tokens.
	Tokens []string

	// Lifecycle are the lifecycle events in the order of their making. One
	// may come several times; see FirstEvents.
	Lifecycle []Event
}

// Prebuild is a row of the prebuilds.
type Prebuild struct {
	State, Error, Snapshot string
	Version                uint64
	// Instance is the one that the version speaks of; the zero value if it
	// is not known. InstanceCreated is when it was created.
	Instance        status.InstanceID
	InstanceCreated time.Time
}

// Event is a lifecycle event.
type Event struct {
	MessageID string
	At        time.Time
}

// Clone gives a copy that shares nothing with r.
func (r *Row) Clone() *Row {
	out := *r
	out.Status = cloneObject(r.Status)
	out.Metrics = cloneObject(r.Metrics)
	out.Tokens = slices.Clone(r.Tokens)
	out.Lifecycle = slices.Clone(r.Lifecycle)
	if r.Prebuild != nil {
		prebuild := *r.Prebuild
		out.Prebuild = &prebuild
	}
	return &out
}

// FirstEvents gives what a receiver keeps of the lifecycle events that drops
// repeats: when each was first told.
func (r *Row) FirstEvents() map[string]time.Time {
	first := map[string]time.Time{}
	for _, event := range r.Lifecycle {
		if _, told := first[event.MessageID]; !told {
			first[event.MessageID] = event.At
		}
	}
	return first
}

// Diff names the columns in which two rows differ, one a line; empty if they
// are the same. Repeated lifecycle events count once.
func Diff(got, want *Row) string {
	var out strings.Builder
	a, b := got.columns(), want.columns()
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if a[name] != b[name] {
			fmt.Fprintf(&out, "%s is %s, want %s\n", name, a[name], b[name])
		}
	}
	return out.String()
}

func (r *Row) columns() map[string]string {
	instant := func(t time.Time) string {
		if t.IsZero() {
			return "null"
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	prebuild := "none"
	if p := r.Prebuild; p != nil {
		prebuild = fmt.Sprintf("%s, error %q, snapshot %q, version %d of %s", p.State, p.Error, p.Snapshot, p.Version, p.Instance)
	}
	var events []string
	for id, at := range r.FirstEvents() {
		events = append(events, id+" at "+instant(at))
	}
	slices.Sort(events)
	return map[string]string{
		"version":       fmt.Sprint(r.Version),
		"swept":         fmt.Sprint(r.Swept),
		"phase":         r.Phase,
		"deployed_time": instant(r.Deployed),
		"started_time":  instant(r.Started),
		"stopping_time": instant(r.Stopping),
		"stopped_time":  instant(r.Stopped),
		"ide_url":       r.IDEURL,
		"status":        encode(r.Status),
		"metrics":       encode(r.Metrics),
		"prebuild":      prebuild,
		"tokens":        fmt.Sprint(r.Tokens),
		"lifecycle":     fmt.Sprint(events),
	}
}

func (r *Row) tell(event string, at time.Time) {
	r.Lifecycle = append(r.Lifecycle, Event{MessageID: "bridge-" + event + "-" + r.ID.String(), At: at})
}

// stop does what the first STOPPED of an instance brings about.
func (r *Row) stop(at time.Time) {
	r.Tokens = slices.DeleteFunc(r.Tokens, func(name string) bool {
		return strings.HasPrefix(name, r.ID.String()+"-")
	})
	r.tell("wsstopped", at)
}

// newer says whether the prebuild speaks of an instance of the workspace that
// is newer than the row's.
func (r *Row) newerSpeaks() bool {
	return r.Prebuild.Instance != status.InstanceID{} && compareInstances(r.Prebuild, r) > 0
}

// olderSpeaks says whether the prebuild speaks of an older instance, or of
// none that ever told a version.
func (r *Row) olderSpeaks() bool {
	if (r.Prebuild.Instance == status.InstanceID{}) {
		return r.Prebuild.Version == 0
	}
	return compareInstances(r.Prebuild, r) < 0
}

func compareInstances(p *Prebuild, r *Row) int {
	return cmp.Or(p.InstanceCreated.Compare(r.Created), bytes.Compare(p.Instance[:], r.ID[:]))
}

func terminal(state string) bool {
	return slices.Contains([]string{"available", "timeout", "aborted", "failed"}, state)
}

// object gives the object under a key of a document, made if there is none.
func object(document map[string]any, key string) map[string]any {
	if inner, is := document[key].(map[string]any); is {
		return inner
	}
	inner := map[string]any{}
	document[key] = inner
	return inner
}

// blank says whether a value counts as not given.
func blank(value any) bool {
	switch encode(value) {
	case "null", `""`, "0", "{}":
		return true
	}
	return false
}

func cloneObject(document map[string]any) map[string]any {
	out := maps.Clone(document)
	for key, value := range out {
		if inner, is := value.(map[string]any); is {
			out[key] = cloneObject(inner)
		}
	}
	return out
}

func encode(value any) string {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err) // the model holds texts, numbers, booleans, lists and objects
	}
	return string(encoded)
}

// Decode reads a JSON object and keeps its numbers as they are written.
func Decode(encoded []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var document map[string]any
	if err := decoder.Decode(&document); err != nil {
		return nil, fmt.Errorf("decode %q: %w", encoded, err)
	}
	return document, nil
}
