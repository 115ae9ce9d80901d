package duty

import (
	"testing"

	"github.com/trestle-bridge/trestle/shard"
)

func TestWant(t *testing.T) {
	id := shard.Whole("c")
	fence := func(epoch shard.Epoch, owner string) shard.Fence {
		return shard.Fence{Shard: id, Epoch: epoch, Owner: owner}
	}
	writes := func(epoch shard.Epoch) held { return held{kind: haveFence, fence: fence(epoch, "me")} }
	ready := held{kind: haveReady}
	none := held{}
	for _, c := range []struct {
		name   string
		record shard.Record
		have   held
		want   wanted
	}{
		{"owner", shard.Record{Epoch: 3, Owner: "me", Phase: shard.PhaseOwned}, none, wanted{kind: wantFence, fence: fence(3, "me")}},
		{"owner, while another prepares", shard.Record{Epoch: 3, Owner: "me", Next: "x", Phase: shard.PhasePrepare}, writes(3), wanted{kind: wantFence, fence: fence(3, "me")}},
		{"owner that is to raise", shard.Record{Epoch: 4, Owner: "me", Former: "x", Phase: shard.PhaseRaise}, ready, wanted{kind: wantFence, fence: fence(4, "me")}},
		{"owner that is to release", shard.Record{Epoch: 3, Owner: "me", Next: "x", Phase: shard.PhaseRelease, Attempt: 7}, writes(3), wanted{kind: wantReleased, attempt: 7}},
		{"released for good", shard.Record{Epoch: 3, Former: "me", Phase: shard.PhaseRetired}, held{kind: haveReleased}, wanted{}},
		{"next", shard.Record{Epoch: 3, Owner: "x", Next: "me", Phase: shard.PhasePrepare, Attempt: 7}, none, wanted{kind: wantReady, attempt: 7}},
		{"next, while the owner releases", shard.Record{Epoch: 3, Owner: "x", Next: "me", Phase: shard.PhaseRelease, Attempt: 7}, ready, wanted{kind: wantReady, attempt: 7}},
		{"given up", shard.Record{Epoch: 3, Owner: "x", Phase: shard.PhaseOwned}, ready, wanted{}},
		{"another took over", shard.Record{Epoch: 4, Owner: "x", Phase: shard.PhaseOwned}, writes(3), wanted{}},
		{"taken for lost", shard.Record{Epoch: 3, Former: "me", Phase: shard.PhaseUnowned}, writes(3), wanted{kind: wantKeep}},
		{"taken for lost while releasing", shard.Record{Epoch: 3, Former: "me", Phase: shard.PhaseUnowned}, held{kind: haveHalf, fence: fence(3, "me")}, wanted{kind: wantKeep}},
		{"taken for lost long ago", shard.Record{Epoch: 4, Former: "x", Phase: shard.PhaseUnowned}, writes(3), wanted{}},
		{"a record older than the database", shard.Record{Epoch: 2, Owner: "x", Phase: shard.PhaseOwned}, writes(3), wanted{kind: wantKeep}},
		{"of a generation that is over", shard.Record{Epoch: 2, Owner: "x", Phase: shard.PhaseOwned, Generation: 1}, writes(3), wanted{}},
		{"nobody's", shard.Record{Phase: shard.PhaseUnowned}, none, wanted{}},
	} {
		if got := want("me", id, Assigned{Record: c.record, Found: true, Exists: true}, c.have); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	for _, c := range []struct {
		exists bool
		have   held
		want   wanted
	}{
		{true, writes(3), wanted{kind: wantKeep}},
		{false, writes(3), wanted{}},
		{true, ready, wanted{}},
		{true, none, wanted{}},
	} {
		if got := want("me", id, Assigned{Exists: c.exists}, c.have); got != c.want {
			t.Errorf("without a record, %+v: %+v, want %+v", c, got, c.want)
		}
	}
}
