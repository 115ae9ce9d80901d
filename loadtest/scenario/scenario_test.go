package scenario

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
)

func TestBuiltinsAreRight(t *testing.T) {
	names := Names()
	if len(names) < 20 {
		t.Fatalf("only %v", names)
	}
	for _, name := range names {
		s, err := Builtin(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Name != name {
			t.Errorf("the file %s holds %s", name, s.Name)
		}
		if len(s.Faults) > 0 && s.Work.Duration > 0 && s.Last() > s.Work.Duration {
			t.Errorf("%s: the last fault ends at %v, the sending at %v", name, s.Last(), s.Work.Duration)
		}
	}
	if _, err := Builtin("no-such"); err == nil || !strings.Contains(err.Error(), "rolling-upgrade") {
		t.Errorf("an unknown name: %v", err)
	}
}

// again writes a scenario and reads what was written.
func again(t *testing.T, s *Scenario) *Scenario {
	t.Helper()
	text, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse("again", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return back
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, name := range Names() {
		s, err := Builtin(name)
		if err != nil {
			t.Fatal(err)
		}
		if back := again(t, s); !reflect.DeepEqual(s, back) {
			t.Errorf("%s became %+v", name, back)
		}
	}
}

func TestDrawnScenariosAreRight(t *testing.T) {
	drawn := map[string]bool{}
	for n := range 500 {
		s := Random(rand.New(rand.NewPCG(1, uint64(n))), n, 500)
		if err := s.Complete(); err != nil {
			t.Fatalf("number %d: %v", n, err)
		}
		if !reflect.DeepEqual(s, Random(rand.New(rand.NewPCG(1, uint64(n))), n, 500)) {
			t.Fatalf("number %d is another the second time", n)
		}
		if back := again(t, s); !reflect.DeepEqual(s, back) {
			t.Fatalf("number %d became %+v, was %+v", n, back, s)
		}
		for _, f := range s.Faults {
			drawn[f.Do] = true
		}
	}
	for _, a := range Actions() {
		if !drawn[a.Name] {
			t.Errorf("%s is never drawn", a.Name)
		}
	}
}

func TestEachMistakeIsNamed(t *testing.T) {
	const head = "name: x\nsummary: y\nwork: {shape: steady, rate: 10, duration: 10s}\n"
	for text, want := range map[string]string{
		"":            "EOF",
		"- a":         "f.yaml:1: give keys and values: faults, fleet, name, summary, work",
		"name: [a]\n": "f.yaml:1: name: ",
		"name: A\nsummary: y\nwork: {shape: steady, rate: 1, duration: 1s}":         `f.yaml:1: name: "A"; give lower case letters`,
		"name: x\nsummary: y\nwork:\n  shape: wild\n":                               `f.yaml:4: work.shape: "wild"; give one of storm, steady, closed, repeats, stale`,
		"name: x\nsummary: y\nwork:\n  shape: steady\n  duration: 5s\n":             "f.yaml:4: work.rate: 0; the shape steady needs updates a second",
		"name: x\nsummary: y\nwork: {shape: storm}\n":                               "work.instances: the shape storm needs a number of instances",
		"name: x\nsummary: y\nwork: {shape: storm, instances: 1, rate: 5}\n":        "work.rate: only the shape steady has a rate",
		"name: x\nsummary: y\nwork: {shape: closed, instances: 1, odd: 0.5}\n":      "work.odd: only the shapes storm and steady",
		"name: x\nsummary: y\nwork: {shape: repeats, instances: 1}\n":               "work.messages: 0; the shape repeats needs",
		head + "fleet:\n  replicsa: 3\n":                                            "f.yaml:5: fleet.replicsa: there is no such key; there are lease, replicas, serve",
		head + "fleet:\n  replicas: 0x\n":                                           `f.yaml:5: fleet.replicas: "0x"; give a whole number`,
		head + "fleet:\n  lease: 1500ms\n":                                          "f.yaml:5: fleet.lease: 1.5s; give whole seconds",
		head + "fleet:\n  serve: [lanes]\n":                                         `fleet.serve[0]: "lanes" is no flag`,
		head + "name: z\n":                                                          "f.yaml:4: name: the key is there twice",
		head + "faults: 5\n":                                                        "f.yaml:4: faults: give a list",
		head + "faults:\n- {at: 1s, do: kil, target: leader}\n":                     `f.yaml:5: faults[0].do: "kil"; give one of kill, stop, hold`,
		head + "faults:\n- {at: 5, do: kill, target: leader}\n":                     `f.yaml:5: faults[0].at: "5"; give a time with its unit`,
		head + "faults:\n- {at: 1s, do: kill, target: nobody}\n":                    `faults[0].target: "nobody"; give leader, owner, owner of cluster N`,
		head + "faults:\n- {at: 1s, do: kill, target: redis}\n":                     `faults[0].target: "redis"; kill takes leader, owner, owner of cluster N, any, replica-N, all`,
		head + "faults:\n- {at: 1s, do: kill}\n":                                    `faults[0].target: ""; kill takes leader`,
		head + "faults:\n- {at: 1s, do: upgrade, target: leader}\n":                 `faults[0].target: "leader"; upgrade takes none`,
		head + "faults:\n- {at: 11s, do: kill, target: leader}\n":                   "faults[0].at: 11s is after the end of sending, 10s",
		head + "faults:\n- {at: 1s, do: hold, target: leader}\n":                    "faults[0].for: hold needs a time to last for",
		head + "faults:\n- {at: 1s, do: cut, target: redis, for: 1s}\n":             "faults[0].for: cut takes no time to last for",
		head + "faults:\n- {at: 1s, do: drop, target: cluster 3}\n":                 "faults[0].target: there is no cluster 3; there are 3, counted from 0",
		head + "faults:\n- {at: 1s, do: delay, target: redis, for: 1s}\n":           "faults[0].delay: 0s; give a time up to 1m",
		head + "faults:\n- {at: 1s, do: kill, target: any, delay: 1s}\n":            "faults[0].delay: kill takes none",
		head + "faults:\n- {at: 1s, do: kill, target: any, until: replaced}\n":      "faults[0].until: \"replaced\"; only hold takes it",
		head + "faults:\n- {at: 1s, do: slice, target: cluster 0}\n":                "faults[0].slices: 0; give a number from 1 to 64",
		head + "faults:\n- {at: 1s, do: start, count: -1}\n":                        "faults[0].count: -1; give a number from 1",
		head + "faults:\n- {at: 1s, do: lose-answers, target: clusters, for: 1s}\n": `faults[0].target: "clusters"; lose-answers takes postgres, redis, etcd`,
	} {
		_, err := Parse("f.yaml", []byte(text))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, want %q", text, err, want)
		}
	}
}

func TestAllMistakesAreTold(t *testing.T) {
	_, err := Parse("f.yaml", []byte("name: X\nsummary: ''\nwork: {shape: steady, rate: 1, duration: 1s}\n"))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 2 || !strings.Contains(err.Error(), "2 problems") {
		t.Errorf("got %v", err)
	}
}

func TestDefaults(t *testing.T) {
	s := Scenario{Name: "a", Summary: "b", Work: Work{Shape: loadtest.Storm, Instances: 10}, Faults: []Fault{{At: time.Second, Do: "start"}}}
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	if s.Work.SlowSubscribers != Wait || s.Work.Buffer != 250 || s.Fleet.Lease != 3*time.Second || s.Faults[0].Count != 1 {
		t.Errorf("%+v", s)
	}
	if !s.Planned() {
		t.Error("more replicas are taken for a failure")
	}
	s.Faults = append(s.Faults, Fault{Do: "kill", Target: Target{Kind: Leader}})
	if s.Planned() || !s.Faults[1].NeedsOwnFleet() {
		t.Error("a crash is taken for something planned, or possible anywhere")
	}
}

func TestTargets(t *testing.T) {
	for _, text := range []string{"leader", "owner", "owner of cluster 3", "any", "all", "replica-2", "postgres", "redis", "etcd", "clusters", "cluster 0"} {
		if target, ok := parseTarget(text); !ok || target.String() != text {
			t.Errorf("%q became %q", text, target)
		}
	}
	for _, text := range []string{"", "cluster", "cluster x", "cluster -1", "replica-0", "replica-", "owner of cluster", "Leader"} {
		if target, ok := parseTarget(text); ok {
			t.Errorf("%q is taken for %q", text, target)
		}
	}
}
