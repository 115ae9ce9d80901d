package coordinator

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
)

// probed is how many members each replica probes: those that follow it in the
// order of incarnations. Two witnesses are needed to find one dead, the third
// is for the case that one of them died with it.
const probed = 3

// refusals is how often a peer must refuse, in a row, to be told of.
const refusals = 3

type suspect struct {
	peer  string
	first time.Time
	times int
}

// runProbes knocks at the peers, and tells of those that refuse.
func (c *Coordinator) runProbes(ctx context.Context) error {
	if c.cfg.Probe == nil {
		return nil
	}
	suspects := make(map[string]*suspect)
	for ctx.Err() == nil {
		wait(ctx, jitter(c.cfg.Timing.Probe), nil)
		targets := c.targets()
		for who := range suspects {
			if _, still := targets[who]; !still {
				delete(suspects, who)
				c.link.Unsay(c.layout.Refusal(c.me(), who))
			}
		}
		refused := c.knock(ctx, targets)
		if ctx.Err() != nil {
			return nil
		}
		for who, peer := range targets {
			s := suspects[who]
			if !refused[who] {
				if s != nil {
					delete(suspects, who)
					c.link.Unsay(c.layout.Refusal(c.me(), who))
				}
				continue
			}
			if s == nil || s.peer != peer {
				s = &suspect{peer: peer, first: time.Now()}
				suspects[who] = s
			}
			s.times++
			if s.times >= refusals && time.Since(s.first) >= 2*c.cfg.Timing.Probe*9/10 {
				c.link.Say(c.layout.Refusal(c.me(), who), table.Encode(table.Refusal{Peer: peer, At: s.first.UTC()}))
			}
		}
	}
	return nil
}

// targets are the members to be probed, with their addresses.
func (c *Coordinator) targets() map[string]string {
	targets := make(map[string]string, probed)
	c.link.Look(func(v *table.View) {
		ring := slices.Sorted(maps.Keys(v.Members))
		at, registered := slices.BinarySearch(ring, c.me())
		if !registered {
			return
		}
		for i := 1; i < len(ring) && len(targets) < probed; i++ {
			who := ring[(at+i)%len(ring)]
			if peer := v.Members[who].Value.Peer; peer != "" {
				targets[who] = peer
			}
		}
	})
	return targets
}

func (c *Coordinator) knock(ctx context.Context, targets map[string]string) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Probe)
	defer cancel()
	var mu sync.Mutex // guards refused
	refused := make(map[string]bool)
	var knocks sync.WaitGroup
	for who, peer := range targets {
		knocks.Go(func() {
			if c.cfg.Probe(ctx, peer) {
				mu.Lock()
				defer mu.Unlock()
				refused[who] = true
			}
		})
	}
	knocks.Wait()
	return refused
}
