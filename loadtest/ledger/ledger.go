// Package ledger records a load test: what was sent of each instance and when,
// and what was published. It is small for each instance, so that a million fit.
//
// A Listener feeds a Ledger from Redis; Ledger.Check holds it, by the oracle,
// against the tables in Postgres. The driver of the load test owns both.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

// Subject is an instance under test: how it was seeded, who speaks of it and
// what is said.
type Subject struct {
	seed.Instance
	// Cluster is the number of the cluster that sends the script.
	Cluster int
	Script  *script.Script
}

// Config says what a ledger is about.
type Config struct {
	// Clusters are the names of the clusters, by number.
	Clusters []string
	// Installation and DecisiveStopped: see oracle.Rules.
	Installation    string
	DecisiveStopped bool
	// Count is the number of instances; Subject describes each of 0 to Count-1.
	// It must give the same each time, and is asked again when checking, so
	// that the ledger need not keep it. It is called concurrently.
	Count   int
	Subject func(number int) Subject
	// AmongOthers: the tables hold much that is not under test, so that Check
	// asks for the rows by their keys instead of reading all.
	AmongOthers bool
	// Published, if set, is called when all that has been sent of an instance
	// so far has been followed by a publish. It is called by the listener's
	// goroutine and must not block.
	Published func(number int)
	// Sending, if set, is called for each message that Sent is told of: the
	// number of its cluster, the time that Sent was given, and whether it must
	// take effect. Heard is called for each publish of an instance, with the time
	// since sending (in an open loop: since it was due) of each change that it is
	// the first to follow; they are its own for the call only. Both are called under
	// the ledger's lock: they must not block, nor call the ledger.
	Sending func(cluster int, at time.Time, change bool)
	Heard   func(cluster int, at time.Time, followed []time.Duration)
}

// Counts are the sums of a run so far.
type Counts struct {
	// Sent counts all messages, by kind; Changes are those that must take
	// effect.
	Sent, Changes, Repeats, Stale, Invalid int64
	// Publishes on chan:workspace-instances; Prebuilds and Headless on the
	// other channels.
	Publishes, Prebuilds, Headless int64
	// Pending is the number of instances with changes that no publish has
	// followed yet.
	Pending int
	// Malformed publishes have the wrong fields, Strays speak of what is not
	// under test.
	Malformed, Strays int64
	// Gaps is how often the Redis subscription was lost and taken up again:
	// publishes in between have not been heard.
	Gaps int
	// Backwards counts rows that were read with a lower version than before.
	Backwards int64
	// LastPublish is when the last one arrived.
	LastPublish time.Time
}

// Ledger records what is sent and what is heard. All methods are safe for
// concurrent use.
type Ledger struct {
	cfg Config
	// epoch is what the times in entries count from.
	epoch time.Time
	// byID, byPrebuild and byWorkspace (prebuilds' workspaces only) do not
	// change.
	byID        map[[16]byte]int32
	byPrebuild  map[[16]byte]int32
	byWorkspace map[string]int32

	// mu guards everything below.
	mu      sync.Mutex
	entries []entry
	said    map[int32]*said
	samples map[int32]sample
	latency Histogram
	// followed is room for what Heard is given.
	followed []time.Duration
	counts   Counts
	// faults are the first publishes that were wrong in themselves.
	faults []oracle.Difference
	// changed is closed and replaced when nothing is pending any more.
	changed chan struct{}
}

// entry is what is kept of an instance.
type entry struct {
	script  *script.Script
	applied []bool // of each step of the script; shared by all with that script
	cluster int32
	// sent is when each step so far was sent, counted from the epoch.
	sent []time.Duration
	// followed is how many of sent have been followed by a publish.
	followed int32
	// changes and waiting count the steps sent that take effect: all, and
	// those not followed by a publish.
	changes, waiting int32
	publishes        int32
	last             time.Duration // of the last publish
	// highest is the highest version of a repeat that is not in the script.
	highest uint64
	// cut: updates or publishes may have been lost or made twice; overtaken: a
	// snapshot may have overtaken updates.
	cut, overtaken bool
	// retold: publishes may have come twice, though no update was missed.
	retold bool
}

// said is what the channels have said of a prebuild.
type said struct{ states, types []string }

// sample is a row that was read just after a publish.
type sample struct {
	publish int32 // which publish of the instance it was, from 1
	version uint64
}

// New makes a ledger.
func New(cfg Config) (*Ledger, error) {
	if cfg.Count <= 0 || cfg.Subject == nil || len(cfg.Clusters) == 0 {
		return nil, errors.New("a ledger needs clusters and subjects")
	}
	l := &Ledger{
		cfg:         cfg,
		epoch:       time.Now(),
		byID:        make(map[[16]byte]int32, cfg.Count),
		byPrebuild:  make(map[[16]byte]int32),
		byWorkspace: make(map[string]int32),
		entries:     make([]entry, cfg.Count),
		said:        make(map[int32]*said),
		samples:     make(map[int32]sample),
		changed:     make(chan struct{}),
	}
	applied := make(map[*script.Script][]bool)
	for n := range l.entries {
		s := cfg.Subject(n)
		if s.Cluster < 0 || s.Cluster >= len(cfg.Clusters) {
			return nil, fmt.Errorf("subject %d is of cluster %d, there are %d", n, s.Cluster, len(cfg.Clusters))
		}
		if _, twice := l.byID[s.ID.Instance]; twice {
			return nil, fmt.Errorf("subject %d has the id of another", n)
		}
		if applied[s.Script] == nil {
			// What takes effect depends on the script and its role alone.
			applied[s.Script] = oracle.Expect(l.rules(s.Cluster), StartOf(s), sentOf(s, make([]time.Time, len(s.Script.Steps)))).Applied
		}
		l.entries[n] = entry{script: s.Script, applied: applied[s.Script], cluster: int32(s.Cluster)}
		l.byID[s.ID.Instance] = int32(n)
		if s.Type == script.Prebuild {
			l.byPrebuild[s.ID.Prebuild] = int32(n)
			l.byWorkspace[s.ID.Workspace] = int32(n)
			l.said[int32(n)] = &said{}
		}
	}
	return l, nil
}

func (l *Ledger) rules(cluster int) oracle.Rules {
	return oracle.Rules{Cluster: l.cfg.Clusters[cluster], Installation: l.cfg.Installation, DecisiveStopped: l.cfg.DecisiveStopped}
}

// StartOf is how a subject stands after seeding.
func StartOf(s Subject) oracle.Start {
	if s.Script.Role == script.Unknown {
		return oracle.Start{}
	}
	row := &oracle.Row{Region: s.Region, Phase: seed.Phase, Status: oracle.Status{Phase: seed.Phase}}
	if s.NeededImageBuild {
		row.Status.Conditions.NeededImageBuild = new(true)
	}
	start := oracle.Start{Row: row}
	if s.Type == script.Prebuild {
		start.Prebuild = &oracle.PrebuildRow{State: seed.PrebuildState}
	}
	return start
}

// sentOf decodes the first steps of a subject's script, one for each time.
func sentOf(s Subject, at []time.Time) []oracle.Sent {
	sent := make([]oracle.Sent, len(at))
	for i := range at {
		step := &s.Script.Steps[i]
		sent[i] = oracle.Sent{At: at[i], Status: step.Frame.Decode(&s.ID, step.Version(&s.ID))}
	}
	return sent
}

// Sent records that the next step of an instance's script is sent at the given
// time. Call it before sending, lest the publish comes first. In an open loop
// the time is the scheduled one: being late counts.
func (l *Ledger) Sent(number int, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[number]
	step := len(e.sent)
	if e.sent == nil {
		e.sent = make([]time.Duration, 0, len(e.script.Steps))
	}
	e.sent = append(e.sent, at.Sub(l.epoch))
	l.count(e.script.Steps[step].Kind, 1)
	if l.cfg.Sending != nil {
		l.cfg.Sending(int(e.cluster), at, e.applied[step])
	}
	if e.applied[step] {
		l.counts.Changes++
		if e.changes++; e.waiting == 0 {
			l.counts.Pending++
		}
		e.waiting++
	}
}

// Flood records messages of an instance that are not in its script, and must
// change nothing: repeats up to a version, or old ones.
func (l *Ledger) Flood(number int, kind script.Kind, messages int64, highest uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(kind, messages)
	if e := &l.entries[number]; kind == script.Repeat && highest > e.highest {
		e.highest = highest
	}
}

// count adds to the counts of what was sent. mu is held.
func (l *Ledger) count(kind script.Kind, n int64) {
	l.counts.Sent += n
	switch kind {
	case script.Repeat:
		l.counts.Repeats += n
	case script.Stale:
		l.counts.Stale += n
	case script.Invalid:
		l.counts.Invalid += n
	}
}

// Cut records that something failed on the way of a cluster's updates (a
// stream, the service, the database, Redis): what has been sent of its
// instances so far may have been missed but for the latest state, and publishes
// may come twice. Call it again after the failure is over.
func (l *Ledger) Cut(cluster int) {
	l.mark(func(e *entry) {
		if int(e.cluster) == cluster && len(e.sent) > 0 {
			e.cut = true
		}
	})
}

// Retold records that something failed that loses no update, but makes the
// service tell again what it has told (a crash, an outage of Redis): of the
// instances sent so far, publishes may come twice, ending with the newest.
func (l *Ledger) Retold() {
	l.mark(func(e *entry) {
		if len(e.sent) > 0 {
			e.retold = true
		}
	})
}

// Overtaken records that a snapshot of a cluster has been answered: it may have
// overtaken updates that were under way, those of the last seconds at most
// unless no publish has followed them.
func (l *Ledger) Overtaken(cluster int) {
	const window = 5 * time.Second
	recent := time.Since(l.epoch) - window
	l.mark(func(e *entry) {
		if n := len(e.sent); int(e.cluster) == cluster && n > 0 && (e.waiting > 0 || e.sent[n-1] > recent) {
			e.overtaken = true
		}
	})
}

func (l *Ledger) mark(f func(*entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		f(&l.entries[i])
	}
}

// Counts gives the sums so far.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Latency is the time from sending a change to the first publish of its
// instance after that.
func (l *Ledger) Latency() Histogram {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latency
}

// ResetLatency forgets all durations: after warming up, for instance.
func (l *Ledger) ResetLatency() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency = Histogram{}
}

// AwaitPublished returns when every change that was sent has been followed by a
// publish of its instance, or with ctx's error.
func (l *Ledger) AwaitPublished(ctx context.Context) error {
	for {
		l.mu.Lock()
		pending, changed := l.counts.Pending, l.changed
		l.mu.Unlock()
		if pending == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d instances wait for a publish: %w", l.Counts().Pending, ctx.Err())
		}
	}
}

// excuse records that no publish will follow what has been sent of an instance, if
// nothing was sent since.
func (l *Ledger) excuse(number, sent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[number]
	if e.waiting == 0 || len(e.sent) != sent {
		return
	}
	e.followed = int32(sent)
	l.settled(e)
}

// settled records that nothing of an instance waits any more. mu is held.
func (l *Ledger) settled(e *entry) {
	e.waiting = 0
	if l.counts.Pending--; l.counts.Pending == 0 {
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// heardInstance records a publish of an instance.
func (l *Ledger) heardInstance(number int32, at time.Time) (publish int32) {
	l.mu.Lock()
	e := &l.entries[number]
	now := at.Sub(l.epoch)
	l.counts.Publishes++
	l.counts.LastPublish = at
	e.publishes++
	e.last = now
	l.followed = l.followed[:0]
	for i, step := range e.sent[e.followed:] {
		if e.applied[int(e.followed)+i] {
			l.latency.Add(now - step)
			l.followed = append(l.followed, now-step)
		}
	}
	e.followed = int32(len(e.sent))
	if l.cfg.Heard != nil {
		l.cfg.Heard(int(e.cluster), at, l.followed)
	}
	if e.changes == 0 {
		l.fault(oracle.Difference{Kind: oracle.Early, Instance: script.FormatUUID(l.cfg.Subject(int(number)).ID.Instance),
			Scenario: e.script.Name, Field: "publish", Want: "none: nothing has changed", Got: "a publish"})
	}
	done := e.waiting > 0
	if done {
		l.settled(e)
	}
	publish = e.publishes
	l.mu.Unlock()
	if done && l.cfg.Published != nil {
		l.cfg.Published(int(number))
	}
	return publish
}

// sampled records the version that a row had just after a publish.
func (l *Ledger) sampled(number, publish int32, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.samples[number]; version < before.version {
		l.counts.Backwards++
		l.fault(oracle.Difference{Kind: oracle.Regressed, Instance: script.FormatUUID(l.cfg.Subject(int(number)).ID.Instance),
			Scenario: l.entries[number].script.Name, Field: "status_version, read again",
			Want: fmt.Sprintf("at least %d", before.version), Got: fmt.Sprint(version)})
	}
	l.samples[number] = sample{publish, version}
}

// gap records that the subscription was lost.
func (l *Ledger) gap() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Gaps++
}

// fault keeps a wrong publish, as long as there are not too many. mu is held.
func (l *Ledger) fault(d oracle.Difference) {
	if d.Kind == oracle.Malformed {
		l.counts.Malformed++
	}
	if len(l.faults) < maxDifferences {
		l.faults = append(l.faults, d)
	}
}

// record is all that is known of an instance, to be checked.
type record struct {
	Subject
	entry
	sample   sample
	prebuild said
}

func (l *Ledger) record(number int) record {
	subject := l.cfg.Subject(number)
	l.mu.Lock()
	defer l.mu.Unlock()
	r := record{Subject: subject, entry: l.entries[number], sample: l.samples[int32(number)]}
	r.sent = slices.Clone(r.sent)
	if p := l.said[int32(number)]; p != nil {
		r.prebuild = said{slices.Clone(p.states), slices.Clone(p.types)}
	}
	return r
}
