package ledger

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
)

// The Redis channels.
const (
	channelInstances = "chan:workspace-instances"
	channelPrebuilds = "chan:prebuilds"
	channelHeadless  = "chan:headless"
)

// Heard records a message of a Redis channel. It returns the number of the
// instance and which publish of it this was, from 1; 0 if it is no publish of an
// instance under test.
func (l *Ledger) Heard(channel, payload string, at time.Time) (number int, publish int) {
	switch channel {
	case channelInstances:
		return l.hearInstance(payload, at)
	case channelPrebuilds:
		l.hearPrebuild(payload)
	case channelHeadless:
		l.hearHeadless(payload)
	}
	return 0, 0
}

func (l *Ledger) hearInstance(payload string, at time.Time) (int, int) {
	owner, instance, workspace, ok := scanInstance(payload)
	if !ok {
		// Not in the usual order: right all the same, if slower.
		m, fine := fields(payload, "ownerID", "instanceID", "workspaceID")
		if !fine {
			l.malformed(channelInstances, payload)
			return 0, 0
		}
		owner, instance, workspace = m["ownerID"], m["instanceID"], m["workspaceID"]
	}
	id, ok := script.ParseUUID(instance)
	number, known := l.byID[id]
	if !ok || !known {
		l.stray()
		return 0, 0
	}
	publish := l.heardInstance(number, at)
	// Making up the identity again costs more than all the rest.
	if publish%8 == 1 {
		if s := l.cfg.Subject(int(number)); owner != s.ID.Owner || workspace != s.ID.Workspace {
			l.malformed(channelInstances, payload)
		}
	}
	return int(number), int(publish)
}

// scanInstance takes the object apart if it is written without spaces and in
// the usual order, with owners of the usual width.
func scanInstance(p string) (owner, instance, workspace string, ok bool) {
	const first, second, third, end = `{"ownerID":"`, `","instanceID":"`, `","workspaceID":"`, `"}`
	const uuid = 36
	const ownerAt = len(first)
	const instanceAt = ownerAt + uuid + len(second)
	const workspaceAt = instanceAt + uuid + len(third)
	if len(p) < workspaceAt+len(end) || p[:ownerAt] != first ||
		p[ownerAt+uuid:instanceAt] != second || p[instanceAt+uuid:workspaceAt] != third || p[len(p)-len(end):] != end {
		return "", "", "", false
	}
	owner, instance, workspace = p[ownerAt:ownerAt+uuid], p[instanceAt:instanceAt+uuid], p[workspaceAt:len(p)-len(end)]
	for i := range len(workspace) {
		if workspace[i] == '"' || workspace[i] == '\\' {
			return "", "", "", false
		}
	}
	return owner, instance, workspace, true
}

func (l *Ledger) hearPrebuild(payload string) {
	m, ok := fields(payload, "status", "prebuildID", "workspaceID", "projectID", "organizationID")
	if !ok {
		m, ok = fields(payload, "status", "prebuildID", "workspaceID", "projectID")
	}
	if !ok {
		l.malformed(channelPrebuilds, payload)
		return
	}
	id, _ := script.ParseUUID(m["prebuildID"])
	number, known := l.byPrebuild[id]
	if !known {
		l.stray()
		return
	}
	s := l.cfg.Subject(int(number))
	organization, given := m["organizationID"]
	if m["workspaceID"] != s.ID.Workspace || m["projectID"] != s.ProjectID() ||
		organization != s.OrganizationID() || given && organization == "" {
		l.malformed(channelPrebuilds, payload)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Prebuilds++
	l.said[number].states = append(l.said[number].states, m["status"])
}

func (l *Ledger) hearHeadless(payload string) {
	m, ok := fields(payload, "type", "workspaceID")
	if !ok {
		l.malformed(channelHeadless, payload)
		return
	}
	number, known := l.byWorkspace[m["workspaceID"]]
	if !known {
		l.stray()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Headless++
	l.said[number].types = append(l.said[number].types, m["type"])
}

// fields decodes an object that has exactly the fields named, all of them texts.
func fields(payload string, names ...string) (map[string]string, bool) {
	var m map[string]*string
	if err := json.Unmarshal([]byte(payload), &m); err != nil || len(m) != len(names) {
		return nil, false
	}
	texts := make(map[string]string, len(m))
	for _, n := range names {
		if m[n] == nil {
			return nil, false
		}
		texts[n] = *m[n]
	}
	return texts, true
}

func (l *Ledger) malformed(channel, payload string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault(oracle.Difference{Kind: oracle.Malformed, Field: channel, Want: "exactly the contract's fields, of an instance under test", Got: payload})
}

func (l *Ledger) stray() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Strays++
}

// compareSaid checks what was said of a prebuild against what its updates must
// have said, and against the row.
func compareSaid(r *record, want oracle.Outcome, got *oracle.PrebuildRow, gaps bool) []oracle.Difference {
	if want.Prebuild == nil || got == nil {
		return nil
	}
	var diffs []oracle.Difference
	add := func(kind oracle.Kind, field string, want, got any) {
		diffs = append(diffs, difference(kind, field, want, got))
	}
	states, types := r.prebuild.states, r.prebuild.types
	if changed := *got != *StartOf(r.Subject).Prebuild; changed && !gaps {
		if len(states) == 0 || states[len(states)-1] != got.State {
			add(oracle.Unpublished, channelPrebuilds, got.State, states)
		}
		if len(types) == 0 {
			add(oracle.Unpublished, channelHeadless, want.Headless, types)
		}
	}
	if r.cut || r.retold {
		return diffs
	}
	if kind, ok := inSequence(want.Prebuilds, states); !ok {
		add(kind, channelPrebuilds, want.Prebuilds, states)
	}
	if kind, ok := inSequence(want.Headless, types); !ok {
		add(kind, channelHeadless, want.Headless, types)
	}
	if !gaps && len(states) != len(types) {
		add(oracle.Wrong, channelHeadless, states, types)
	}
	return diffs
}

// inSequence says whether got is want with some left out, and if not, what that
// is: folding skips states, but never turns them round.
func inSequence(want, got []string) (oracle.Kind, bool) {
	rest := want
	for _, g := range got {
		i := slices.Index(rest, g)
		switch {
		case i >= 0:
			rest = rest[i+1:]
		case len(got) > len(want):
			return oracle.Doubled, false
		default:
			return oracle.Regressed, false
		}
	}
	return 0, true
}

func difference(kind oracle.Kind, field string, want, got any) oracle.Difference {
	return oracle.Difference{Kind: kind, Field: field, Want: fmt.Sprint(want), Got: fmt.Sprint(got)}
}
