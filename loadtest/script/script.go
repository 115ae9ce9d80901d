// Package script writes what simulated clusters say: lifecycles of realistic
// messages (700 to 1,000 bytes), and the odd ones that a bridge must survive.
//
// A Script is the list of messages of one instance, in the order of sending,
// without the instance: frames are encoded once for a placeholder and bound to
// any number of identities cheaply. Everything follows from a seed: the same
// seed writes the same scripts and identities, byte for byte. Nothing here is
// mutable once made, so that all of it is safe for concurrent use.
//
// The load test's driver owns the scripts; the oracle reads them.
package script

import (
	"fmt"
	"math/rand/v2"
)

// Kind says why a step is there. It is for drivers and reports only: the oracle
// judges a message by its content.
type Kind byte

const (
	// Change: the state of the instance has changed.
	Change Kind = iota
	// Repeat: equal to the message before but for its version.
	Repeat
	// Stale: an older message, with its old version.
	Stale
	// Invalid: a message that must be skipped.
	Invalid
)

func (k Kind) String() string {
	return [...]string{"change", "repeat", "stale", "invalid"}[k]
}

// Step is one message of a script.
type Step struct {
	Frame *Frame
	Kind  Kind
	// Delta is added to the identity's base to make the version; an Unversioned
	// step has version 0, an Overflow one a version above 2^63-1.
	Delta                 uint64
	Unversioned, Overflow bool
	// Stopped: after this message the cluster may forget the instance.
	Stopped bool
}

// Version is the status_version that the step has for an identity.
func (s *Step) Version(id *Identity) uint64 {
	switch {
	case s.Unversioned:
		return 0
	case s.Overflow:
		return 1<<63 + s.Delta
	default:
		return id.Base + s.Delta
	}
}

// Response is the encoded wsman.SubscribeResponse of the step.
func (s *Step) Response(id *Identity) []byte { return s.Frame.Response(id, s.Version(id)) }

// Role says how an instance's row stands in the database.
type Role byte

const (
	// Known: the row exists and belongs to the cluster.
	Known Role = iota
	// Unknown: there is no row.
	Unknown
	// Foreign: the row belongs to another cluster.
	Foreign
)

// Type is the type of a workspace, as the table has it.
type Type string

// The types.
const (
	Regular    Type = "regular"
	Prebuild   Type = "prebuild"
	ImageBuild Type = "imagebuild"
)

// Script is what a cluster says of one instance.
type Script struct {
	// Name is the scenario, for reports.
	Name  string
	Type  Type
	Role  Role
	Steps []Step
}

// Library is all scripts of one seed.
type Library struct {
	// Plain are variants of the lifecycle of eight updates, nothing else.
	Plain []*Script
	// Short are lifecycles of three updates.
	Short []*Script
	// Odd are all the other scenarios, each in one variant.
	Odd []*Script
	// Flood is a lifecycle with room for FloodRoom versions after its fifth
	// update (RUNNING), for repeats and old messages in any number.
	Flood *Script
}

// FloodStep is the number of the step of Library.Flood after which the room is;
// FloodRoom is how many versions there are in it.
const (
	FloodStep = 4
	FloodRoom = 1 << 32
)

// NewLibrary writes the scripts of a seed.
func NewLibrary(seed uint64) (*Library, error) {
	lib := &Library{}
	for i := range 8 {
		w := newWriter(rand.New(rand.NewPCG(seed, uint64(i))), Regular)
		w.lifecycle()
		lib.Plain = append(lib.Plain, w.script("lifecycle", Known))

		w = newWriter(rand.New(rand.NewPCG(seed, uint64(100+i))), Regular)
		w.short()
		lib.Short = append(lib.Short, w.script("short", Known))

		if w.err != nil {
			return nil, w.err
		}
	}
	w := newWriter(rand.New(rand.NewPCG(seed, 200)), Regular)
	w.start()
	w.delta += FloodRoom
	w.ports()
	w.stopping(byRequest)
	w.stopped()
	if w.err != nil {
		return nil, w.err
	}
	lib.Flood = w.script("flood", Known)
	for i, s := range scenarios {
		w := newWriter(rand.New(rand.NewPCG(seed, uint64(1000+i))), s.of)
		s.write(w)
		if w.err != nil {
			return nil, fmt.Errorf("scenario %s: %w", s.name, w.err)
		}
		lib.Odd = append(lib.Odd, w.script(s.name, s.role))
	}
	return lib, nil
}

// Pick chooses the script of the instance with a number: one of Odd in a share
// of the cases, else one of Plain.
func (l *Library) Pick(seed uint64, number int, odd float64) *Script {
	rng := rand.New(rand.NewPCG(seed^0x5c21b7, uint64(number)))
	if rng.Float64() < odd {
		return l.Odd[rng.IntN(len(l.Odd))]
	}
	return l.Plain[number%len(l.Plain)]
}
