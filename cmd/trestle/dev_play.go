package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
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
}

// playDemo sends for a while, and checks.
func (d *dev) playDemo(ctx context.Context, r *running) (*result, error) {
	var test *loadtest.Test
	show := &progress{screen: d.screen, service: r, whole: d.duration}
	dropped := false
	test, err := loadtest.New(loadtest.Config{
		Work: loadtest.Work{
			Shape: loadtest.Steady, Seed: wordSeed, Clusters: d.clusters,
			// Lives have eight updates and more.
			Instances: d.live + int(d.rate*d.duration.Seconds()/8), Wave: d.live,
			Rate: d.rate, Duration: d.duration, Odd: oddShare, Burst: bursts,
		},
		Postgres: d.database, Redis: d.stack.Redis.URL(), Installation: installation,
		Register: d.register, Sample: true, Logger: d.log,
		// The service looks twice at a cluster that is new to it. What is sent
		// after that is checked update by update.
		Snapshots:        2,
		ProgressInterval: d.screen.interval(),
		Progress: func(p loadtest.Progress) {
			if victim := test.Clusters()[d.clusters/2]; !dropped && p.Elapsed > d.duration*6/10 {
				dropped = true
				victim.Drop()
				d.screen.say(fmt.Sprintf("  %s drops its subscriber, as if its buffer were full", victim.Name()))
			}
			show.show(ctx, p.Elapsed, counts{p.Sent, p.Publishes, p.Pending, test.Ledger().Latency()})
		},
	})
	if err != nil {
		return nil, err
	}
	report, err := test.Run(ctx)
	if err != nil {
		return nil, err
	}
	return &result{
		sent: report.Sent, repeats: report.Repeats, stale: report.Stale, invalid: report.Invalid,
		publishes: report.Publishes, sending: report.Sending,
		latency: report.Latency, drops: report.Drops, verdict: report.Verdict, unsettled: report.Unsettled,
		folded: r.folded(ctx),
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
		c, err := sim.New(sim.Config{Name: fmt.Sprintf("sim-%03d", n), ForgetStopped: time.Minute, Logger: d.log})
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
	show := &progress{screen: d.screen, service: r}
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

// metrics asks the service for the sums of its metrics over all labels.
func (r *running) metrics(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	request.Close = true // no connection is left for the service to wait for
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	sums := make(map[string]float64, len(families))
	for name, family := range families {
		for _, m := range family.GetMetric() {
			sums[name] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sums, nil
}

// folded is how many updates were written together with a later one, by the
// service's own count; 0 if it does not say.
func (r *running) folded(ctx context.Context) int64 {
	m, err := r.metrics(ctx)
	if err != nil {
		return 0
	}
	return int64(m["trestle_pipeline_folded_updates_total"] - m["trestle_pipeline_changes_total"])
}
