package play

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/scenario"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// aftermath is how long is sent after the last fault is over.
const aftermath = 2 * time.Second

// conduct watches the service, strikes with each fault when it is due, and ends
// the sending when its time is over and so are all faults. It ends with ctx.
func (d *director) conduct(ctx context.Context) error {
	select {
	case <-d.began:
	case <-d.cfg.Interrupt:
		return errors.New("stopped before the first message was sent")
	case <-ctx.Done():
		return nil
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { _ = d.monitor.Run(ctx) }) // it ends with ctx alone
	parts.Go(func() { d.progress(ctx) })
	d.strikeAll(ctx)
	if d.s.Work.Duration > 0 {
		d.sleep(ctx, time.Until(d.start.Add(d.s.Work.Duration)))
	}
	select {
	case <-d.cfg.Interrupt:
		d.cfg.Tell("stopping: what has been sent is awaited and checked")
		d.expect(record.Expectation{What: "the scenario", Want: "played to its end", Got: "stopped before", Held: false})
		d.halt()
	default:
		if d.s.Work.Duration > 0 {
			d.halt()
		}
	}
	// A shape without a duration ends by itself, unless it is told to.
	select {
	case <-d.cfg.Interrupt:
		d.halt()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// sleep returns false if ctx ends, or the playing is interrupted, before.
func (d *director) sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.cfg.Interrupt:
	case <-ctx.Done():
	}
	return false
}

func (d *director) progress(ctx context.Context) {
	if d.cfg.Progress == nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			d.cfg.Progress(d.recorder.Load().Progress(now))
		case <-ctx.Done():
			return
		}
	}
}

func (d *director) expect(e record.Expectation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.met = append(d.met, e)
}

// strikeAll plays all faults, and returns when all are over and a moment has
// passed.
func (d *director) strikeAll(ctx context.Context) {
	faults := slices.Clone(d.s.Faults)
	slices.SortStableFunc(faults, func(a, b scenario.Fault) int { return cmp.Compare(a.At, b.At) })
	rng := rand.New(rand.NewPCG(d.cfg.Seed, uint64(len(faults))))
	var going sync.WaitGroup
	for len(faults) > 0 {
		n := 1
		for n < len(faults) && faults[n].At == faults[0].At {
			n++
		}
		if !d.sleep(ctx, time.Until(d.start.Add(faults[0].At))) {
			break
		}
		// The targets of all are chosen before the first one strikes.
		strikes := make([]*stage.Strike, n)
		for i := range n {
			var err error
			if strikes[i], err = d.choose(ctx, &faults[i], rng.Float64()); err != nil {
				d.failed(ctx, &faults[i], faults[i].Target.String(), err)
			}
		}
		for i, s := range strikes {
			if s != nil {
				f := faults[i]
				going.Go(func() { d.strike(ctx, &f, s) })
			}
		}
		faults = faults[n:]
	}
	going.Wait()
	if len(d.s.Faults) > 0 {
		d.sleep(ctx, aftermath)
	}
	if len(faults) > 0 && ctx.Err() != nil {
		d.expect(record.Expectation{What: "faults", Want: fmt.Sprintf("%d, while something is sent", len(d.s.Faults)),
			Got: fmt.Sprintf("%d; then all had been sent: make the work longer", len(d.s.Faults)-len(faults)), Held: false})
	}
}

// failed notes that a fault did not come about as it was to, or was not
// recovered from.
func (d *director) failed(ctx context.Context, f *scenario.Fault, target string, err error) {
	if ctx.Err() != nil {
		return // all had been sent, and checked, before: that is no failure
	}
	d.expect(record.Expectation{What: fmt.Sprintf("%s of %s", f.Do, target), Want: "done, and recovered from", Got: err.Error(), Held: false})
}

// strike plays one fault.
func (d *director) strike(ctx context.Context, f *scenario.Fault, s *stage.Strike) {
	recorder, began := d.recorder.Load(), time.Now()
	fault := recorder.Fault(began, f.Do, s.Target, s.What)
	d.cfg.Tell(fmt.Sprintf("%5.1f s  %s", recorder.At(began), s.What))
	defer d.retold(ctx, f)()
	err := d.inflict(ctx, f, s)
	now := time.Now()
	fault.End(now)
	if err == nil && s.Recover != nil && ctx.Err() == nil {
		if err = s.Recover(ctx); err == nil {
			now = time.Now()
			fault.Recovered(now)
			d.cfg.Tell(fmt.Sprintf("%5.1f s  all is as before: %s of %s", recorder.At(now), f.Do, s.Target))
		}
	}
	if err != nil {
		d.failed(ctx, f, s.Target, err)
		d.cfg.Tell(fmt.Sprintf("%5.1f s  %s of %s: %v", recorder.At(time.Now()), f.Do, s.Target, err))
	}
}

// inflict does a fault, waits, and takes it back, whatever has become of the
// waiting.
func (d *director) inflict(ctx context.Context, f *scenario.Fault, s *stage.Strike) error {
	if err := s.Begin(ctx); err != nil {
		return err
	}
	var err error
	if s.Until != nil {
		err = s.Until(ctx)
	}
	if err == nil {
		d.sleep(ctx, f.For)
	}
	if s.End != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, s.End(ending))
	}
	return err
}

// retold tells the ledger, until the function it returns is called, that what
// has been told may be told again, if the fault is of that kind.
func (d *director) retold(ctx context.Context, f *scenario.Fault) (end func()) {
	if f.Action().Planned {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var marking sync.WaitGroup
	marking.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			d.test.Ledger().Retold()
			select {
			case <-tick.C:
			case <-ctx.Done():
				d.test.Ledger().Retold()
				return
			}
		}
	})
	return func() {
		// What was under way at the end is told again a moment later.
		d.sleep(ctx, aftermath)
		cancel()
		marking.Wait()
	}
}

// onClusters says whether a fault is done to the simulated clusters themselves.
func onClusters(f *scenario.Fault) bool {
	return (f.Target.Kind == scenario.AllClusters || f.Target.Kind == scenario.OneCluster) && f.Do != "slice"
}

// choose makes a strike of a fault.
func (d *director) choose(ctx context.Context, f *scenario.Fault, draw float64) (*stage.Strike, error) {
	if !onClusters(f) {
		return d.stage.Choose(ctx, f, d.cluster, draw)
	}
	clusters, proxies := d.test.Clusters(), d.proxies
	s := &stage.Strike{Target: "all clusters"}
	if f.Target.Kind == scenario.OneCluster {
		n := f.Target.Cluster
		s.Target, clusters = clusters[n].Name(), clusters[n:n+1]
		if len(proxies) > 0 {
			proxies = proxies[n : n+1]
		}
	}
	each := func(f func(context.Context, *sim.Cluster) error) func(context.Context) error {
		return func(ctx context.Context) error {
			for _, c := range clusters {
				if err := f(ctx, c); err != nil {
					return err
				}
			}
			return nil
		}
	}
	switch {
	case f.Connection():
		stage.Connections(f, s, proxies...)
	case f.Do == "drop":
		s.What = "each subscriber of " + s.Target + " is dropped, as if its buffer were full"
		s.Begin = each(func(_ context.Context, c *sim.Cluster) error { c.Drop(); return nil })
	case f.Do == "cut-streams":
		s.What = "all streams of " + s.Target + " end at once"
		s.Begin = each(func(_ context.Context, c *sim.Cluster) error { c.CutStreams(); return nil })
	case f.Do == "outage":
		s.What = s.Target + " cannot be reached"
		s.Begin = each(func(ctx context.Context, c *sim.Cluster) error { return c.Stop(ctx) })
		s.End = each(func(ctx context.Context, c *sim.Cluster) error { return c.Start(ctx) })
	default:
		return nil, fmt.Errorf("%s is nothing that can be done to clusters", f.Do)
	}
	if f.Do != "delay" {
		d.heardAgain(s, clusters)
	}
	return s, nil
}

// heardAgain has a strike that breaks streams recover when each cluster has been
// asked for a snapshot after the end of the strike, and is heard.
func (d *director) heardAgain(s *stage.Strike, clusters []*sim.Cluster) {
	before := make([]int, len(clusters))
	last := &s.Begin
	if s.End != nil {
		last = &s.End
	}
	do := *last
	*last = func(ctx context.Context) error {
		err := do(ctx)
		for i, c := range clusters {
			before[i] = c.Stats().Snapshots
		}
		return err
	}
	s.Recover = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, d.cfg.Settle)
		defer cancel()
		for i, c := range clusters {
			err := c.Await(ctx, func(now sim.Stats) bool { return now.Subscribers > 0 && now.Snapshots > before[i] })
			if err != nil {
				return err
			}
		}
		return nil
	}
}
