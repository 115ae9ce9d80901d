package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/loadtest/fleet"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/operator"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// waited is a change that was followed by a publish.
type waited struct {
	cluster         int
	sent, published time.Time
}

// waits collects them. Its methods may be called at once.
type waits struct {
	mu  sync.Mutex // guards all
	all []waited
}

func (w *waits) add(cluster int, at time.Time, followed []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, after := range followed {
		w.all = append(w.all, waited{cluster, at.Add(-after), at})
	}
}

// during are the latencies of what was sent to some clusters in a time.
func (w *waits) during(from, until time.Time, into *ledger.Histogram, of func(cluster int) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.all {
		if of(x.cluster) && !x.sent.Before(from) && x.sent.Before(until) {
			into.Add(x.published.Sub(x.sent))
		}
	}
}

// moving is P10: under 3,000 updates/s, shards move one after the other; the
// latencies of what is sent for them meanwhile against those of the shards that
// stay.
func (b *bench) moving(ctx context.Context) (err error) {
	const clusters = 20
	moves := quick(b, 10, 2)
	f, err := b.newFleet(ctx, "P10", 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	op, err := f.operator()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, op.Close()) }()

	var all waits
	type span struct {
		cluster     int
		from, until time.Time
	}
	var spans []span
	moved := make(chan error, 1) // so that it ends even if nobody waits
	duration := quick(b, 45*time.Second, 15*time.Second)
	r, err := f.play(ctx, loadtest.Work{
		Shape: loadtest.Steady, Seed: 110, Clusters: clusters, Wave: 2000, Rate: busyRate, Duration: duration,
		Instances: 2000 + int(busyRate*duration.Seconds()/8),
	}, loadtest.Config{
		Heard: all.add,
		Begin: func() {
			go func() {
				ctx, cancel := context.WithTimeout(ctx, duration-2*time.Second)
				defer cancel()
				for c := range moves {
					// Others' moves, and the start, are no part of this one.
					if err := sleep(ctx, time.Second); err != nil {
						moved <- err
						return
					}
					from := time.Now()
					if err := move(ctx, op, fmt.Sprintf("sim-%03d", c), f.Living()); err != nil {
						moved <- fmt.Errorf("move %d of %d: %w", c+1, moves, err)
						return
					}
					spans = append(spans, span{c, from, time.Now()})
				}
				moved <- nil
			}()
		},
	})
	if err := errors.Join(<-moved, err); err != nil {
		return err
	}
	b.judge("P10", r)
	var moving, staying ledger.Histogram
	var took time.Duration
	for _, s := range spans {
		all.during(s.from, s.until, &moving, func(c int) bool { return c == s.cluster })
		all.during(s.from, s.until, &staying, func(c int) bool { return c >= moves })
		took += s.until.Sub(s.from)
	}
	p999 := func(h *ledger.Histogram) float64 { return ms(h.Quantile(0.999)) }
	b.add("P10", fmt.Sprintf("p99.9 of %d updates for shards that moved, beyond that of those that stayed", moving.Count()), p999(&moving)-p999(&staying), "ms", 0, &report.Target{Of: report.OfFigure, AtMost: 100})
	b.add("P10", "p99.9 of updates for shards during their move, against those that stayed", p999(&moving), "ms", p999(&staying), nil)
	b.add("P10", "p50 of the same", ms(moving.Quantile(0.5)), "ms", ms(staying.Quantile(0.5)), nil)
	b.add("P10", fmt.Sprintf("mean time of %d moves, from the order to the end", len(spans)), ms(took/time.Duration(len(spans))), "ms", 0, nil)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// operator asks the replicas that live about shards.
func (f *replicaFleet) operator() (*operator.Operator, error) {
	return operator.New(operator.Config{Addresses: func() (all []string) {
		for _, r := range f.Living() {
			all = append(all, r.GRPC)
		}
		return all
	}})
}

// move pins a shard to another of the replicas and returns when that one writes
// it.
func move(ctx context.Context, op *operator.Operator, id string, replicas []*fleet.Replica) error {
	now, err := op.Await(ctx, id, operator.Written)
	if err != nil {
		return err
	}
	to := slices.IndexFunc(replicas, func(r *fleet.Replica) bool { return r.Name != now.GetOwner().GetName() })
	if to < 0 {
		return fmt.Errorf("move %s: there is nowhere to go", id)
	}
	target := replicas[to].Name
	if err := op.Pin(ctx, id, target); err != nil {
		return err
	}
	_, err = op.Await(ctx, id, func(s *trestlev1.Shard) bool { return s.GetOwner().GetName() == target && operator.Written(s) })
	return err
}

// leaseSeconds is the life of a replica's lease in P9.
const leaseSeconds = 3

// takingOver is P9: the owner of a cluster of 20,000 instances dies, or stalls,
// while its updates go on.
func (b *bench) takingOver(ctx context.Context) error {
	for _, c := range []struct {
		what string
		end  func(*fleet.Replica) error
	}{
		{"killed", (*fleet.Replica).Kill},
		{"stalled", (*fleet.Replica).Hold},
	} {
		if err := b.takeOver(ctx, c.what, c.end); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) takeOver(ctx context.Context, what string, end func(*fleet.Replica) error) (err error) {
	name := "P9-" + what
	f, err := b.newFleet(ctx, name, 2, "--etcd.leaseSeconds", fmt.Sprint(leaseSeconds))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	f.crash = true
	op, err := f.operator()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, op.Close()) }()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: b.stack.Etcd.Endpoints(), DialTimeout: startTimeout})
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()

	live := quick(b, 20_000, 5000)
	const rate = 2000.0
	calm := time.Duration(float64(live) / rate * 1.3 * float64(time.Second)) // until all live
	duration := calm + 20*time.Second
	var all waits
	var ended, expired time.Time
	over := make(chan error, 1) // so that it ends even if nobody waits
	r, err := f.play(ctx, loadtest.Work{
		Shape: loadtest.Steady, Seed: 109, Wave: live, Rate: rate, Duration: duration,
		Instances: live + int(rate*duration.Seconds()/8),
	}, loadtest.Config{
		Heard: all.add,
		Begin: func() {
			go func() {
				over <- func() error {
					ctx, cancel := context.WithTimeout(ctx, duration)
					defer cancel()
					if err := sleep(ctx, calm); err != nil {
						return err
					}
					s, err := op.Await(ctx, "sim-000", operator.Written)
					if err != nil {
						return err
					}
					owner := f.Living()[slices.IndexFunc(f.Living(), func(r *fleet.Replica) bool { return r.Name == s.GetOwner().GetName() })]
					gone := etcd.Watch(ctx, f.prefix+"/members/"+owner.Incarnation, clientv3.WithFilterPut())
					ended = time.Now()
					if err := end(owner); err != nil {
						return err
					}
					if answer, open := <-gone; !open || answer.Err() != nil {
						return fmt.Errorf("wait for the lease of %s to expire: %w", owner.Name, errors.Join(answer.Err(), ctx.Err()))
					}
					expired = time.Now()
					return nil
				}()
			}()
		},
	})
	if err := errors.Join(<-over, err); err != nil {
		return err
	}
	r.Drops = 0 // who stalls is dropped, as by the real server
	b.judge(name, r)
	resumed, caughtUp := all.after(ended)
	b.add("P9", fmt.Sprintf("owner of %d instances %s: until writes resume, from the expiry of its lease", live, what), ms(resumed.Sub(expired)), "ms", 0, &report.Target{Of: report.OfFigure, AtMost: 2000})
	b.add("P9", fmt.Sprintf("the same, from when it was %s (the lease lives %d s)", what, leaseSeconds), ms(resumed.Sub(ended)), "ms", 0, nil)
	b.add("P9", "from then until all is written that was missed: the snapshot", ms(caughtUp.Sub(resumed)), "ms", 0, &report.Target{Of: report.OfFigure, AtMost: 1000})
	return nil
}

// after is, of what was sent after the owner's end: when the first of it was
// published, and when everything was that had been sent before that.
func (w *waits) after(end time.Time) (resumed, caughtUp time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.all {
		if x.sent.After(end) && (resumed.IsZero() || x.published.Before(resumed)) {
			resumed = x.published
		}
	}
	for _, x := range w.all {
		if x.sent.Before(resumed) && x.published.After(caughtUp) {
			caughtUp = x.published
		}
	}
	return resumed, caughtUp
}
