package monitor

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/record"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// story tells shards what happens to one, second by second.
type story struct {
	t        *testing.T
	begin    time.Time
	recorder *record.Recorder
	shards   *shards
	lost     map[string]time.Time
}

func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, begin: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), lost: map[string]time.Time{}}
	var err error
	s.recorder, err = record.NewRecorder(record.RecorderConfig{Began: s.begin, Clusters: []string{"c"}})
	if err != nil {
		t.Fatal(err)
	}
	s.shards = newShards(s.recorder, func(replica string) time.Time { return s.lost[replica] })
	return s
}

func (s *story) at(second float64) time.Time {
	return s.begin.Add(time.Duration(second * float64(time.Second)))
}

// told tells the state of the shard at a second.
func (s *story) told(second float64, owner string, phase trestlev1.ShardPhase, intended, observed int64, reason trestlev1.Reason) {
	shard := &trestlev1.Shard{Id: "c", Cluster: "c", Slices: 1, Phase: phase, EpochIntended: intended, EpochObserved: observed, Reason: reason}
	if owner != "" {
		shard.Owner = &trestlev1.ReplicaRef{Name: owner}
	}
	s.shards.heard(s.at(second), false, []*trestlev1.Shard{shard}, nil)
}

func (s *story) finish(second float64) *record.Recording {
	s.t.Helper()
	rec := s.recorder.Finish(s.at(second))
	rec.Verdict.Judge()
	if err := rec.Validate(); err != nil {
		s.t.Fatal(err)
	}
	return rec
}

const (
	owned   = trestlev1.ShardPhase_SHARD_PHASE_OWNED
	unowned = trestlev1.ShardPhase_SHARD_PHASE_UNOWNED
	prepare = trestlev1.ShardPhase_SHARD_PHASE_PREPARE
	release = trestlev1.ShardPhase_SHARD_PHASE_RELEASE
	raise   = trestlev1.ShardPhase_SHARD_PHASE_RAISE
)

func TestPlannedMove(t *testing.T) {
	s := newStory(t)
	s.told(0, "a", owned, 1, 1, trestlev1.Reason_REASON_NEW)
	s.told(2, "a", prepare, 1, 1, trestlev1.Reason_REASON_UPGRADE)
	s.told(4, "a", release, 1, 1, trestlev1.Reason_REASON_UPGRADE)
	s.told(5, "b", raise, 2, 0, trestlev1.Reason_REASON_UPGRADE)
	s.told(5.25, "b", owned, 2, 2, trestlev1.Reason_REASON_UPGRADE)
	s.shards.seen(s.at(8))
	rec := s.finish(9)
	want := record.Move{AtS: 5, TookS: 0.25, Cluster: "c", Slices: 1, From: "a", To: "b", Kind: record.Planned, Reason: "upgrade"}
	if len(rec.Moves) != 1 || rec.Moves[0] != want {
		t.Errorf("moves %+v", rec.Moves)
	}
	spans := rec.Shards[0].Spans
	if len(spans) != 3 || spans[0].Replica != "a" || spans[0].UntilS != 5 || spans[1].Replica != "" || spans[2].Replica != "b" || spans[2].UntilS != 8 {
		t.Errorf("spans %+v", spans)
	}
}

func TestCrashCountsFromTheLoss(t *testing.T) {
	s := newStory(t)
	s.told(0, "a", owned, 1, 1, trestlev1.Reason_REASON_NEW)
	s.lost["a"] = s.at(1)
	s.told(3, "", unowned, 1, 0, trestlev1.Reason_REASON_ORPHAN)
	s.told(3.5, "b", owned, 2, 2, trestlev1.Reason_REASON_ORPHAN)
	rec := s.finish(5)
	if len(rec.Moves) != 1 || rec.Moves[0].Kind != record.Crash || rec.Moves[0].AtS != 1 || rec.Moves[0].TookS != 2.5 {
		t.Errorf("moves %+v", rec.Moves)
	}
}

func TestWhatIsNoMove(t *testing.T) {
	s := newStory(t)
	// Given to somebody for the first time, and cut off for a while.
	s.told(0, "a", raise, 1, 0, trestlev1.Reason_REASON_NEW)
	s.told(1, "a", owned, 1, 1, trestlev1.Reason_REASON_NEW)
	s.told(2, "a", owned, 1, 0, trestlev1.Reason_REASON_NEW)
	s.told(3, "a", owned, 1, 1, trestlev1.Reason_REASON_NEW)
	rec := s.finish(4)
	if len(rec.Moves) != 0 {
		t.Errorf("moves %+v", rec.Moves)
	}
}

func TestShardsThatAreNoMore(t *testing.T) {
	s := newStory(t)
	s.told(0, "a", owned, 1, 1, trestlev1.Reason_REASON_NEW)
	s.shards.heard(s.at(2), true, []*trestlev1.Shard{{Id: "c#0/2", Cluster: "c", Slices: 2, Phase: owned,
		Owner: &trestlev1.ReplicaRef{Incarnation: "b.XYZ"}, EpochIntended: 5, EpochObserved: 5}}, nil)
	s.shards.seen(s.at(6))
	rec := s.finish(7)
	if len(rec.Shards) != 2 || rec.Shards[0].Spans[0].UntilS != 2 || rec.Shards[1].Spans[0].UntilS != 6 || rec.Shards[1].Spans[0].Replica != "b" {
		t.Errorf("shards %+v", rec.Shards)
	}
}
