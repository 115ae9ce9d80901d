package pipeline

import "time"

// CaughtUp says whether everything of this shard that was heard before since
// has been written: nothing of it waits, or is in a batch under way. It is
// false while the shard is only being taken over, and after its end.
func (in *Intake) CaughtUp(since time.Time) bool {
	if in.fence.Load() == nil || in.stopped.Load() {
		return false
	}
	return in.Waiting() == 0 || !in.p.backlog.holdsOlder(in, since)
}

// holdsOlder says whether a change of this intake that is not known to be
// written was heard before since. The order of the queue does not tell: an
// entry that was in flight joins its end, with what it gathered meanwhile.
func (b *backlog) holdsOlder(in *Intake, since time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, e := range b.entries {
		if k.tag != in.tag {
			continue
		}
		if e.inFlight != nil && e.inFlight.FirstAt.Before(since) || e.waiting != nil && e.waiting.FirstAt.Before(since) {
			return true
		}
	}
	return false
}

// Owns says whether the shard is written by this intake now: it is past its
// take-over and before its end.
func (in *Intake) Owns() bool {
	return in.fence.Load() != nil && !in.stopped.Load()
}

// PrebuildEnded counts a prebuild that somebody else has ended, for the
// counter that shows the ends that the lanes write.
func (p *Pipeline) PrebuildEnded(state string) {
	p.metrics.prebuildsCompleted.WithLabelValues(state).Inc()
}
