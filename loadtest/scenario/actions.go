package scenario

import (
	"slices"
	"strings"
)

// Action is something that a fault can do.
type Action struct {
	Name string
	// What it does, in a line.
	What string
	// Targets are the kinds that it takes; none: it strikes nobody in
	// particular.
	Targets []TargetKind
	// Own: it needs the processes of a fleet of the load test's own. For the
	// targets Postgres, Redis and Etcd every action does.
	Own bool
	// Planned: nothing fails of it.
	Planned bool

	lasts                              lasting
	count, delay, slices, untilChanges bool
}

// lasting says whether an action takes a time to last for.
type lasting int

const (
	moment lasting = iota // it does not
	mayLast
	mustLast
)

var (
	oneReplica  = []TargetKind{Leader, Owner, OwnerOf, AnyReplica, NamedReplica}
	replicas    = append(slices.Clone(oneReplica), AllReplicas)
	someCluster = []TargetKind{AllClusters, OneCluster}
	connections = append([]TargetKind{Postgres, Redis, Etcd}, someCluster...)
)

// Actions lists all that a fault can do.
func Actions() []Action {
	return []Action{
		{Name: "kill", What: "ends a replica as a crash does (kill -9); with for, it starts again after that",
			Targets: replicas, Own: true, lasts: mayLast},
		{Name: "stop", What: "ends a replica in order (SIGTERM): it hands over what it carries; with for, it starts again after that",
			Targets: replicas, Own: true, Planned: true, lasts: mayLast},
		{Name: "hold", What: "stops the process of a replica where it is (SIGSTOP), and lets it go on: a phantom owner, if others have replaced it meanwhile (until: replaced)",
			Targets: oneReplica, Own: true, lasts: mustLast, untilChanges: true},
		{Name: "start", What: "starts more replicas (count) and waits until they are ready",
			Own: true, Planned: true, count: true},
		{Name: "upgrade", What: "replaces all replicas by those of another revision, one after the other: the new one is ready before the old one stops",
			Own: true, Planned: true},
		{Name: "drain", What: "has an operator move everything off a replica, and lets it have its part again after that",
			Targets: oneReplica, Planned: true, lasts: mustLast},
		{Name: "slice", What: "has an operator cut a cluster into another number of slices",
			Targets: []TargetKind{OneCluster}, Planned: true, slices: true},
		{Name: "outage", What: "stops a server, or clusters, and starts them again; what Redis subscribers hear goes on: only the service cannot reach it",
			Targets: connections, lasts: mustLast},
		{Name: "wipe", What: "takes all that etcd holds", Targets: []TargetKind{Etcd}},
		{Name: "refuse", What: "cuts all connections to a server, or to clusters, and refuses new ones",
			Targets: connections, lasts: mustLast},
		{Name: "cut", What: "cuts all connections, once", Targets: connections},
		{Name: "freeze", What: "lets nothing pass on any connection, and ends none: a network that drops packets",
			Targets: connections, lasts: mustLast},
		{Name: "delay", What: "makes all that passes on any connection late, each way, by delay",
			Targets: connections, Planned: true, lasts: mustLast, delay: true},
		{Name: "lose-answers", What: "throws away what a server answers: it does its work, and nobody hears of it",
			Targets: []TargetKind{Postgres, Redis, Etcd}, lasts: mustLast},
		{Name: "drop", What: "has clusters drop their subscribers as if their buffers were full",
			Targets: someCluster, Planned: true},
		{Name: "cut-streams", What: "has clusters end all streams at once, with what is buffered unsent: all take snapshots then",
			Targets: someCluster, Planned: true},
	}
}

// actionOf is the action of a name, nil if there is none.
func actionOf(name string) *Action {
	actions := Actions()
	if i := slices.IndexFunc(actions, func(a Action) bool { return a.Name == name }); i >= 0 {
		return &actions[i]
	}
	return nil
}

// Action is what the fault does.
func (f *Fault) Action() Action { return *actionOf(f.Do) }

// NeedsOwnFleet says whether the fault can be done only to a fleet that the load
// test has started.
func (f *Fault) NeedsOwnFleet() bool {
	switch f.Target.Kind {
	case Postgres, Redis, Etcd:
		return true
	}
	return actionOf(f.Do).Own
}

// Connection says whether the fault needs something between the service and its
// target that it can break.
func (f *Fault) Connection() bool {
	switch f.Do {
	case "refuse", "cut", "freeze", "delay", "lose-answers":
		return true
	case "outage":
		return f.Target.Kind == Redis
	}
	return false
}

// takes says whether the action takes a kind of target.
func (a *Action) takes(kind TargetKind) bool {
	if len(a.Targets) == 0 {
		return kind == Nobody
	}
	return slices.Contains(a.Targets, kind)
}

// allowedTargets are the targets in words.
func (a *Action) allowedTargets() string {
	if len(a.Targets) == 0 {
		return "none"
	}
	words := make([]string, len(a.Targets))
	for i, kind := range a.Targets {
		switch kind {
		case OwnerOf, OneCluster:
			words[i] = string(kind) + " N"
		case NamedReplica:
			words[i] = "replica-N"
		default:
			words[i] = string(kind)
		}
	}
	return strings.Join(words, ", ")
}
