package loadtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest/pace"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// batchSize is how many messages are handed to a cluster at a time when there
// is no reason to wait between them.
const batchSize = 64

// player plays the script of one instance.
type player struct {
	number  int
	id      script.Identity
	script  *script.Script
	cluster int
	next    int // step
}

func (t *Test) newPlayer(number int) *player {
	s := t.work.subject(t.library, number)
	return &player{number: number, id: s.ID, script: s.Script, cluster: s.Cluster}
}

func (p *player) done() bool { return p.next == len(p.script.Steps) }

// take records the next step as sent and makes its update.
func (t *Test) take(p *player, at time.Time) sim.Update {
	step := &p.script.Steps[p.next]
	p.next++
	u := sim.Update{ID: p.id.Instance, Message: sim.NewMessage(step.Response(&p.id))}
	switch {
	case step.Kind == script.Stale || step.Kind == script.Invalid:
		u.Effect = sim.Untouched
	case step.Stopped:
		u.Effect = sim.Stopped
	}
	t.ledger.Sent(p.number, at)
	return u
}

// storm plays wave after wave; each cluster at its own pace.
func (t *Test) storm(ctx context.Context) error {
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for c, cluster := range t.clusters {
		g.Go(func() error {
			batch := make([]sim.Update, 0, batchSize)
			flush := func() error {
				err := cluster.Publish(ctx, batch...)
				batch = batch[:0]
				return err
			}
			for first := 0; first < t.work.Instances; first += t.work.Wave {
				if t.over(start) {
					return nil
				}
				var wave []*player
				for n := first; n < min(first+t.work.Wave, t.work.Instances); n++ {
					if t.work.cluster(n) == c {
						wave = append(wave, t.newPlayer(n))
					}
				}
				for more := true; more; {
					more = false
					for _, p := range wave {
						if p.done() {
							continue
						}
						more = true
						if batch = append(batch, t.take(p, time.Now())); len(batch) == batchSize {
							if err := flush(); err != nil {
								return err
							}
						}
					}
					if err := flush(); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// over says whether the time for sending is up.
func (t *Test) over(start time.Time) bool {
	select {
	case <-t.cfg.Stop:
		return true
	default:
	}
	return t.work.Duration > 0 && time.Since(start) >= t.work.Duration
}

// steady sends each update when it is due, or as soon as possible after that.
func (t *Test) steady(ctx context.Context) error {
	slots := make([]*player, t.work.Wave)
	for n := range slots {
		slots[n] = t.newPlayer(n)
	}
	unplayed := len(slots)
	start := time.Now()
	due := func(k int) time.Time {
		return start.Add(time.Duration(float64(k) / t.work.Rate * float64(time.Second)))
	}
	// burst is how many updates the instance whose turn it is has sent in a row.
	turn, burst := 0, 0
	for k := 0; len(slots) > 0; {
		now := time.Now()
		if t.over(start) {
			return nil
		}
		for ; len(slots) > 0; k++ {
			at := due(k)
			if at.After(now) {
				break
			}
			turn %= len(slots)
			p := slots[turn]
			if err := t.clusters[p.cluster].Publish(ctx, t.take(p, at)); err != nil {
				return err
			}
			burst++
			switch {
			case !p.done() && burst <= p.number%t.work.Burst:
				continue
			case !p.done():
				turn++
			case unplayed < t.work.Instances:
				slots[turn] = t.newPlayer(unplayed)
				unplayed++
				turn++
			default:
				last := len(slots) - 1
				slots[turn] = slots[last]
				slots = slots[:last]
			}
			burst = 0
		}
		if err := pace.Until(ctx, due(k)); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// ready collects the instances whose last update has been published.
type ready struct {
	// wake has size 1: a wake-up that waits stands for all.
	wake chan struct{}

	// mu guards numbers.
	mu      sync.Mutex
	numbers []int
}

func (r *ready) add(number int) {
	r.mu.Lock()
	r.numbers = append(r.numbers, number)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *ready) take(into []int) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	into = append(into, r.numbers...)
	r.numbers = r.numbers[:0]
	return into
}

// closed sends an instance's next update when it is ready.
func (t *Test) closed(ctx context.Context) error {
	playing := make(map[int]*player, t.work.Wave)
	batches := make([][]sim.Update, len(t.clusters))
	send := func(p *player) { batches[p.cluster] = append(batches[p.cluster], t.take(p, time.Now())) }
	flush := func() error {
		for c, batch := range batches {
			if len(batch) == 0 {
				continue
			}
			if err := t.clusters[c].Publish(ctx, batch...); err != nil {
				return err
			}
			batches[c] = batch[:0]
		}
		return nil
	}
	unplayed := 0
	begin := func() {
		if unplayed < t.work.Instances {
			p := t.newPlayer(unplayed)
			playing[unplayed] = p
			unplayed++
			send(p)
		}
	}
	start := time.Now()
	for range t.work.Wave {
		begin()
	}
	if err := flush(); err != nil {
		return err
	}
	var due []int
	for len(playing) > 0 {
		select {
		case <-t.ready.wake:
		case <-t.cfg.Stop:
		case <-ctx.Done():
			return fmt.Errorf("%d instances wait for a publish: %w", len(playing), ctx.Err())
		}
		if t.over(start) {
			return nil
		}
		due = t.ready.take(due[:0])
		for _, n := range due {
			p := playing[n]
			if !p.done() {
				send(p)
				continue
			}
			delete(playing, n)
			begin()
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// flood brings all instances to RUNNING, calls begin when that has been
// published, and floods.
func (t *Test) flood(ctx context.Context, begin func()) error {
	players := make([]*player, t.work.Instances)
	stems := make([]*sim.Stem, len(players))
	for n := range players {
		players[n] = t.newPlayer(n)
		frame := players[n].script.Steps[script.FloodStep].Frame
		if t.work.Shape == Stale {
			// Another content than the last one, lest it be a mere repeat.
			frame = players[n].script.Steps[1].Frame
		}
		stems[n] = sim.NewStem(frame.Status(&players[n].id))
	}
	everyone := func() error {
		for i, p := range players {
			if err := t.clusters[p.cluster].Publish(ctx, t.take(p, time.Now())); err != nil {
				return err
			}
			if (i+1)%t.work.Wave == 0 {
				if err := t.ledger.AwaitPublished(ctx); err != nil {
					return err
				}
			}
		}
		return nil
	}
	// One step at a time: then each publish belongs to the last one sent, and
	// the ones after the flood to the changes after the flood.
	for range script.FloodStep + 1 {
		if err := everyone(); err != nil {
			return err
		}
		if err := t.ledger.AwaitPublished(ctx); err != nil {
			return err
		}
	}
	begin()
	if err := t.pour(ctx, players, stems); err != nil {
		return err
	}
	if t.cfg.Flooded != nil {
		t.cfg.Flooded()
	}
	return everyone()
}

// pour sends the flood itself, each cluster its part.
func (t *Test) pour(ctx context.Context, players []*player, stems []*sim.Stem) error {
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for c, cluster := range t.clusters {
		g.Go(func() error {
			var mine []int
			for n, p := range players {
				if p.cluster == c {
					mine = append(mine, n)
				}
			}
			if len(mine) == 0 {
				return nil
			}
			effect, kind := sim.Live, script.Repeat
			if t.work.Shape == Stale {
				effect, kind = sim.Untouched, script.Stale
			}
			share := t.work.Messages / len(t.clusters)
			if c < t.work.Messages%len(t.clusters) {
				share++
			}
			sent := make([]int64, len(mine))
			batch := make([]sim.Update, 0, batchSize)
			for i := range share {
				if len(batch) == 0 && t.over(start) {
					break
				}
				n := mine[i%len(mine)]
				p := players[n]
				stored := p.script.Steps[script.FloodStep].Version(&p.id)
				version := stored + uint64(sent[i%len(mine)]) + 1
				if kind == script.Stale {
					version = max(1, stored-1-uint64(sent[i%len(mine)]%3))
				}
				sent[i%len(mine)]++
				if t.cfg.Sending != nil {
					t.cfg.Sending(c, time.Now(), false)
				}
				batch = append(batch, sim.Update{ID: p.id.Instance, Message: stems[n].At(version), Effect: effect})
				if len(batch) == batchSize || i == share-1 {
					if err := cluster.Publish(ctx, batch...); err != nil {
						return err
					}
					batch = batch[:0]
				}
			}
			for i, n := range mine {
				p := players[n]
				t.ledger.Flood(n, kind, sent[i], p.script.Steps[script.FloodStep].Version(&p.id)+uint64(sent[i]))
			}
			return nil
		})
	}
	return g.Wait()
}
