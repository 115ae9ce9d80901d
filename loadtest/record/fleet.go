package record

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Disturbance is a fault that goes on.
type Disturbance struct {
	r     *Recorder
	fault *Fault
}

// Fault records that something is done to the system from a moment on.
func (r *Recorder) Fault(at time.Time, name, target, what string) *Disturbance {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &Fault{Name: name, Target: target, FromS: r.At(at), What: what}
	f.UntilS = f.FromS
	r.faults, r.open[f] = append(r.faults, f), true
	return &Disturbance{r, f}
}

// End records that the cause of the fault has ended.
func (d *Disturbance) End(at time.Time) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.fault.UntilS = max(d.fault.FromS, d.r.At(at))
	delete(d.r.open, d.fault)
}

// Recovered records that all is as before. It ends the fault if nothing has.
func (d *Disturbance) Recovered(at time.Time) {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	recovered := max(d.fault.UntilS, d.r.At(at))
	d.fault.RecoveredS = &recovered
	delete(d.r.open, d.fault)
}

// Event records a moment.
func (r *Recorder) Event(at time.Time, kind, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, Event{AtS: r.At(at), Kind: kind, What: fmt.Sprintf(format, args...)})
}

// replica needs mu.
func (r *Recorder) replica(name string) *Replica {
	replica := r.byReplica[name]
	if replica == nil {
		replica = &Replica{Name: name}
		r.replicas, r.byReplica[name] = append(r.replicas, replica), replica
	}
	return replica
}

// lives stands in UntilS of a life that goes on.
const lives = -1

// Started records that a process of a replica begins.
func (r *Recorder) Started(at time.Time, replica, revision string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.replica(replica)
	r.end(p, at, "replaced")
	p.Lives = append(p.Lives, Life{FromS: r.At(at), UntilS: lives, Revision: revision})
}

// Ended records that the process of a replica has ended, and how; of one that
// does not live nothing is recorded.
func (r *Recorder) Ended(at time.Time, replica, how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(r.replica(replica), at, how)
}

// end needs mu.
func (r *Recorder) end(p *Replica, at time.Time, how string) {
	if n := len(p.Lives); n > 0 && p.Lives[n-1].UntilS == lives {
		p.Lives[n-1].UntilS, p.Lives[n-1].Ended = max(p.Lives[n-1].FromS, r.At(at)), how
	}
}

// Sampled records what a replica uses; AtS is set from the moment. A sample
// that is older than the last one is left out.
func (r *Recorder) Sampled(at time.Time, replica string, s Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.replica(replica)
	s.AtS = r.At(at)
	if n := len(p.Samples); n == 0 || p.Samples[n-1].AtS <= s.AtS {
		p.Samples = append(p.Samples, s)
	}
}

// Owned records that a shard has been seen with an owner, or none (""), at a
// moment. Seen again, the span grows; seen with another, or in another epoch, a
// new one begins where the last one ended.
func (r *Recorder) Owned(at time.Time, cluster string, slice, slices int, replica string, epoch int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := shardKey{cluster, slice, slices}
	s := r.byShard[key]
	if s == nil {
		s = &Shard{Cluster: cluster, Slice: slice, Slices: slices}
		r.shards, r.byShard[key] = append(r.shards, s), s
	}
	now := r.At(at)
	if n := len(s.Spans); n > 0 {
		last := &s.Spans[n-1]
		now = max(now, last.UntilS)
		last.UntilS = now
		if last.Replica == replica && last.Epoch == epoch {
			return
		}
	}
	s.Spans = append(s.Spans, Span{Replica: replica, Epoch: epoch, FromS: now, UntilS: now})
}

// Dissolved records that a shard is none any more from a moment on, as when its
// cluster is cut anew or gone.
func (r *Recorder) Dissolved(at time.Time, cluster string, slice, slices int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.byShard[shardKey{cluster, slice, slices}]; s != nil && len(s.Spans) > 0 {
		last := &s.Spans[len(s.Spans)-1]
		last.UntilS = max(last.UntilS, r.At(at))
	}
}

// Moved records a move. Its times are those of At.
func (r *Recorder) Moved(m Move) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moves = append(r.moves, m)
}

// Finish makes the recording of all until a moment. The caller adds what the
// recorder cannot know: what was played, on what, and the verdict. What came
// later is in the totals alone.
func (r *Recorder) Finish(at time.Time) *Recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.At(at)
	rec := &Recording{
		Format: Format, Began: r.began, DurationS: end,
		Events: slices.Clone(r.events), Moves: slices.Clone(r.moves), Totals: r.totals,
	}
	for _, f := range r.faults {
		fault := *f
		if r.open[f] {
			fault.UntilS = end
		}
		rec.Faults = append(rec.Faults, fault)
	}
	slices.SortStableFunc(rec.Faults, func(a, b Fault) int { return cmp.Compare(a.FromS, b.FromS) })
	slices.SortStableFunc(rec.Events, func(a, b Event) int { return cmp.Compare(a.AtS, b.AtS) })
	slices.SortStableFunc(rec.Moves, func(a, b Move) int { return cmp.Compare(a.AtS, b.AtS) })
	for _, p := range r.replicas {
		replica := Replica{Name: p.Name, Lives: slices.Clone(p.Lives), Samples: slices.Clone(p.Samples)}
		for i := range replica.Lives {
			if replica.Lives[i].UntilS == lives {
				replica.Lives[i].UntilS = max(end, replica.Lives[i].FromS)
			}
		}
		rec.Replicas = append(rec.Replicas, replica)
	}
	slices.SortFunc(rec.Replicas, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range r.shards {
		rec.Shards = append(rec.Shards, Shard{s.Cluster, s.Slice, s.Slices, slices.Clone(s.Spans)})
	}
	slices.SortFunc(rec.Shards, func(a, b Shard) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Slices, b.Slices), cmp.Compare(a.Slice, b.Slice))
	})
	r.finishSeconds(rec)
	return rec.withLists()
}
