package record

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// RecorderConfig says what is recorded.
type RecorderConfig struct {
	// Began is when second 0 begins. What is said to happen before is taken to
	// happen then.
	Began time.Time
	// Clusters are their names, by number.
	Clusters []string
	// KeepClusters also keeps the seconds of each cluster, which takes some 200
	// bytes for each of both.
	KeepClusters bool
	// Planned is how long the run should take, for Progress; 0: nobody knows.
	Planned time.Duration
}

// Recorder gathers a Recording while a run goes on. It holds a few hundred bytes
// for each second, sample and span. All methods are safe for concurrent use.
type Recorder struct {
	began   time.Time
	planned time.Duration

	// mu guards everything below.
	mu       sync.Mutex
	all      series
	clusters []series
	names    []string
	// kept are the latencies of each second that is over, for Latencies.
	kept      []ledger.Compact
	totals    Totals
	faults    []*Fault
	open      map[*Fault]bool
	events    []Event
	replicas  []*Replica
	byReplica map[string]*Replica
	shards    []*Shard
	byShard   map[shardKey]*Shard
	moves     []Move
}

type shardKey struct {
	cluster       string
	slice, slices int
}

// NewRecorder makes a recorder.
func NewRecorder(cfg RecorderConfig) (*Recorder, error) {
	if cfg.Began.IsZero() || len(cfg.Clusters) == 0 || cfg.Planned < 0 {
		return nil, errors.New("a recorder needs the moment when the run began, clusters, and no negative duration")
	}
	r := &Recorder{
		began: cfg.Began, planned: cfg.Planned, names: cfg.Clusters,
		clusters:  make([]series, len(cfg.Clusters)),
		open:      map[*Fault]bool{},
		byReplica: map[string]*Replica{},
		byShard:   map[shardKey]*Shard{},
	}
	r.all.keep = true
	for c := range r.clusters {
		r.clusters[c].keep = cfg.KeepClusters
	}
	return r, nil
}

// At is a moment in seconds since the run began, to the millisecond.
func (r *Recorder) At(t time.Time) float64 {
	return float64(max(0, t.Sub(r.began)).Round(time.Millisecond).Milliseconds()) / 1000
}

// second is the number of the second that a moment lies in.
func (r *Recorder) second(t time.Time) int { return int(max(0, t.Sub(r.began)) / time.Second) }

// Due counts messages that are due at a moment, in an open loop.
func (r *Recorder) Due(at time.Time, messages int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all.at(r.second(at)).Due += messages
}

// Sent counts a message of a cluster that is sent at a moment; change says that
// it must take effect. Call it before sending, lest the publish comes first.
func (r *Recorder) Sent(cluster int, at time.Time, change bool) {
	s := r.second(at)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.totals.Sent++
	if change {
		r.totals.Changes++
	}
	for _, x := range []*series{&r.all, &r.clusters[cluster]} {
		if second := x.at(s); second != nil {
			second.Sent++
			if change {
				second.Changes++
			}
		}
	}
}

// Uncounted counts messages that must change nothing, and have been told to
// Sent, by what they are.
func (r *Recorder) Uncounted(repeats, stale, invalid int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.totals.Repeats += repeats
	r.totals.Stale += stale
	r.totals.Invalid += invalid
}

// Published counts a publish that is heard at a moment, and the changes that it
// was the first to follow: the time from when each was due.
func (r *Recorder) Published(cluster int, at time.Time, latencies ...time.Duration) {
	s := r.second(at)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.totals.Publishes++
	r.totals.Published += int64(len(latencies))
	r.kept = append(r.kept, r.all.published(s, latencies)...)
	r.clusters[cluster].published(s, latencies)
}

// Progress is how far a run has come.
type Progress struct {
	Elapsed time.Duration
	// Planned is 0 if nobody knows.
	Planned time.Duration
	Totals  Totals
	// Waiting is how many changes no publish has followed yet.
	Waiting int64
	// Last is the last second that is over; the zero value in the first one.
	Last Second
	// Faults are names and targets of those that go on.
	Faults []string
	// Replicas is how many live, as far as the recorder has been told.
	Replicas int
}

// Progress says how far the run has come.
func (r *Recorder) Progress(now time.Time) Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := Progress{
		Elapsed: max(0, now.Sub(r.began)), Planned: r.planned, Totals: r.totals,
		Waiting: r.totals.Changes - r.totals.Published,
	}
	if last := r.second(now) - 1; last >= 0 {
		p.Last = r.all.peek(last)
	}
	for _, f := range r.faults {
		if r.open[f] {
			p.Faults = append(p.Faults, fmt.Sprintf("%s %s", f.Name, f.Target))
		}
	}
	for _, replica := range r.replicas {
		if n := len(replica.Lives); n > 0 && replica.Lives[n-1].UntilS < 0 {
			p.Replicas++
		}
	}
	return p
}

// series are the seconds of everything, or of one cluster.
type series struct {
	// keep is false where only total is wanted.
	keep    bool
	seconds []Second
	// total is the latency of all seconds that are over.
	total ledger.Histogram
	// current are the latencies of seconds from over on, which may still get
	// some; a publish that is later than that counts for second over.
	current [lag]*ledger.Histogram
	over    int
}

// lag is how many seconds stay open: publishes are told by the goroutines that
// hear them, which do not wait for each other.
const lag = 2

// at is a second, made if need be; nil if seconds are not kept.
func (s *series) at(i int) *Second {
	if !s.keep {
		return nil
	}
	for len(s.seconds) <= i {
		s.seconds = append(s.seconds, Second{})
	}
	return &s.seconds[i]
}

// published adds latencies to second i, and gives those of each second that is
// over because of that.
func (s *series) published(i int, latencies []time.Duration) []ledger.Compact {
	closed := s.finish(i - lag + 1)
	i = max(i, s.over)
	if second := s.at(i); second != nil {
		second.Publishes++
		second.Published += int64(len(latencies))
	}
	if len(latencies) == 0 {
		return closed
	}
	h := &s.current[i%lag]
	if *h == nil {
		*h = new(ledger.Histogram)
	}
	for _, d := range latencies {
		(*h).Add(d)
	}
	return closed
}

// finish closes all seconds before i and gives the latencies of each.
func (s *series) finish(i int) (closed []ledger.Compact) {
	for ; s.over < i; s.over++ {
		h := s.current[s.over%lag]
		if h == nil {
			h = new(ledger.Histogram)
		}
		s.current[s.over%lag] = nil
		s.total.Merge(h)
		if second := s.at(s.over); second != nil {
			second.Latency = Summarize(h)
			closed = append(closed, h.Compact())
		}
	}
	return closed
}

// peek is a second as it stands.
func (s *series) peek(i int) Second {
	if i >= len(s.seconds) {
		return Second{}
	}
	second := s.seconds[i]
	if h := s.current[i%lag]; i >= s.over && i < s.over+lag && h != nil {
		second.Latency = Summarize(h)
	}
	return second
}

// rest closes all n seconds and gives them; what came later counts in the total
// alone. It may be called again.
func (s *series) rest(n int) (seconds []Second, closed []ledger.Compact) {
	closed = s.finish(max(n, s.over+lag))
	if !s.keep {
		return nil, closed
	}
	if n > 0 {
		s.at(n - 1)
	}
	seconds = slices.Clone(s.seconds[:n])
	waiting := int64(0)
	for i := range seconds {
		waiting += seconds[i].Changes - seconds[i].Published
		seconds[i].Waiting = waiting
	}
	return seconds, closed
}

// finishSeconds needs mu. It writes the seconds, clusters and latencies.
func (r *Recorder) finishSeconds(rec *Recording) {
	n := int(math.Ceil(rec.DurationS))
	seconds, closed := r.all.rest(n)
	r.kept = append(r.kept, closed...)
	rec.Seconds = seconds
	var calm, disturbed ledger.Histogram
	for i, latencies := range r.kept {
		if slices.ContainsFunc(rec.Faults, func(f Fault) bool { return f.Disturbs(i) }) {
			disturbed.MergeCompact(latencies)
		} else {
			calm.MergeCompact(latencies)
		}
	}
	rec.Latency = Latencies{All: Summarize(&r.all.total), Calm: Summarize(&calm), Disturbed: Summarize(&disturbed)}
	for c := range r.clusters {
		seconds, _ := r.clusters[c].rest(n)
		rec.Clusters = append(rec.Clusters, Cluster{Name: r.names[c], Latency: Summarize(&r.clusters[c].total), Seconds: seconds})
	}
}

// Summarize takes the quantiles of a histogram.
func Summarize(h *ledger.Histogram) Latency {
	return Latency{
		Count: h.Count(), MeanMS: ms(h.Mean()), MaxMS: ms(h.Max()),
		P50MS: ms(h.Quantile(0.5)), P90MS: ms(h.Quantile(0.9)), P99MS: ms(h.Quantile(0.99)), P999MS: ms(h.Quantile(0.999)),
	}
}

// ms is milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }
