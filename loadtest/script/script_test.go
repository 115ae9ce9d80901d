package script

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

func library(t *testing.T, seed uint64) *Library {
	t.Helper()
	lib, err := NewLibrary(seed)
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

func all(l *Library) []*Script {
	return append(append(append([]*Script{l.Flood}, l.Plain...), l.Short...), l.Odd...)
}

func TestSameSeedSameBytes(t *testing.T) {
	a, b := all(library(t, 7)), all(library(t, 7))
	other := all(library(t, 8))
	differs := false
	for n := range a {
		id := NewIdentity(7, n)
		if id != NewIdentity(7, n) || id == NewIdentity(8, n) || id == NewIdentity(7, n+1) {
			t.Fatalf("identity %d does not follow from seed and number", n)
		}
		if len(a[n].Steps) != len(b[n].Steps) {
			t.Fatalf("%s: %d and %d steps", a[n].Name, len(a[n].Steps), len(b[n].Steps))
		}
		for i := range a[n].Steps {
			got := a[n].Steps[i].Response(&id)
			if !bytes.Equal(got, b[n].Steps[i].Response(&id)) {
				t.Errorf("%s, step %d: other bytes from the same seed", a[n].Name, i)
			}
			if i < len(other[n].Steps) && !bytes.Equal(got, other[n].Steps[i].Response(&id)) {
				differs = true
			}
		}
	}
	if !differs {
		t.Error("another seed changes nothing")
	}
}

func TestLifecyclesAreRealistic(t *testing.T) {
	lib := library(t, 1)
	want := []wsman.WorkspacePhase{
		wsman.WorkspacePhase_PENDING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_INITIALIZING,
		wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_STOPPING, wsman.WorkspacePhase_STOPPED,
	}
	for n, s := range lib.Plain {
		id := NewIdentity(1, n)
		if len(s.Steps) != len(want) {
			t.Fatalf("%d updates", len(s.Steps))
		}
		last := uint64(0)
		for i := range s.Steps {
			step := &s.Steps[i]
			if size := len(step.Response(&id)); size < 700 || size > 1000 {
				t.Errorf("step %d has %d bytes", i, size)
			}
			u := step.Frame.Decode(&id, step.Version(&id))
			if u.GetPhase() != want[i] || u.GetStatusVersion() <= last {
				t.Errorf("step %d: %v, version %d after %d", i, u.GetPhase(), u.GetStatusVersion(), last)
			}
			last = u.GetStatusVersion()
			if step.Stopped != (u.GetPhase() == wsman.WorkspacePhase_STOPPED) {
				t.Errorf("step %d: Stopped is %v", i, step.Stopped)
			}
		}
		if ports := s.Steps[5].Frame.Decode(&id, 1).GetSpec().GetExposedPorts(); len(ports) != 2 {
			t.Errorf("%d ports", len(ports))
		}
	}
}

func TestBindingLeavesNoPlaceholder(t *testing.T) {
	for n, s := range all(library(t, 3)) {
		id := NewIdentity(3, n)
		for i := range s.Steps {
			step := &s.Steps[i]
			text := string(step.Response(&id))
			for _, p := range []string{FormatUUID(placeholder.Instance), placeholder.Workspace, placeholder.Owner} {
				if strings.Contains(text, p) {
					t.Errorf("%s, step %d holds the placeholder %s", s.Name, i, p)
				}
			}
			u := step.Frame.Decode(&id, step.Version(&id))
			if step.Kind == Invalid {
				continue
			}
			if u.GetId() != FormatUUID(id.Instance) || u.GetMetadata().GetMetaId() != id.Workspace ||
				u.GetMetadata().GetOwner() != id.Owner || u.GetStatusVersion() != step.Version(&id) {
				t.Errorf("%s, step %d is of %s", s.Name, i, protojson.Format(u))
			}
			status := new(wsman.WorkspaceStatus)
			if err := proto.Unmarshal(step.Frame.Status(&id), status); err != nil || status.GetStatusVersion() != 0 {
				t.Errorf("%s, step %d without a version: %v, version %d", s.Name, i, err, status.GetStatusVersion())
			}
		}
	}
}

func TestRepeatsAndStaleOnes(t *testing.T) {
	lib := library(t, 5)
	id := NewIdentity(5, 0)
	kinds := map[Kind]int{}
	for _, s := range lib.Odd {
		highest := uint64(0)
		for i := range s.Steps {
			step := &s.Steps[i]
			kinds[step.Kind]++
			v := step.Version(&id)
			switch step.Kind {
			case Repeat:
				if v <= highest || step.Frame != s.Steps[i-1].Frame {
					t.Errorf("%s, step %d is no repeat", s.Name, i)
				}
			case Stale:
				if v > highest {
					t.Errorf("%s, step %d is not stale: %d after %d", s.Name, i, v, highest)
				}
			case Invalid:
				continue
			}
			highest = max(highest, v)
		}
	}
	for k := Change; k <= Invalid; k++ {
		if kinds[k] == 0 {
			t.Errorf("no step of kind %v", k)
		}
	}
	steps := lib.Flood.Steps
	if room := steps[FloodStep+1].Delta - steps[FloodStep].Delta; room <= FloodRoom {
		t.Errorf("room for %d versions", room)
	}
}

func TestUUIDs(t *testing.T) {
	id := NewIdentity(1, 1).Instance
	if got, ok := ParseUUID(strings.ToUpper(FormatUUID(id))); !ok || got != id {
		t.Errorf("%x became %x", id, got)
	}
	for _, bad := range []string{"", "x", FormatUUID(id)[1:], strings.ReplaceAll(FormatUUID(id), "-", "+"), strings.Repeat("g", 36)} {
		if _, ok := ParseUUID(bad); ok {
			t.Errorf("%q is taken for a UUID", bad)
		}
	}
}

func BenchmarkResponse(b *testing.B) {
	lib, err := NewLibrary(1)
	if err != nil {
		b.Fatal(err)
	}
	id := NewIdentity(1, 1)
	b.ReportAllocs()
	for b.Loop() {
		_ = lib.Plain[0].Steps[5].Response(&id)
	}
}
