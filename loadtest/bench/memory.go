package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

// memory is P6: 100,000 live instances, a snapshot of all of them, then
// 1,000,000 distinct short ones passing through while the others live on. In
// both, 2,000 are under way at a time: what piles up in a storm that is faster
// than the database is another matter.
func (b *bench) memory(ctx context.Context) (err error) {
	postgres, drop, err := b.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop()) }()

	live, passing := quick(b, 100_000, 10_000), quick(b, 1_000_000, 100_000)
	base := loadtest.Config{
		Postgres: postgres, Redis: b.stack.Redis.URL(), Installation: installation, NeverDrop: true, Logger: b.cfg.Logger,
		// The service knows the clusters from its start.
		Register: func(context.Context, []loadtest.Cluster) error { return nil },
		Ready:    5 * time.Minute, Settle: 5 * time.Minute,
		Progress: func(p loadtest.Progress) {
			b.line.show(fmt.Sprintf("%d sent, %d published, %d instances wait", p.Sent, p.Publishes, p.Pending))
		},
	}
	second := base
	second.Work = loadtest.Work{Shape: loadtest.Closed, Name: "passing", Seed: 62, Instances: passing, Wave: 2000, Short: true}
	passers, err := loadtest.New(second)
	if err != nil {
		return err
	}
	rss := &samples{}
	var (
		lives   *loadtest.Test
		s       *service
		fleeing *loadtest.Report
		highest int64 // until the short ones have passed
		phase   error
	)
	first := base
	// Repeats keep their instances running until all is over. Those that are
	// said at the end are of what the service has forgotten.
	first.Work = loadtest.Work{Shape: loadtest.Repeats, Name: "live", Seed: 61, Instances: live, Messages: live, Wave: 2000}
	first.Begin = func() {
		rss.mark("live")
		if phase = snapshotOfAll(ctx, lives); phase != nil {
			return
		}
		rss.mark("snapshot")
		b.line.begin("P6: short instances pass through")
		if fleeing, phase = passers.Run(ctx); phase != nil {
			return
		}
		rss.mark("passed")
		highest, phase = s.memory("VmHWM")
	}
	if lives, err = loadtest.New(first); err != nil {
		return err
	}
	var clusters []loadtest.Cluster
	for _, c := range append(lives.Clusters(), passers.Clusters()...) {
		clusters = append(clusters, loadtest.Cluster{Name: c.Name(), URL: c.Addr()})
	}
	b.line.begin("P6: starting the service")
	if s, err = b.startService(ctx, "P6", postgres, clusters); err != nil {
		return err
	}
	sampling, stop := context.WithCancel(ctx)
	var sampler sync.WaitGroup
	sampler.Go(func() { rss.run(sampling, s) })
	b.line.begin("P6: instances come to life")
	living, err := lives.Run(ctx)
	stop()
	sampler.Wait()
	flooded, memoryErr := s.memory("VmHWM")
	b.line.begin("P6: stopping the service")
	if err := errors.Join(err, phase, memoryErr, rss.err, s.stop(ctx)); err != nil {
		return err
	}
	b.judge("P6, live instances", living)
	b.judge("P6, short instances", fleeing)

	target := &report.Target{Of: report.OfFigure, AtMost: 150}
	b.add("P6", fmt.Sprintf("highest memory of the service: %d instances live, a snapshot of all, %d short ones pass", live, passing), mib(highest), "MiB RSS", 0, target)
	b.add("P6", "of that while they came to life", mib(rss.highest("", "live")), "MiB RSS", 0, nil)
	b.add("P6", "of that during the snapshot of all", mib(rss.highest("live", "snapshot")), "MiB RSS", 0, nil)
	early, late := rss.quarters("snapshot", "passed")
	b.add("P6", "mean in the last quarter of the short ones, against the second quarter", mib(late), "MiB RSS", mib(early), &report.Target{Of: report.OfRatio, AtMost: 1.05})
	b.add("P6", fmt.Sprintf("highest memory after a repeat of each of the %d, forgotten by then, as fast as the streams take them", live), mib(flooded), "MiB RSS", 0, nil)
	b.add("P6", "short instances", float64(fleeing.Sent)/fleeing.Duration.Seconds(), "updates/s", 0, nil)
	return nil
}

// snapshotOfAll cuts the streams, so that the service subscribes again and asks
// for all that live.
func snapshotOfAll(ctx context.Context, t *loadtest.Test) error {
	for i, c := range t.Clusters() {
		before := c.Stats().Snapshots
		t.Ledger().Cut(i)
		c.CutStreams()
		// The second one is asked for only after the first has been read.
		if err := c.Await(ctx, func(s sim.Stats) bool { return s.Snapshots >= before+2 && s.Subscribers > 0 }); err != nil {
			return err
		}
		t.Ledger().Cut(i)
	}
	return nil
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// samples is the resident memory of the service over time. Safe for concurrent
// use.
type samples struct {
	err error // set before run returns

	// mu guards what follows.
	mu    sync.Mutex
	rss   []int64
	marks map[string]int
}

// run takes samples until ctx ends.
func (s *samples) run(ctx context.Context, of *service) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		rss, err := of.memory("VmRSS")
		if err != nil {
			s.err = err
			return
		}
		s.mu.Lock()
		s.rss = append(s.rss, rss)
		s.mu.Unlock()
	}
}

// mark names this moment.
func (s *samples) mark(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marks == nil {
		s.marks = make(map[string]int)
	}
	s.marks[name] = len(s.rss)
}

// between gives the samples from one moment to another; "" is the beginning.
func (s *samples) between(from, to string) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rss[s.marks[from]:s.marks[to]]
}

func (s *samples) highest(from, to string) int64 {
	if part := s.between(from, to); len(part) > 0 {
		return slices.Max(part)
	}
	return 0
}

// quarters gives the means of the second and of the last quarter.
func (s *samples) quarters(from, to string) (second, last int64) {
	part := s.between(from, to)
	mean := func(part []int64) (sum int64) {
		for _, v := range part {
			sum += v
		}
		return sum / int64(max(1, len(part)))
	}
	n := len(part)
	return mean(part[n/4 : n/2]), mean(part[3*n/4:])
}
