package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/loadtest/traffic"
)

// What is said: two of five instances have an odd life (prebuilds, repeats,
// stale and broken messages, and more), and some say several things at once,
// so that there is something to fold.
const (
	oddShare = 0.4
	bursts   = 3
	wordSeed = 1
)

// result is what came of playing.
type result struct {
	sent, repeats, stale, invalid int64
	publishes                     int64
	sending                       time.Duration
	latency                       loadtest.Latency
	drops                         int
	verdict                       *ledger.Verdict
	unsettled                     string
	// folded is the service's own count; rows and hot are the database's.
	folded, rows, hot int64
	// events are what was done to the replicas.
	events []event
}

// playDemo sends for a while, has its way with the replicas meanwhile, and
// checks.
func (d *dev) playDemo(ctx context.Context, r *running) (*result, error) {
	var test *loadtest.Test
	show := &progress{screen: d.screen, fleet: r, whole: d.duration}
	story := newStory(d, r)
	test, err := loadtest.New(loadtest.Config{
		Work: loadtest.Work{
			Shape: loadtest.Steady, Seed: wordSeed, Clusters: d.clusters,
			// Lives have eight updates and more.
			Instances: d.live + int(d.rate*d.duration.Seconds()/8), Wave: d.live,
			Rate: d.rate, Duration: d.duration, Odd: oddShare, Burst: bursts,
		},
		Postgres: d.database, Redis: d.stack.Redis.URL(), Installation: installation,
		Register: d.register, Sample: true,
		// The service looks twice at a cluster that is new to it. What is sent
		// after that is checked update by update.
		Snapshots:        2,
		Begin:            story.begin,
		ProgressInterval: d.screen.interval(),
		Progress: func(p loadtest.Progress) {
			for _, line := range story.news() {
				d.screen.say(line)
			}
			show.show(ctx, p.Elapsed, counts{p.Sent, p.Publishes, p.Pending, test.Ledger().Latency()})
		},
		// A crash takes a while to be found, a restarted replica to begin.
		Silence: 10 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	telling, stop := context.WithCancel(ctx)
	defer stop()
	told := make(chan error, 1) // one value, even if nobody waits for it
	go func() { told <- story.tell(telling, test) }()
	report, err := test.Run(ctx)
	if err != nil {
		stop()
		return nil, errors.Join(err, <-told)
	}
	if err := <-told; err != nil {
		return nil, err
	}
	for _, line := range story.news() {
		d.screen.say(line)
	}
	return &result{
		sent: report.Sent, repeats: report.Repeats, stale: report.Stale, invalid: report.Invalid,
		publishes: report.Publishes, sending: report.Sending,
		latency: report.Latency, drops: report.Drops, verdict: report.Verdict, unsettled: report.Unsettled,
		folded: r.folded(ctx), events: story.events,
	}, nil
}

// playOn sends until ctx ends.
func (d *dev) playOn(ctx context.Context, r *running) (*result, error) {
	// The clusters outlive the sending: what was sent last is still on its way.
	whole, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	parts, whole := errgroup.WithContext(whole)
	var clusters []*sim.Cluster
	var addresses []loadtest.Cluster
	for n := range d.clusters {
		c, err := sim.New(sim.Config{Name: fmt.Sprintf("sim-%03d", n), ForgetStopped: time.Minute})
		if err != nil {
			end()
			return nil, errors.Join(err, parts.Wait())
		}
		clusters = append(clusters, c)
		addresses = append(addresses, loadtest.Cluster{Name: c.Name(), URL: c.Addr()})
		parts.Go(func() error { return c.Run(whole) })
	}
	result, err := d.talk(ctx, r, clusters, addresses)
	end()
	return result, errors.Join(err, parts.Wait())
}

func (d *dev) talk(ctx context.Context, r *running, clusters []*sim.Cluster, addresses []loadtest.Cluster) (*result, error) {
	t, err := traffic.New(traffic.Config{
		Clusters: clusters, Postgres: d.database, Redis: d.stack.Redis.URL(), Installation: installation,
		Seed: wordSeed, Live: d.live, Rate: d.rate, Odd: oddShare, Burst: bursts,
	})
	if err != nil {
		return nil, err
	}
	if err := d.register(ctx, addresses); err != nil {
		return nil, err
	}
	show := &progress{screen: d.screen, fleet: r}
	ended := make(chan error, 1) // one value, even if nobody waits for it
	go func() { ended <- t.Run(ctx) }()
	tick := time.NewTicker(d.screen.interval())
	defer tick.Stop()
	stopped := ctx.Done()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return nil, err
			}
			c := t.Counts()
			return &result{
				sent: c.Sent, repeats: c.Repeats, stale: c.Stale, invalid: c.Invalid,
				publishes: c.Publishes, sending: c.Sending, latency: loadtest.Summarize(&c.Latency),
				drops: c.Drops, verdict: &c.Checked, folded: r.folded(context.WithoutCancel(ctx)),
			}, nil
		case <-stopped:
			stopped = nil
			d.screen.say("  Stopping: what is under way is awaited and checked ...")
		case <-tick.C:
			if c := t.Counts(); stopped != nil && c.Sent > 0 {
				show.show(ctx, c.Sending, counts{c.Sent, c.Publishes, c.Waiting, c.Latency})
			}
		}
	}
}

// folded is how many updates were written together with a later one. What a
// replica had counted that was killed is not in it.
func (r *running) folded(ctx context.Context) int64 {
	m := r.sum(ctx, "trestle_pipeline_folded_updates_total", "trestle_pipeline_changes_total")
	return int64(max(0, m["trestle_pipeline_folded_updates_total"]-m["trestle_pipeline_changes_total"]))
}
