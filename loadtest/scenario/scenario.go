// Package scenario says what a load test plays: a shape of work, and a list of
// faults with their times. A scenario is plain data with a YAML form, so that
// whoever runs the service writes his own; the built-in ones are such files.
//
// The package is pure: it reads, checks and writes scenarios. Package play plays
// them.
package scenario

import (
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
)

// Scenario is what is played.
type Scenario struct {
	// Name is short, in lower case; Summary one line.
	Name, Summary string
	Fleet         Fleet
	Work          Work
	// Faults may be in any order. Those of one moment strike together, their
	// targets chosen before any of them strikes.
	Faults []Fault
}

// Fleet is what a load test starts that has no installation to play against.
type Fleet struct {
	// Replicas at the beginning, default 3.
	Replicas int
	// Lease is how long a replica may be silent, in whole seconds from 2 s;
	// default 3 s.
	Lease time.Duration
	// Serve are further flags of the service, as in --pipeline.lanes=2.
	Serve []string
}

// Work is what the simulated clusters say. See loadtest.Work.
type Work struct {
	Shape loadtest.Shape
	// Duration is how long is sent at least: the sending goes on until every
	// fault is over. 0: until all instances, or messages, have been sent.
	Duration time.Duration
	// Rate is of Steady, in updates a second of all clusters together.
	Rate float64
	// Clusters, default 3.
	Clusters int
	// Live is how many instances are live at once; default 300 for Steady, else
	// 1,000.
	Live int
	// Instances is how many there are; default, for Steady: as many as it takes.
	Instances int
	// Messages is of Repeats and Stale.
	Messages int
	// Hot is the share of instances that belong to the first cluster, 0: all
	// clusters have as many.
	Hot float64
	// Odd is the share of instances that have an odd life.
	Odd float64
	// Burst: instances send up to so many updates in a row; default 1.
	Burst int
	// Short lives have three updates instead of eight.
	Short bool
	// Buffer is how many messages a cluster keeps for a subscriber; default 250,
	// as the real ones.
	Buffer int
	// SlowSubscribers is Drop or Wait; default: Drop for Steady and Closed, as
	// the real ones do, Wait where the point is to send as fast as can be read.
	SlowSubscribers string
}

// What clusters do with a subscriber whose buffer is full.
const (
	Drop = "drop"
	Wait = "wait"
)

// Fault is something that is done to the system.
type Fault struct {
	// At is when, counted from the first message.
	At time.Duration
	// Do is the name of an action, Target whom it strikes.
	Do     string
	Target Target
	// For is how long it lasts; 0: it is a moment, or lasts.
	For time.Duration
	// Until is Replaced, or empty: it lasts until others carry what the target
	// carried, and For longer.
	Until string
	// Count is of start, Delay of delay, Slices of slice.
	Count  int
	Delay  time.Duration
	Slices int
}

// Replaced is what a Fault may last until.
const Replaced = "replaced"

// complete fills in the defaults.
func (s *Scenario) complete() {
	set(&s.Fleet.Replicas, 3)
	set(&s.Fleet.Lease, 3*time.Second)
	w := &s.Work
	set(&w.Clusters, 3)
	set(&w.Burst, 1)
	set(&w.Buffer, 250)
	flood := w.Shape == loadtest.Repeats || w.Shape == loadtest.Stale
	switch {
	case w.Shape == loadtest.Steady:
		set(&w.Live, 300)
	case flood && w.Instances > 0:
		set(&w.Live, w.Instances)
	default:
		set(&w.Live, 1000)
	}
	if w.Shape == loadtest.Steady || w.Shape == loadtest.Closed {
		set(&w.SlowSubscribers, Drop)
	} else {
		set(&w.SlowSubscribers, Wait)
	}
	for i := range s.Faults {
		f := &s.Faults[i]
		if a := actionOf(f.Do); a != nil && a.count {
			set(&f.Count, 1)
		}
	}
}

func set[T comparable](to *T, standard T) {
	var zero T
	if *to == zero {
		*to = standard
	}
}

// Last is when the last fault is to end, as far as that is known.
func (s *Scenario) Last() (last time.Duration) {
	for _, f := range s.Faults {
		last = max(last, f.At+f.For)
	}
	return last
}

// Planned says whether nothing fails in the scenario: then every change is told
// once, and no write is refused.
func (s *Scenario) Planned() bool {
	for _, f := range s.Faults {
		if !actionOf(f.Do).Planned {
			return false
		}
	}
	return true
}
