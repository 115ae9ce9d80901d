package coordinator

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv/kvtest"
	"github.com/trestle-bridge/trestle/internal/bubbletest"
)

var (
	soak    = flag.Duration("soak", 0, "how long TestSoak goes on with new seeds")
	oneSeed = flag.Uint64("sim.seed", 0, "run this seed of the simulation only")
)

// TestSimulation lets everything happen to a fleet, in any order. The oracle
// watches each write; afterwards every shard must be written again within the
// promised time.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		simulate(t, *oneSeed)
		return
	}
	seeds := uint64(20) // more of them: TestSoak
	if testing.Short() {
		seeds = 15
	}
	for seed := uint64(1); seed <= seeds && !t.Failed(); seed++ {
		simulate(t, seed)
	}
}

// TestSoak is the same for as long as one likes: go test -run Soak -soak=10m.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("without -soak")
	}
	for begun := time.Now(); time.Since(begun) < *soak && !t.Failed(); {
		simulate(t, rand.Uint64()|1)
	}
}

func simulate(t *testing.T, seed uint64) {
	t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
		bubbletest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed, 2+int(seed%9))
			s := &script{w: w, pick: rand.New(rand.NewPCG(seed, 17))}
			defer func() {
				w.end()
				if t.Failed() {
					t.Logf("seed %d (again: -run TestSimulation -sim.seed %d):\n%s", seed, seed, strings.Join(s.told, "\n"))
				}
			}()
			s.run()
		})
	})
}

type script struct {
	w     *world
	pick  *rand.Rand
	told  []string
	names int
	copy  *kvtest.Snapshot
	begun time.Time
}

func (s *script) tell(format string, args ...any) {
	line := fmt.Sprintf("%8.3f ", time.Since(s.begun).Seconds()) + fmt.Sprintf(format, args...)
	s.told = append(s.told, line)
	if os.Getenv("TRESTLE_SIM_LOG") != "" {
		fmt.Fprintln(os.Stderr, line)
	}
}

func (s *script) join() {
	s.names++
	n := s.w.start(fmt.Sprintf("r%d", s.names), fmt.Sprint(s.pick.IntN(2)))
	s.tell("start %s", n.inc)
}

func (s *script) any() *node { return s.w.nodes[s.pick.IntN(len(s.w.nodes))] }

func (s *script) run() {
	s.begun = time.Now()
	for range 2 + s.pick.IntN(4) {
		s.join()
	}
	time.Sleep(time.Duration(s.pick.IntN(6000)) * time.Millisecond)
	for range 10 + s.pick.IntN(25) {
		s.step()
		time.Sleep(time.Duration(s.pick.IntN([]int{50, 1000, 8000}[s.pick.IntN(3)])) * time.Millisecond)
	}
	s.tell("all faults end")
	w := s.w
	w.store.Start()
	w.db.mu.Lock()
	w.db.away = false
	w.db.mu.Unlock()
	for _, n := range w.nodes {
		n.heal()
		n.resume()
	}
	for len(w.nodes) < 2 {
		s.join()
	}
	w.do(Command{Kind: CommandUnfreeze})
	w.do(Command{Kind: CommandBrakeRelease})
	// An operator may have drained all that are left.
	for _, n := range w.nodes {
		w.do(Command{Kind: CommandUndrain, Replica: n.name})
	}
	// Those that were killed a moment ago still have their leases.
	time.Sleep(w.lease + time.Second)
	if st, _ := w.nodes[0].c.State(); st.Brake.Holds() {
		w.do(Command{Kind: CommandBrakeRelease})
	}
	time.Sleep(time.Second)
	if stalled := w.db.stalled(w.shards(), 500*time.Millisecond); len(stalled) > 0 {
		w.t.Errorf("not written: %s", strings.Join(stalled, ", "))
		for _, n := range w.nodes {
			st, _ := n.c.State()
			s.tell("%s leads %v, detached %v, holds %v", n.inc, n.c.Leading(), st.Detached, n.c.Held())
		}
		st, _ := w.nodes[0].c.State()
		for _, sh := range st.Shards {
			s.tell("%s: %+v %s", sh.ID, sh.Stored.Record, sh.Stored.Text)
		}
		s.tell("brake %+v, freeze %+v, clusters %+v", st.Brake, st.Freeze, st.Clusters)
	}
	// And then it comes to rest.
	time.Sleep(2 * time.Minute)
	if stalled := w.db.stalled(w.shards(), 200*time.Millisecond); len(stalled) > 0 {
		w.t.Errorf("not written at rest: %s", strings.Join(stalled, ", "))
	}
	w.leader()
}

func (s *script) step() {
	w := s.w
	switch n := s.any(); s.pick.IntN(22) {
	case 0, 1:
		if len(w.nodes) < 6 {
			s.join()
		}
	case 2, 3:
		if len(w.nodes) > 1 {
			s.tell("kill %s", n.inc)
			n.stop()
		}
	case 4:
		if len(w.nodes) > 1 {
			n.resume()
			s.tell("%s leaves", n.inc)
			s.tell("%s has left: %v", n.inc, n.leave(time.Duration(1+s.pick.IntN(20))*time.Second))
		}
	case 5:
		s.tell("pause %s", n.inc)
		n.pause()
	case 6:
		s.tell("pause %s in its next write", n.inc)
		n.trap()
	case 7, 8:
		s.tell("resume %s", n.inc)
		n.resume()
	case 9, 10:
		s.tell("cut %s off", n.inc)
		n.partition()
	case 11:
		s.tell("%s is lossy", n.inc)
		n.mu.Lock()
		n.lossy = 20
		n.mu.Unlock()
	case 12, 13:
		s.tell("heal %s", n.inc)
		n.heal()
	case 14:
		s.tell("all leases expire")
		w.store.Expire(nil)
	case 15:
		s.tell("compaction")
		w.store.Compact()
	case 16:
		s.tell("store away")
		w.store.Stop()
	case 17:
		s.tell("store back")
		w.store.Start()
	case 18:
		w.db.mu.Lock()
		w.db.away = s.pick.IntN(2) == 0
		s.tell("database away: %v", w.db.away)
		w.db.mu.Unlock()
	case 19:
		s.rare()
	case 20, 21:
		s.command(n)
	}
}

// rare are the things that happen once in the life of an installation.
func (s *script) rare() {
	w := s.w
	switch s.pick.IntN(5) {
	case 0:
		s.tell("store wiped")
		w.store.Wipe()
	case 1:
		s.tell("store copied")
		c := w.store.Snapshot()
		s.copy = &c
	case 2:
		if s.copy != nil {
			s.tell("store restored")
			w.store.Restore(*s.copy)
		}
	default:
		w.mu.Lock()
		name := fmt.Sprintf("c%02d", s.pick.IntN(10))
		if w.clusters[name] {
			delete(w.clusters, name)
		} else {
			w.clusters[name] = true
		}
		s.tell("cluster %s: %v", name, w.clusters[name])
		w.mu.Unlock()
	}
}

func (s *script) command(n *node) {
	names := s.w.names()
	if len(names) == 0 {
		return
	}
	cluster := names[s.pick.IntN(len(names))]
	c := []Command{
		{Kind: CommandPin, Shard: cluster, Replica: n.name},
		{Kind: CommandUnpin, Shard: cluster},
		{Kind: CommandDrain, Replica: n.name, Until: time.Now().Add(20 * time.Second)},
		{Kind: CommandUndrain, Replica: n.name},
		{Kind: CommandFreeze, Until: time.Now().Add(20 * time.Second)},
		{Kind: CommandSlices, Cluster: cluster, Slices: 1 + s.pick.IntN(4)},
		{Kind: CommandSlices, Cluster: cluster, Slices: 1 + s.pick.IntN(4)},
	}[s.pick.IntN(7)]
	c.Reason, c.Author = "simulation", "tester"
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	// The script itself must not be what waits for a paused replica.
	via := s.w.anyRunning(n)
	via.mu.Lock()
	via.trapped = false
	via.mu.Unlock()
	go func() {
		<-ctx.Done()
		via.resume()
	}()
	s.tell("%s %s%s%s %d: %v", c.Kind, c.Shard, c.Cluster, c.Replica, c.Slices, via.c.Do(ctx, c))
}

// anyRunning is the given replica or, if it is paused, another that is not.
func (w *world) anyRunning(n *node) *node {
	for _, x := range append([]*node{n}, w.nodes...) {
		x.mu.Lock()
		paused := x.paused != nil
		x.mu.Unlock()
		if !paused {
			return x
		}
	}
	return n
}
