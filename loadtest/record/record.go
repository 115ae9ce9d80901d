// Package record is the recording of a load test: what was sent, published and
// waited for in each second, which faults there were, who owned which shard
// when, what each replica used, and what the check found. Reports are made from
// recordings alone, so that one can be shown again, or compared, long after.
//
// A Recording is plain data, owned by whoever has it. Its JSON is versioned by
// Format: fields are added, and neither renamed nor given another meaning,
// within one version. Names of fields say their units: moments and lengths of
// time are seconds (_s), moments counted from the beginning of the run;
// latencies are milliseconds (_ms). A Recorder makes a Recording while the run
// goes on.
package record

import (
	"cmp"
	"slices"
	"time"
)

// Format is the version of the JSON form.
const Format = 1

// Recording is one run.
type Recording struct {
	Format int `json:"format"`
	// Scenario is the name of what was played, Description what it is about in
	// a sentence or two.
	Scenario    string `json:"scenario"`
	Description string `json:"description"`
	Seed        uint64 `json:"seed"`
	// Began is the moment that all others count from; DurationS is from there
	// to the last second that is recorded.
	Began     time.Time `json:"began"`
	DurationS float64   `json:"duration_s"`
	// Product is the version of what was tested.
	Product     string      `json:"product"`
	Environment Environment `json:"environment"`
	Parameters  Parameters  `json:"parameters"`

	// Seconds are in order and without holes: number i is from i to i+1 s. A
	// cluster's are as many, or none if they have not been kept.
	Seconds  []Second  `json:"seconds"`
	Clusters []Cluster `json:"clusters"`
	// Faults and Events are in the order of their beginnings.
	Faults   []Fault   `json:"faults"`
	Events   []Event   `json:"events"`
	Replicas []Replica `json:"replicas"`
	Shards   []Shard   `json:"shards"`
	Moves    []Move    `json:"moves"`

	Latency Latencies `json:"latency"`
	Totals  Totals    `json:"totals"`
	Verdict Verdict   `json:"verdict"`
}

// Installation says whose replicas were tested.
type Installation string

// The kinds of installations.
const (
	// OwnFleet: replicas that the load test has started itself.
	OwnFleet Installation = "own-fleet"
	// Existing: one that was there before.
	Existing Installation = "existing"
)

// Environment is what the run ran on.
type Environment struct {
	Installation Installation `json:"installation"`
	// Machine says in words what the load test ran on.
	Machine     string `json:"machine"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes"`
	// Parts are the versions of the other parts, such as PostgreSQL.
	Parts []Setting `json:"parts"`
}

// Parameters are what the scenario was told. 0 and "" do not apply.
type Parameters struct {
	// Shape is the order and pace of sending, such as steady.
	Shape string `json:"shape"`
	// RatePerSecond is how many updates were due each second.
	RatePerSecond float64 `json:"rate_per_second"`
	Clusters      int     `json:"clusters"`
	Instances     int     `json:"instances"`
	// Replicas at the beginning.
	Replicas int `json:"replicas"`
	// Settings are all others.
	Settings []Setting `json:"settings"`
}

// Setting is a name and its value.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Second is what happened within one second.
type Second struct {
	// Due is how many messages were due to be sent, where the load is an open
	// loop; Sent is how many were. Of them, Changes must take effect.
	Due     int64 `json:"due"`
	Sent    int64 `json:"sent"`
	Changes int64 `json:"changes"`
	// Published is how many changes were followed by a publish of their
	// instance; Publishes counts the messages that did it. One may speak for
	// several changes.
	Published int64 `json:"published"`
	Publishes int64 `json:"publishes"`
	// Waiting is how many changes had been sent and not been followed by a
	// publish when the second was over.
	Waiting int64 `json:"waiting"`
	// Latency is that of the changes in Published, from when they were due.
	Latency Latency `json:"latency"`
}

// Latency holds quantiles of the time from sending a change to its publish. All
// are 0 if Count is.
type Latency struct {
	Count  int64   `json:"count"`
	MeanMS float64 `json:"mean_ms"`
	P50MS  float64 `json:"p50_ms"`
	P90MS  float64 `json:"p90_ms"`
	P99MS  float64 `json:"p99_ms"`
	P999MS float64 `json:"p999_ms"`
	MaxMS  float64 `json:"max_ms"`
}

// Latencies are those of the whole run and of its parts.
type Latencies struct {
	All Latency `json:"all"`
	// Calm is of the seconds that no fault disturbed (see Fault.Disturbs),
	// Disturbed of the others.
	Calm      Latency `json:"calm"`
	Disturbed Latency `json:"disturbed"`
}

// Cluster is what concerns one workspace cluster.
type Cluster struct {
	Name    string   `json:"name"`
	Latency Latency  `json:"latency"`
	Seconds []Second `json:"seconds,omitempty"`
}

// Fault is something that was done to the system.
type Fault struct {
	// Name is what it was, such as kill-replica; Target whom it befell.
	Name   string  `json:"name"`
	Target string  `json:"target"`
	FromS  float64 `json:"from_s"`
	// UntilS is when its cause had ended; the same as FromS for what takes no
	// time, such as a kill.
	UntilS float64 `json:"until_s"`
	// RecoveredS is when all was as before, as far as the scenario could tell;
	// null if it did not look, or it never was.
	RecoveredS *float64 `json:"recovered_s"`
	// What happened, in a sentence.
	What string `json:"what"`
}

// AftermathS is how long after the end of a fault its effects are expected when
// nobody has said when all was as before.
const AftermathS = 5

// EndS is when the effects ended, or may have.
func (f *Fault) EndS() float64 {
	if f.RecoveredS != nil {
		return max(f.UntilS, *f.RecoveredS)
	}
	return f.UntilS + AftermathS
}

// Disturbs says whether its effects fall into second i.
func (f *Fault) Disturbs(i int) bool {
	return f.FromS < float64(i+1) && f.EndS() >= float64(i)
}

// Event is a moment worth knowing, such as a replica that is ready.
type Event struct {
	AtS float64 `json:"at_s"`
	// Kind is a short name, such as leader or ready; What is a sentence.
	Kind string `json:"kind"`
	What string `json:"what"`
}

// Replica is one replica of the service, over all its lives.
type Replica struct {
	Name  string `json:"name"`
	Lives []Life `json:"lives"`
	// Samples are in the order of time, about one a second.
	Samples []Sample `json:"samples"`
}

// Life is from the start of a process to its end.
type Life struct {
	FromS float64 `json:"from_s"`
	// UntilS is the end of the run for one that outlived it.
	UntilS   float64 `json:"until_s"`
	Revision string  `json:"revision"`
	// Ended is how it ended, such as killed; empty for one that outlived the run.
	Ended string `json:"ended"`
}

// Sample is what a replica used and had to do at a moment.
type Sample struct {
	AtS float64 `json:"at_s"`
	// CPUCores is the processor time used since the last sample, over the time
	// that has passed: 1 is one core, busy.
	CPUCores float64 `json:"cpu_cores"`
	// RSSBytes is the memory that the process holds.
	RSSBytes int64 `json:"rss_bytes"`
	// Waiting is how many instances' changes waited in the pipeline.
	Waiting int64 `json:"waiting"`
	// Outbox is how many commits waited to be published.
	Outbox int64 `json:"outbox"`
	// Shards is how many it owned.
	Shards int `json:"shards"`
	// UpdatesPerSecond is how many status updates it heard.
	UpdatesPerSecond float64 `json:"updates_per_second"`
	Leader           bool    `json:"leader"`
}

// Shard is a cluster, or a slice of one.
type Shard struct {
	Cluster string `json:"cluster"`
	// Slice is from 0 to Slices-1; an uncut cluster has 0 or 1 of them.
	Slice  int `json:"slice"`
	Slices int `json:"slices"`
	// Spans are in the order of time and do not overlap. What lies between two
	// of them has not been observed.
	Spans []Span `json:"spans"`
}

// Span is how long a shard had one owner, or none.
type Span struct {
	// Replica is empty while nobody owned it.
	Replica string  `json:"replica"`
	Epoch   int64   `json:"epoch"`
	FromS   float64 `json:"from_s"`
	UntilS  float64 `json:"until_s"`
}

// MoveKind says whether a shard's owner let go of it.
type MoveKind string

// The kinds of moves.
const (
	Planned MoveKind = "planned"
	Crash   MoveKind = "crash"
)

// Move is a shard that changed its owner.
type Move struct {
	// AtS is when it began: for a crash, when the former owner was lost.
	AtS float64 `json:"at_s"`
	// TookS is how long nobody wrote: from the last owner's end to the next
	// one's beginning.
	TookS   float64 `json:"took_s"`
	Cluster string  `json:"cluster"`
	Slice   int     `json:"slice"`
	Slices  int     `json:"slices"`
	// From is empty for a shard that is new.
	From string   `json:"from"`
	To   string   `json:"to"`
	Kind MoveKind `json:"kind"`
	// Reason is the planner's, such as upgrade.
	Reason string `json:"reason"`
}

// Totals are sums over the whole run, with what came after its last second.
type Totals struct {
	Sent      int64 `json:"sent"`
	Changes   int64 `json:"changes"`
	Published int64 `json:"published"`
	Publishes int64 `json:"publishes"`
	// Repeats, Stale and Invalid are messages that had to change nothing.
	Repeats int64 `json:"repeats"`
	Stale   int64 `json:"stale"`
	Invalid int64 `json:"invalid"`
}

// PeakWaiting is the highest Waiting of all seconds.
func (r *Recording) PeakWaiting() (most int64) {
	for i := range r.Seconds {
		most = max(most, r.Seconds[i].Waiting)
	}
	return most
}

// MovesOf are the moves of a kind.
func (r *Recording) MovesOf(kind MoveKind) (moves []Move) {
	for _, m := range r.Moves {
		if m.Kind == kind {
			moves = append(moves, m)
		}
	}
	return moves
}

// LongestMove is the one that took longest, nil if there is none.
func LongestMove(moves []Move) *Move {
	if len(moves) == 0 {
		return nil
	}
	longest := slices.MaxFunc(moves, func(a, b Move) int { return cmp.Compare(a.TookS, b.TookS) })
	return &longest
}
