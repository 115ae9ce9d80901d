// Package loadtest plays simulated workspace clusters against a bridge and says
// what came of it: what was lost, what went back, what was told twice, and how
// long it took.
//
// The parts: sim (the clusters), script (what they say), seed (the rows that
// exist before), oracle (what must come of it), ledger (what was sent and heard,
// and the check). Nothing here knows the bridge: it sees a gRPC client, the
// tables and the Redis channels.
//
// A Test owns all its parts; whoever makes it runs it once.
package loadtest

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/seed"
)

// Shape is the order and pace in which updates are sent.
type Shape string

const (
	// Storm sends as fast as the streams take it: waves of instances, step by
	// step over all instances of the wave.
	Storm Shape = "storm"
	// Steady is an open loop: update number k is due k/Rate after the start,
	// whatever became of the ones before. Latency counts from when it was due.
	Steady Shape = "steady"
	// Closed sends an instance's next update when its last has been published.
	Closed Shape = "closed"
	// Repeats brings instances to RUNNING, then sends messages that differ from
	// the last one in version alone, then one more change of each instance,
	// whose publish shows that all before it has been read.
	Repeats Shape = "repeats"
	// Stale does the same with messages older than what is stored.
	Stale Shape = "stale"
)

// Work says what to send. All of it follows from Seed, but for the moments.
type Work struct {
	Shape Shape
	Seed  uint64
	// Clusters is the number of clusters, default 1. Instances are dealt to
	// them in turn.
	Clusters int
	// Name is what the names of the clusters begin with, and the regions of
	// instances, default "sim": for several tests against one service.
	Name string
	// Instances is how many rows are seeded and, time allowing, played.
	Instances int
	// Wave is how many instances are live at once, default 2,000: the size of
	// a wave, or the number in flight. At most Instances. Before and after a
	// Repeats or Stale it is how many are sent between two waits for publishes,
	// default Instances.
	Wave int
	// Rate is for Steady, in updates a second.
	Rate float64
	// Burst is for Steady: instances send up to so many updates in a row, each
	// its own number from 1 to Burst, instead of one at a time. Default 1.
	Burst int
	// Duration ends the sending, 0: when all instances have been played. A
	// Storm finishes its wave; the others stop where they are.
	Duration time.Duration
	// Messages is how many Repeats or Stale sends, beside its changes.
	Messages int
	// Hot is the share of instances, 0 to 1, that belong to the first cluster;
	// the others are dealt to the rest. 0: all are dealt alike.
	Hot float64
	// Odd is the share of instances, 0 to 1, that are played an odd script
	// instead of the lifecycle of eight updates. Storm and Steady only.
	Odd float64
	// Short plays lifecycles of three updates instead of eight.
	Short bool
}

func (w *Work) complete() error {
	if w.Clusters == 0 {
		w.Clusters = 1
	}
	if w.Name == "" {
		w.Name = "sim"
	}
	if w.Wave == 0 && (w.Shape == Repeats || w.Shape == Stale) {
		w.Wave = w.Instances
	} else if w.Wave == 0 {
		w.Wave = 2000
	}
	w.Wave = min(w.Wave, w.Instances)
	w.Burst = max(w.Burst, 1)
	switch {
	case w.Instances <= 0 || w.Clusters < 0 || w.Wave < 0 || w.Duration < 0:
		return errors.New("a load test needs instances, and no negative numbers")
	case w.Odd < 0 || w.Odd > 1:
		return fmt.Errorf("a share of %g odd instances", w.Odd)
	case w.Hot < 0 || w.Hot > 1:
		return fmt.Errorf("a share of %g instances of the hot cluster", w.Hot)
	}
	switch w.Shape {
	case Storm:
	case Steady:
		if w.Rate <= 0 {
			return errors.New("a steady load needs a rate")
		}
	case Closed:
		if w.Odd > 0 {
			return errors.New("a closed loop cannot wait for odd messages: not all are published")
		}
	case Repeats, Stale:
		if w.Messages <= 0 || w.Messages >= script.FloodRoom {
			return fmt.Errorf("a flood of %d messages", w.Messages)
		}
		if w.Odd > 0 || w.Short {
			return errors.New("a flood has a script of its own")
		}
	default:
		return fmt.Errorf("unknown shape %q", w.Shape)
	}
	return nil
}

// clusterName is how the simulated clusters are called.
func (w *Work) clusterName(n int) string { return fmt.Sprintf("%s-%03d", w.Name, n) }

// elsewhere is the region of instances that belong to none of them.
func (w *Work) elsewhere() string { return w.Name + "-elsewhere" }

// cluster is the number of the cluster of an instance.
func (w *Work) cluster(number int) int {
	if w.Hot == 0 || w.Clusters == 1 {
		return number % w.Clusters
	}
	// Multiples of the golden ratio spread evenly, without a pattern that the
	// dealing of the others could follow.
	if _, part := math.Modf(float64(number) * math.Phi); part < w.Hot {
		return 0
	}
	return 1 + number%(w.Clusters-1)
}

// subject describes the instance of a number.
func (w *Work) subject(lib *script.Library, number int) ledger.Subject {
	var s *script.Script
	switch {
	case w.Shape == Repeats || w.Shape == Stale:
		s = lib.Flood
	case w.Short:
		s = lib.Short[number%len(lib.Short)]
	default:
		s = lib.Pick(w.Seed, number, w.Odd)
	}
	cluster := w.cluster(number)
	region := w.clusterName(cluster)
	if s.Role == script.Foreign {
		region = w.elsewhere()
	}
	return ledger.Subject{
		Instance: seed.Instance{
			ID:               script.NewIdentity(w.Seed, number),
			Type:             s.Type,
			Region:           region,
			NeededImageBuild: number%8 == 0,
			Tokens:           number%16 == 0,
		},
		Cluster: cluster,
		Script:  s,
	}
}

// Report is the result of a test.
type Report struct {
	Work Work `json:"work"`
	// Sent counts all messages. Changes are those that must take effect;
	// Folded is how many of them were not published on their own.
	Sent    int64 `json:"sent"`
	Changes int64 `json:"changes"`
	Repeats int64 `json:"repeats"`
	Stale   int64 `json:"stale"`
	Invalid int64 `json:"invalid"`
	Folded  int64 `json:"folded"`
	// Publishes on chan:workspace-instances, chan:prebuilds, chan:headless.
	Publishes int64 `json:"publishes"`
	Prebuilds int64 `json:"prebuilds"`
	Headless  int64 `json:"headless"`
	// Sending is from the first send to the last, Duration from the first send
	// to the last publish. For Repeats and Stale both begin with the flood.
	Sending  time.Duration `json:"sending_ns"`
	Duration time.Duration `json:"duration_ns"`
	// Latency is from send to publish.
	Latency Latency `json:"latency"`
	// Drops is how often a subscriber was dropped for a full buffer, Gaps how
	// often the Redis subscription was lost, Strays publishes of what is not
	// under test.
	Drops  int   `json:"drops"`
	Gaps   int   `json:"gaps"`
	Strays int64 `json:"strays"`
	// Unsettled says what was still missing when waiting for it ended.
	Unsettled string          `json:"unsettled,omitempty"`
	Verdict   *ledger.Verdict `json:"verdict"`
}

// OK says whether nothing was lost, went back, was wrong or told twice.
func (r *Report) OK() bool { return r.Unsettled == "" && r.Verdict.OK() }

// Latency holds quantiles of a distribution.
type Latency struct {
	Count int64         `json:"count"`
	Mean  time.Duration `json:"mean_ns"`
	P50   time.Duration `json:"p50_ns"`
	P90   time.Duration `json:"p90_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

// Summarize takes the quantiles of a histogram.
func Summarize(h *ledger.Histogram) Latency {
	return Latency{
		Count: h.Count(), Mean: h.Mean(), Max: h.Max(),
		P50: h.Quantile(0.5), P90: h.Quantile(0.9), P99: h.Quantile(0.99), P999: h.Quantile(0.999),
	}
}

// Progress is how far a test has come.
type Progress struct {
	Elapsed time.Duration
	// Sent and Publishes are sums; Pending is the number of instances with
	// changes that no publish has followed yet.
	Sent, Publishes int64
	Pending         int
}
