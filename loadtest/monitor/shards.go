package monitor

import (
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// shards follows the shards from what is told of them.
type shards struct {
	recorder *record.Recorder
	// lostAt is when a replica was lost; the zero time: it was not.
	lostAt func(replica string) time.Time

	// mu guards known.
	mu    sync.Mutex
	known map[string]*shard
}

// shard is one as it was last told.
type shard struct {
	cluster       string
	slice, slices int
	// writer is who writes it, "" if nobody does, under an epoch.
	writer string
	epoch  int64
	// intended is the epoch that its owner is to write under.
	intended int64
	// last wrote it last, and let go of it at a moment.
	last string
	let  time.Time
}

func newShards(recorder *record.Recorder, lostAt func(string) time.Time) *shards {
	return &shards{recorder: recorder, lostAt: lostAt, known: make(map[string]*shard)}
}

// heard takes in what has been told at a moment.
func (s *shards) heard(at time.Time, all bool, told []*trestlev1.Shard, removed []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all {
		still := make(map[string]bool, len(told))
		for _, one := range told {
			still[one.GetId()] = true
		}
		for id := range s.known {
			if !still[id] {
				removed = append(removed, id)
			}
		}
	}
	for _, id := range removed {
		if one := s.known[id]; one != nil {
			s.recorder.Dissolved(at, one.cluster, one.slice, one.slices)
			delete(s.known, id)
		}
	}
	for _, one := range told {
		s.take(at, one)
	}
}

// writes says who writes a shard.
func writes(t *trestlev1.Shard) string {
	switch t.GetPhase() {
	case trestlev1.ShardPhase_SHARD_PHASE_OWNED, trestlev1.ShardPhase_SHARD_PHASE_PREPARE, trestlev1.ShardPhase_SHARD_PHASE_RELEASE:
		// Whoever has just been given it raises its fence first.
		if t.GetEpochObserved() == t.GetEpochIntended() {
			return operator.ReplicaName(t.GetOwner())
		}
	}
	return ""
}

// take needs mu.
func (s *shards) take(at time.Time, t *trestlev1.Shard) {
	one := s.known[t.GetId()]
	if one == nil {
		one = &shard{cluster: t.GetCluster(), slice: int(t.GetSlice()), slices: int(t.GetSlices())}
		s.known[t.GetId()] = one
	}
	writer := writes(t)
	if writer != "" && one.last != "" && (writer != one.last || one.writer == "" && t.GetEpochObserved() != one.epoch) {
		s.moved(at, one, t, writer)
	}
	if one.writer != "" && writer == "" {
		one.let = at
	}
	one.writer = writer
	if writer != "" {
		one.last, one.epoch, one.let = writer, t.GetEpochObserved(), time.Time{}
	}
	one.intended = t.GetEpochIntended()
	s.recorder.Owned(at, one.cluster, one.slice, one.slices, one.writer, one.intended)
}

// moved records that a shard has come to a writer.
func (s *shards) moved(at time.Time, one *shard, t *trestlev1.Shard, writer string) {
	began, kind := at, record.Planned
	if !one.let.IsZero() {
		began = one.let
	}
	// What happens faster than is told took no time that could be seen.
	lost := s.lostAt(one.last)
	if t.GetReason() == trestlev1.Reason_REASON_ORPHAN {
		kind = record.Crash
		if !lost.IsZero() && lost.Before(began) {
			began = lost
		}
	}
	s.recorder.Moved(record.Move{
		AtS: s.recorder.At(began), TookS: max(0, at.Sub(began)).Round(time.Millisecond).Seconds(),
		Cluster: one.cluster, Slice: one.slice, Slices: one.slices, From: one.last, To: writer, Kind: kind,
		Reason: strings.ToLower(strings.TrimPrefix(t.GetReason().String(), "REASON_")),
	})
}

// seen says that all is at a moment as it was told last.
func (s *shards) seen(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.known {
		s.recorder.Owned(at, one.cluster, one.slice, one.slices, one.writer, one.intended)
	}
}
