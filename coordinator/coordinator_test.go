package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/kv/kvtest"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// calm fails the test if a shard is not written all along.
func (w *world) calm(within time.Duration) {
	w.t.Helper()
	if stalled := w.db.stalled(w.shards(), within); len(stalled) > 0 {
		w.t.Fatalf("not written: %v", stalled)
	}
}

// gap is the longest that a shard was not written since it was asked last.
func (w *world) gap() time.Duration {
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	gap := w.db.gap
	w.db.gap = 0
	return gap
}

func (w *world) fleet(names ...string) {
	for _, name := range names {
		w.start(name, "1")
	}
	time.Sleep(3 * time.Second)
	w.calm(100 * time.Millisecond)
	w.gap()
}

func (w *world) leader() *node {
	w.t.Helper()
	var leader *node
	for _, n := range w.nodes {
		if n.c.Leading() {
			if leader != nil {
				w.t.Fatalf("%s and %s lead", leader.inc, n.inc)
			}
			leader = n
		}
	}
	if leader == nil {
		w.t.Fatal("nobody leads")
	}
	return leader
}

func (w *world) owners() map[shard.ID]string {
	s, _ := w.nodes[0].c.State()
	owners := make(map[shard.ID]string)
	for _, sh := range s.Shards {
		owners[sh.ID] = sh.Stored.Owner
	}
	return owners
}

func (w *world) why(id shard.ID) []table.Past { return w.stored(w.nodes[0], id).Moves }

// stored is a shard's assignment as a replica has read it.
func (w *world) stored(n *node, id shard.ID) table.Shard {
	s, _ := n.c.State()
	for _, sh := range s.Shards {
		if sh.ID == id {
			return sh.Stored
		}
	}
	return table.Shard{}
}

func (w *world) node(name string) *node {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	w.t.Fatalf("no replica %s", name)
	return nil
}

func in(t *testing.T, clusters int, test func(t *testing.T, w *world)) {
	bubbletest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, clusters)
		defer w.end()
		test(t, w)
	})
}

// unbroken is the longest pause of writing that a planned move may make: an
// update comes every 20 ms, and what is prepared need not be subscribed to.
const unbroken = 120 * time.Millisecond

func TestPlannedMovesHaveNoGap(t *testing.T) {
	in(t, 12, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		before := w.owners()
		w.start("d", "1")
		time.Sleep(30 * time.Second)
		moved := 0
		for id, owner := range w.owners() {
			if owner != before[id] {
				moved++
				if owner != w.node("d").inc {
					t.Errorf("%s moved to %s as d joined", id, owner)
				}
			}
		}
		if moved == 0 || moved > 3 {
			t.Errorf("%d of 12 shards moved as one of four joined", moved)
		}
		if err := w.leader().leave(20 * time.Second); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		if err := w.node("d").leave(20 * time.Second); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		w.calm(100 * time.Millisecond)
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
		if len(w.swept) > 0 {
			t.Errorf("planned moves asked for sweeps of %v", w.swept)
		}
	})
}

// The test above finds a hand-over that does not wait for READY.
func TestImpatientHandoverIsFound(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		for _, n := range w.nodes {
			n.mu.Lock()
			n.impatient = true
			n.mu.Unlock()
		}
		if err := w.node("a").leave(20 * time.Second); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if gap := w.gap(); gap < unbroken {
			t.Errorf("the longest pause was %v", gap)
		}
	})
}

// Once the owner has released, its successor writes also if the leader, which had
// the shard released, does nothing more.
func TestSuccessorDoesNotWaitForTheLeader(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		leader := w.leader()
		var others []*node
		for _, n := range w.nodes {
			if n != leader {
				others = append(others, n)
			}
		}
		var id shard.ID
		for at, owner := range w.owners() {
			if owner == others[0].inc {
				id = at
			}
		}
		w.store.Observe(func(who kvtest.Faults, stored map[string]kv.Item, ops []kv.Op) {
			w.check(who, stored, ops)
			for _, op := range ops {
				var next shard.Record
				if op.Key == "/trestle/answers/"+others[0].inc+"/"+id.String() && op.Delete && leader.isCut() {
					w.fault("%s takes its answer back before the leader can have read it", others[0].inc)
				}
				if op.Key == "/trestle/shards/"+id.String() && json.Unmarshal(op.Value, &next) == nil && next.Phase == shard.PhaseRelease {
					leader.partition()
				}
			}
		})
		w.do(Command{Kind: CommandPin, Shard: id.String(), Replica: others[1].name})
		time.Sleep(2 * time.Second)
		w.db.mu.Lock()
		last := w.db.last[id].fence
		w.db.mu.Unlock()
		if phase := w.stored(others[1], id).Phase; phase != shard.PhaseRelease {
			t.Fatalf("the leader was to be cut off as it wrote the release, and the shard is %s", phase)
		}
		if last.Owner != others[1].inc {
			t.Errorf("written by %s at epoch %d, and %s has released", last.Owner, last.Epoch, others[0].inc)
		}
		if !others[1].c.HandedOver(id) {
			t.Error("whether the owner has released is not known any more")
		}
		leader.heal()
		time.Sleep(2 * time.Second)
		w.calm(100 * time.Millisecond)
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
		if got := w.stored(others[1], id); got.Phase != shard.PhaseOwned || got.Fence(id) != last {
			t.Errorf("the shard is left as %+v, and %+v writes it", got.Record, last)
		}
		moves := w.why(id)
		if past := moves[len(moves)-1]; past.To != others[1].inc || past.Reason != shard.ReasonPin || past.Epoch != last.Epoch {
			t.Errorf("the move is told as %+v, and was to epoch %d", past, last.Epoch)
		}
	})
}

func TestRollingUpgradeMovesEachShardOnce(t *testing.T) {
	in(t, 12, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		for _, name := range []string{"a", "b", "c"} {
			old := w.node(name)
			w.start(name+"2", "2")
			time.Sleep(3 * time.Second)
			if err := old.leave(20 * time.Second); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Second)
		}
		s, _ := w.nodes[0].c.State()
		for _, sh := range s.Shards {
			if n := len(sh.Stored.Moves); n != 2 {
				t.Errorf("%s had %d owners: %+v", sh.ID, n, sh.Stored.Moves)
			}
		}
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
	})
}

func TestCrashOfAnOwner(t *testing.T) {
	in(t, 12, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c", "d")
		victim := w.nodes[0]
		if victim == w.leader() {
			victim = w.nodes[1]
		}
		victim.stop()
		time.Sleep(3 * time.Second)
		// Two peers have found it dead by then, long before its lease expires.
		w.calm(100 * time.Millisecond)
		if gap := w.gap(); gap > 2500*time.Millisecond {
			t.Errorf("a shard was not written for %v", gap)
		}
		if len(w.swept) == 0 {
			t.Error("no sweep was asked for")
		}
	})
}

func TestCrashOfTheLeaderAndAnOwner(t *testing.T) {
	in(t, 20, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c", "d", "e")
		leader := w.leader()
		leader.stop()
		w.nodes[0].stop()
		time.Sleep(w.lease + 2*time.Second)
		w.calm(100 * time.Millisecond)
	})
}

// Of two replicas only one is left to witness, so the lease decides.
func TestCrashWithOneWitness(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		w.leader().stop()
		time.Sleep(2 * time.Second)
		if len(w.db.stalled(w.shards(), time.Second)) == 0 {
			t.Error("one witness was enough")
		}
		time.Sleep(w.lease)
		w.calm(100 * time.Millisecond)
	})
}

// A replica that sleeps past its lease wakes up to find its shards taken, and
// writes nothing more.
func TestPhantomOwner(t *testing.T) {
	in(t, 9, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		for _, victim := range []*node{w.leader(), w.nodes[0]} {
			refused := w.db.refusals()
			victim.pause()
			time.Sleep(w.lease + 2*time.Second)
			w.calm(100 * time.Millisecond)
			victim.resume()
			time.Sleep(3 * time.Second)
			if w.db.refusals() == refused {
				t.Error("the phantom was refused nothing")
			}
			w.calm(100 * time.Millisecond)
			w.leader()
			time.Sleep(10 * time.Second) // and gets its share again
		}
	})
}

func TestPhantomWritesAreFoundWithoutTheFence(t *testing.T) {
	in(t, 9, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		w.db.mu.Lock()
		w.db.unfenced = true
		w.db.mu.Unlock()
		w.nodes[0].pause()
		time.Sleep(w.lease + 2*time.Second)
		w.nodes[0].resume()
		time.Sleep(time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.faults) == 0 {
			t.Error("two owners wrote, and nobody noticed")
		}
		w.faults = nil
	})
}

// Cut off from etcd, all go on with what they have; when it is back, nothing has
// moved.
func TestDetached(t *testing.T) {
	for name, outage := range map[string]func(w *world){
		"stopped": func(w *world) {
			w.store.Stop()
			time.Sleep(time.Minute)
			w.store.Start()
		},
		"wiped": func(w *world) {
			w.store.Stop()
			time.Sleep(time.Minute)
			w.store.Wipe()
			w.store.Start()
		},
		"wiped at once": func(w *world) { w.store.Wipe() },
		"wiped, and one joins": func(w *world) {
			w.store.Wipe()
			w.start("d", "1") // registers first, and leads without having lost anything
		},
		"leases lost": func(w *world) { w.store.Expire(nil) },
		"compacted": func(w *world) {
			for _, n := range w.nodes {
				n.partition()
			}
			time.Sleep(time.Second)
			w.store.Compact()
			for _, n := range w.nodes {
				n.heal()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 12, func(t *testing.T, w *world) {
				w.fleet("a", "b", "c")
				time.Sleep(20 * time.Second)
				before := w.owners()
				w.gap()
				outage(w)
				time.Sleep(w.lease - time.Second)
				w.calm(100 * time.Millisecond)
				w.leader()
				if gap := w.gap(); gap > unbroken {
					t.Errorf("a shard was not written for %v", gap)
				}
				for id, owner := range w.owners() {
					// Who has joined gets its share, as always.
					if moves := w.why(id); owner != before[id] && (len(moves) == 0 || moves[len(moves)-1].Reason != shard.ReasonJoin) {
						t.Errorf("%s moved from %s to %s: %+v", id, before[id], owner, moves)
					}
				}
				for _, n := range w.nodes {
					if n.c.Detached() {
						t.Errorf("%s is still detached", n.inc)
					}
				}
			})
		})
	}
}

// Of two replicas, the first to come back must not take what the other holds.
func TestLeasesOfTwoLost(t *testing.T) {
	in(t, 8, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		before := w.owners()
		w.store.Expire(nil)
		time.Sleep(w.lease - time.Second)
		for id, owner := range w.owners() {
			if owner != before[id] {
				t.Errorf("%s moved from %s to %s: %+v", id, before[id], owner, w.why(id))
			}
		}
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
	})
}

// A write of a leader may arrive when it leads no more.
func TestLateWriteOfAFormerLeader(t *testing.T) {
	in(t, 12, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		former := w.leader()
		former.trap()
		w.start("d", "1")
		time.Sleep(w.lease + 3*time.Second)
		former.resume()
		time.Sleep(5 * time.Second)
		if w.leader() == former {
			t.Error("it leads again")
		}
		w.calm(100 * time.Millisecond)
	})
}

// command writes a command as another replica would.
func (w *world) command(kind table.CommandKind, c Command) {
	w.t.Helper()
	c.Kind, c.Reason, c.Author = kind, "a test", "tester"
	op := kv.Put(fmt.Sprintf("/trestle/commands/%d", w.random(1<<30)), table.Encode(c), 0)
	if _, err := w.store.Client(nil).Txn(w.t.Context(), nil, []kv.Op{op}); err != nil {
		w.t.Fatal(err)
	}
}

// Here it arrives when nobody leads yet: what keeps it out is the leader's key
// alone. The oracle watches.
func TestLateWriteWithoutLeader(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		former := w.leader()
		former.trap()
		w.command(CommandFreeze, Command{})
		time.Sleep(100 * time.Millisecond)
		for _, n := range w.nodes {
			n.pause()
		}
		w.store.Expire(nil)
		time.Sleep(10 * time.Millisecond)
		former.resume()
		time.Sleep(time.Second)
		for _, n := range w.nodes {
			n.resume()
		}
		time.Sleep(w.lease)
		w.calm(100 * time.Millisecond)
	})
}

// While a write of the leader is under way, somebody else changes the same key.
func TestWriteOverAnotherChange(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		leader := w.leader()
		leader.trap()
		w.command(CommandPin, Command{Shard: "c00", Replica: "nobody"})
		time.Sleep(100 * time.Millisecond)
		client := w.store.Client(nil)
		items, _, err := client.List(t.Context(), "/trestle/shards/c00")
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(items[0].Value), "{", `{"changed":true,`, 1)
		if _, err := client.Txn(t.Context(), nil, []kv.Op{kv.Put("/trestle/shards/c00", []byte(changed), 0)}); err != nil {
			t.Fatal(err)
		}
		leader.resume()
		time.Sleep(3 * time.Second)
		items, _, err = client.List(t.Context(), "/trestle/shards/c00")
		if err != nil || !strings.Contains(string(items[0].Value), `"changed":true`) || !strings.Contains(string(items[0].Value), "nobody") {
			t.Errorf("%s, %v", items[0].Value, err)
		}
	})
}

// The store is replaced by an old copy and goes on from there; who read the
// other history must not mix the two.
func TestHistoriesAreNotMixed(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		old := w.store.Snapshot()
		for range 10 {
			w.do(Command{Kind: CommandDrain, Replica: "nobody"})
			w.do(Command{Kind: CommandUndrain, Replica: "nobody"})
		}
		w.store.Restore(old)
		client := w.store.Client(nil)
		frozen := []byte(`{"freeze":{"on":true,"reason":"written into the other history"}}`)
		if _, err := client.Txn(t.Context(), nil, []kv.Op{kv.Put("/trestle/fleet", frozen, 0)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		for _, n := range w.nodes {
			if s, _ := n.c.State(); !s.Freeze.On {
				t.Errorf("%s has not read the other history: %+v", n.inc, s.Freeze)
			}
		}
	})
}

func TestDetachedIsReported(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a")
		w.store.Stop()
		time.Sleep(w.lease + time.Second)
		if s, _ := w.nodes[0].c.State(); !s.Detached {
			t.Error("not detached")
		}
		w.calm(100 * time.Millisecond)
		w.store.Start()
		time.Sleep(2 * time.Second)
		if s, _ := w.nodes[0].c.State(); s.Detached {
			t.Error("still detached")
		}
	})
}

// An old copy of the store says that others own the shards; who holds the fences
// goes on, or the epochs go above them.
func TestStoreRestored(t *testing.T) {
	in(t, 12, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		old := w.store.Snapshot()
		if err := w.node("a").leave(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		w.start("d", "1")
		time.Sleep(20 * time.Second)
		w.node("b").stop()
		time.Sleep(20 * time.Second)
		w.store.Restore(old)
		time.Sleep(2*w.lease + 10*time.Second)
		w.calm(100 * time.Millisecond)
	})
}

// Who loses more than half of its fleet moves nothing until it is back.
func TestBrake(t *testing.T) {
	in(t, 15, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c", "d", "e")
		time.Sleep(10 * time.Second)
		before := w.owners()
		cut := w.nodes[:3]
		// Had they gone one after the other, those that went before it was known
		// to be so many would have been replaced.
		lost := make(map[kv.LeaseID]bool)
		for _, n := range cut {
			n.partition()
			id, _ := n.c.link.Lease()
			lost[id] = true
		}
		w.store.Expire(func(id kv.LeaseID) bool { return lost[id] })
		time.Sleep(w.lease + 5*time.Second)
		s, _ := w.nodes[4].c.State()
		if !s.Brake.Holds() {
			t.Errorf("the brake is %+v", s.Brake)
		}
		for _, n := range cut {
			n.heal()
		}
		time.Sleep(5 * time.Second)
		if s, _ := w.nodes[4].c.State(); s.Brake.Holds() {
			t.Errorf("the brake is %+v", s.Brake)
		}
		for id, owner := range w.owners() {
			if owner != before[id] {
				t.Errorf("%s moved from %s to %s: %+v", id, before[id], owner, w.why(id))
			}
		}
		w.calm(100 * time.Millisecond)
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
	})
}

func TestBrakeIsReleased(t *testing.T) {
	for name, release := range map[string]func(w *world){
		"by an operator": func(w *world) { w.do(Command{Kind: CommandBrakeRelease}) },
		"by time":        func(*world) { time.Sleep(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 10, func(t *testing.T, w *world) {
				w.fleet("a", "b", "c", "d", "e")
				for range 3 {
					w.nodes[0].stop()
				}
				time.Sleep(w.lease + 3*time.Second)
				if len(w.db.stalled(w.shards(), time.Second)) == 0 {
					t.Error("shards moved in spite of the brake")
				}
				release(w)
				time.Sleep(3 * time.Second)
				w.calm(100 * time.Millisecond)
			})
		})
	}
}

// do gives a command to a replica that does not lead.
func (w *world) do(c Command) {
	w.t.Helper()
	c.Reason, c.Author = "a test", "tester"
	n := w.nodes[0]
	if n.c.Leading() && len(w.nodes) > 1 {
		n = w.nodes[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.c.Do(ctx, c); err != nil {
		w.t.Errorf("%s: %v", c.Kind, err)
	}
}

func TestCommands(t *testing.T) {
	in(t, 9, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		a, b := w.node("a"), w.node("b")
		for i := range 9 {
			w.do(Command{Kind: CommandPin, Shard: fmt.Sprintf("c%02d", i), Replica: "a"})
		}
		time.Sleep(10 * time.Second)
		for id, owner := range w.owners() {
			if owner != a.inc {
				t.Errorf("%s is pinned to a and on %s", id, owner)
			}
		}
		w.do(Command{Kind: CommandFreeze, Until: time.Now().Add(time.Hour)})
		for i := range 9 {
			w.do(Command{Kind: CommandUnpin, Shard: fmt.Sprintf("c%02d", i)})
		}
		time.Sleep(time.Minute)
		for id, owner := range w.owners() {
			if owner != a.inc {
				t.Errorf("all is frozen and %s on %s", id, owner)
			}
		}
		if p := b.c.Plan(); len(p.Moves) == 0 {
			t.Error("a plan shows nothing of what the freeze holds back")
		}
		w.do(Command{Kind: CommandUnfreeze})
		time.Sleep(time.Minute)
		w.do(Command{Kind: CommandDrain, Replica: "a", Until: time.Now().Add(time.Hour)})
		time.Sleep(20 * time.Second)
		for id, owner := range w.owners() {
			if owner == a.inc {
				t.Errorf("a is drained and has %s", id)
			}
		}
		w.do(Command{Kind: CommandUndrain, Replica: "a"})
		time.Sleep(time.Minute)
		if s, _ := b.c.State(); len(s.Drains) > 0 || len(s.Commands) < 20 || s.Commands[0].Author != "tester" {
			t.Errorf("%+v", s)
		}
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
		err := b.c.Do(t.Context(), Command{Kind: CommandPin, Shard: "none", Replica: "a", Reason: "x", Author: "y"})
		if !errors.Is(err, ErrCommand) {
			t.Errorf("a pin of a shard that is not there: %v", err)
		}
		if err := b.c.Do(t.Context(), Command{Kind: CommandFreeze}); !errors.Is(err, ErrCommand) {
			t.Errorf("a command without reason and author: %v", err)
		}
	})
}

// Who prepares a shard is told what its owner is told, and nobody else.
func TestListeners(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		from := w.owners()[shard.Whole("c00")]
		to := w.node("a")
		if to.inc == from {
			to = w.node("b")
		}
		listeners := func() []string {
			return slices.Sorted(maps.Keys(w.leader().c.Listeners("c00")))
		}
		if got := listeners(); !slices.Equal(got, []string{from}) {
			t.Errorf("before the move: %v, want %s", got, from)
		}
		w.do(Command{Kind: CommandPin, Shard: "c00", Replica: to.name})
		time.Sleep(subscribing / 2)
		if got, want := listeners(), slices.Sorted(slices.Values([]string{from, to.inc})); !slices.Equal(got, want) {
			t.Errorf("while it is prepared: %v, want %v", got, want)
		}
		time.Sleep(10 * time.Second)
		if got := listeners(); !slices.Equal(got, []string{to.inc}) {
			t.Errorf("after the move: %v, want %s", got, to.inc)
		}
	})
}

func TestClustersComeAndGo(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		w.mu.Lock()
		delete(w.clusters, "c00")
		w.clusters["new"] = true
		w.mu.Unlock()
		time.Sleep(4 * time.Second)
		if s, _ := w.nodes[0].c.State(); len(s.Shards) != 6 {
			t.Errorf("%d shards", len(s.Shards))
		}
		w.calm(100 * time.Millisecond)
		if stalled := w.db.stalled([]shard.ID{shard.Whole("c00")}, time.Second); len(stalled) == 0 {
			t.Error("a cluster that is gone is written")
		}
		w.mu.Lock()
		w.clusters["c00"] = true
		w.mu.Unlock()
		time.Sleep(4 * time.Second)
		w.calm(100 * time.Millisecond)
	})
}

func TestSlices(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		for _, n := range []int{3, 2, 1, 4} {
			w.do(Command{Kind: CommandSlices, Cluster: "c00", Slices: n})
			time.Sleep(5 * time.Second)
			if got := len(w.shards()); got != 3+n {
				t.Errorf("%d shards with %d slices", got, n)
			}
			w.calm(100 * time.Millisecond)
		}
	})
}

// An owner that sleeps while its cluster is cut anew may wake up at any time.
func TestSlicesWithAPhantom(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		owner := w.owners()[shard.Whole("c00")]
		for _, n := range w.nodes {
			if n.inc != owner {
				continue
			}
			n.pause()
			w.nodes = append(slices.DeleteFunc(w.nodes, func(x *node) bool { return x == n }), n)
			time.Sleep(100 * time.Millisecond)
			for _, other := range w.nodes {
				if other != n {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					err := other.c.Do(ctx, Command{Kind: CommandSlices, Cluster: "c00", Slices: 3, Reason: "x", Author: "y"})
					cancel()
					if err != nil {
						t.Error(err)
					}
					break
				}
			}
			time.Sleep(2 * time.Minute)
			w.calm(100 * time.Millisecond)
			n.resume()
			time.Sleep(time.Second)
			w.calm(100 * time.Millisecond)
		}
	})
}

// A replica whose loops do not turn is a dead one.
func TestSickReplica(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		n := w.leader()
		n.mu.Lock()
		n.sick = true
		n.mu.Unlock()
		time.Sleep(w.lease + 3*time.Second)
		for id, owner := range w.owners() {
			if owner == n.inc {
				t.Errorf("%s is with the sick one", id)
			}
		}
		w.calm(100 * time.Millisecond)
	})
}

// The last one to leave has nobody to hand over to.
func TestLastLeaves(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		for range 2 {
			if err := w.nodes[0].leave(20 * time.Second); err != nil {
				t.Error(err)
			}
		}
	})
}

// Several are told to stop, one a little after the other, as when a deployment is
// scaled down: no shard goes to one of them.
func TestLeavingTogetherMovesEachShardOnce(t *testing.T) {
	in(t, 24, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c", "d", "e", "f")
		stays := w.node("f")
		before := make(map[shard.ID]int)
		for _, id := range w.shards() {
			before[id] = len(w.stored(stays, id).Moves)
		}
		leavers := []*node{w.node("a"), w.node("b"), w.node("c"), w.node("d")}
		var leaving sync.WaitGroup
		for _, n := range leavers {
			leaving.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				if err := n.c.Leave(ctx); err != nil {
					t.Errorf("%s: %v", n.inc, err)
				}
			})
			time.Sleep(150 * time.Millisecond)
		}
		leaving.Wait()
		for _, n := range leavers {
			n.stop()
		}
		w.calm(100 * time.Millisecond)
		for _, id := range w.shards() {
			if moves := w.stored(stays, id).Moves; len(moves)-before[id] > 1 {
				t.Errorf("%s moved more than once: %+v", id, moves)
			}
		}
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
	})
}

// Who has nothing to hand over stays while others, told to stop a little later, do.
func TestLeavesWhenAllHaveHandedOver(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b", "c")
		idle, last, stays := w.node("a"), w.node("b"), w.node("c")
		w.do(Command{Kind: CommandDrain, Replica: idle.name})
		time.Sleep(10 * time.Second)
		if held := idle.c.Held(); len(held) > 0 || len(last.c.Held()) == 0 {
			t.Fatalf("the drained one holds %v, the other %v", held, last.c.Held())
		}
		var leaving sync.WaitGroup
		leave := func(n *node) {
			leaving.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				if err := n.c.Leave(ctx); err != nil {
					t.Errorf("%s: %v", n.inc, err)
				}
				// What a replica has read of the store may be older than what
				// another one has.
				items, _, err := w.store.Client(nil).List(t.Context(), "/trestle/shards/")
				if err != nil || len(items) != len(w.shards()) {
					t.Errorf("%d shards are stored: %v", len(items), err)
				}
				for _, item := range items {
					var r shard.Record
					if err := json.Unmarshal(item.Value, &r); err != nil || r.Owner != stays.inc || r.Phase != shard.PhaseOwned {
						t.Errorf("%s has left while %s is %s: %v", n.inc, item.Key, item.Value, err)
					}
				}
			})
		}
		leave(idle)
		time.Sleep(100 * time.Millisecond) // shorter than a hand-over takes
		leave(last)
		leaving.Wait()
		for _, n := range []*node{idle, last} {
			n.stop()
		}
		w.calm(100 * time.Millisecond)
	})
}

// Without the store nothing can be handed over, but all is written out.
func TestLeaveWithoutTheStore(t *testing.T) {
	in(t, 6, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		w.store.Stop()
		if err := w.nodes[0].leave(20 * time.Second); !errors.Is(err, ErrNotHandedOver) {
			t.Errorf("left with %v", err)
		}
		w.store.Start()
		time.Sleep(w.lease + 3*time.Second)
		w.calm(100 * time.Millisecond)
	})
}

// Heavy shards are spread, and their weight is kept in the table.
func TestWeights(t *testing.T) {
	in(t, 8, func(t *testing.T, w *world) {
		w.rates = map[string]float64{"c00": 1000, "c01": 1000, "c02": 1000, "c03": 1000}
		w.fleet("a", "b")
		time.Sleep(5 * time.Minute)
		s, _ := w.nodes[0].c.State()
		for _, sh := range s.Shards {
			want := 1.0
			if w.rates[sh.ID.Cluster] > 0 {
				want = 1002
			}
			if got := sh.Stored.Weight; got < 0.85*want || got > 1.15*want {
				t.Errorf("%s weighs %v", sh.ID, got)
			}
			if sh.Measured.Rate != w.rates[sh.ID.Cluster] {
				t.Errorf("%s is measured as %+v", sh.ID, sh.Measured)
			}
		}
		if s.Replicas[0].Load > 3200 || s.Replicas[1].Load > 3200 {
			t.Errorf("the loads are %v and %v", s.Replicas[0].Load, s.Replicas[1].Load)
		}
	})
}

// Whether the owner hears the cluster decides about the next hand-over, which may
// be ordered at once.
func TestNewOwnerIsHeardSoon(t *testing.T) {
	in(t, 8, func(t *testing.T, w *world) {
		w.rates = map[string]float64{"c00": 1, "c01": 1, "c02": 1, "c03": 1, "c04": 1, "c05": 1}
		w.fleet("a", "b")
		time.Sleep(time.Minute)
		for cluster := range w.rates {
			id := shard.Whole(cluster)
			target := "a"
			if w.owners()[id] == w.node("a").inc {
				target = "b"
			}
			w.do(Command{Kind: CommandPin, Shard: cluster, Replica: target})
			for w.owners()[id] != w.node(target).inc {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Second)
			s, _ := w.leader().c.State()
			for _, sh := range s.Shards {
				if sh.ID == id && sh.Measured.Rate != 1 {
					t.Errorf("a second after it has moved, %s is measured as %+v", id, sh.Measured)
				}
			}
		}
	})
}

// What a later version has added to the table, this one leaves there.
func TestFieldsOfLaterVersionsStay(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		w.fleet("a")
		client := w.store.Client(nil)
		key := "/trestle/shards/c00"
		items, _, err := client.List(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		later := strings.Replace(string(items[0].Value), "{", `{"later":{"x":1},`, 1)
		if _, err := client.Txn(t.Context(), nil, []kv.Op{kv.Put(key, []byte(later), 0)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.start("b", "1")
		time.Sleep(time.Second)
		w.node("a").stop()
		time.Sleep(w.lease + 3*time.Second)
		w.calm(100 * time.Millisecond)
		items, _, err = client.List(t.Context(), key)
		if err != nil || !strings.Contains(string(items[0].Value), `"later":{"x":1}`) {
			t.Errorf("%s, %v", items[0].Value, err)
		}
	})
}

// What cannot be read counts as empty, and is written anew from what the
// database and the owners know.
func TestDamagedAssignment(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		w.fleet("a", "b")
		client := w.store.Client(nil)
		var ops []kv.Op
		for i := range 3 {
			ops = append(ops, kv.Put(fmt.Sprintf("/trestle/shards/c%02d", i), []byte("{not json"), 0))
		}
		ops = append(ops, kv.Put("/trestle/shards/bad#id", []byte("{}"), 0), kv.Put("/trestle/unknown/x", nil, 0))
		if _, err := client.Txn(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		w.calm(100 * time.Millisecond)
		if gap := w.gap(); gap > unbroken {
			t.Errorf("a shard was not written for %v", gap)
		}
	})
}
