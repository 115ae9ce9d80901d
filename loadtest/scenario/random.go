package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
)

// Random draws a scenario: the same from the same source. rate is the highest
// that it may have, in updates a second; number goes into its name.
func Random(rng *rand.Rand, number int, rate float64) *Scenario {
	s := &Scenario{
		Name: fmt.Sprintf("soak-%03d", number),
		Fleet: Fleet{
			Replicas: 2 + rng.IntN(3),
			Lease:    time.Duration(2+rng.IntN(3)) * time.Second,
		},
		Work: Work{
			Shape: loadtest.Steady, Rate: rate * (0.3 + 0.7*rng.Float64()), Clusters: 1 + rng.IntN(20),
			Live: 100 + rng.IntN(900), Odd: 0.5 * rng.Float64(), Burst: 1 + rng.IntN(4),
		},
	}
	s.Work.Rate = float64(int(s.Work.Rate))
	switch rng.IntN(6) {
	case 0:
		s.Work.Hot = 0.5 + 0.4*rng.Float64()
	case 1:
		s.Work.Short = true
		s.Work.Odd = 0
	}
	draw := drawing{rng, s}
	at := 3 * time.Second
	for range 1 + rng.IntN(4) {
		f := draw.fault(at)
		s.Faults = append(s.Faults, f)
		if rng.IntN(4) > 0 {
			at += f.For
		}
		at += draw.seconds(1, 5)
	}
	s.Work.Duration = s.Last() + 5*time.Second
	s.Summary = "drawn: " + faultNames(s.Faults)
	s.complete()
	return s
}

func faultNames(faults []Fault) (names string) {
	for i, f := range faults {
		if i > 0 {
			names += ", "
		}
		names += f.Do
		if target := f.Target.String(); target != "" {
			names += " " + target
		}
	}
	return names
}

type drawing struct {
	rng *rand.Rand
	s   *Scenario
}

func (d drawing) seconds(from, to int) time.Duration {
	return time.Duration(from*1000+d.rng.IntN((to-from)*1000)) * time.Millisecond
}

// fault draws one that begins at a moment.
func (d drawing) fault(at time.Duration) Fault {
	// What is left to operators' patience is not drawn: a replica that is gone
	// comes back, and only one at a time is gone.
	actions := slices.DeleteFunc(Actions(), func(a Action) bool {
		return a.Name == "wipe" && d.has("wipe") || a.Name == "slice" && d.has("slice") ||
			a.Name == "start" && d.has("start") || a.Name == "upgrade" && d.has("upgrade")
	})
	a := actions[d.rng.IntN(len(actions))]
	f := Fault{At: at, Do: a.Name}
	if kinds := slices.DeleteFunc(slices.Clone(a.Targets), func(k TargetKind) bool { return k == AllReplicas || k == NamedReplica }); len(kinds) > 0 {
		f.Target.Kind = kinds[d.rng.IntN(len(kinds))]
	}
	if f.Target.Kind == OwnerOf || f.Target.Kind == OneCluster {
		f.Target.Cluster = d.rng.IntN(d.s.Work.Clusters)
	}
	if a.lasts != moment {
		f.For = d.seconds(1, 8)
	}
	if a.untilChanges && d.rng.IntN(2) == 0 {
		f.Until = Replaced
	}
	if a.count {
		f.Count = 1
	}
	if a.delay {
		f.Delay = time.Duration(5+d.rng.IntN(95)) * time.Millisecond
	}
	if a.slices {
		f.Slices = 2 + d.rng.IntN(3)
	}
	return f
}

func (d drawing) has(action string) bool {
	return slices.ContainsFunc(d.s.Faults, func(f Fault) bool { return f.Do == action })
}
