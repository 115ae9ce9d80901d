package pipeline

import "time"

// CaughtUp says whether everything of this shard that was heard before since
// has been written: nothing of it waits, or is in a batch under way. It is
// false while the shard is only being taken over, and after its end.
func (in *Intake) CaughtUp(since time.Time) bool {
	if in.fence.Load() == nil || in.stopped.Load() {
		return false
	}
	if in.Waiting() == 0 {
		return true
	}
	for _, l := range in.p.lanes {
		if l.holdsOlder(in, since) {
			return false
		}
	}
	return true
}

// holdsOlder says whether a change of this intake that is not known to be
// written was heard before since. The order of the queue does not tell: an
// entry that was in flight joins its end, with what it gathered meanwhile.
func (l *lane) holdsOlder(in *Intake, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, e := range l.entries {
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
