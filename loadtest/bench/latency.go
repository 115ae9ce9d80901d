package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// The rates of P3, in updates per second.
const (
	quietRate = 300.0
	busyRate  = 3000.0
)

// latency is P3: from the moment at which an update is due until its publish is
// seen, against from the moment at which a raw write is due until its commit is
// known.
func (b *bench) latency(ctx context.Context) error {
	var p99 [2]time.Duration
	for i, rate := range []float64{quietRate, busyRate} {
		duration := quick(b, time.Minute, 5*time.Second)
		raw, err := b.rawSingles(ctx, rate, duration)
		if err != nil {
			return err
		}
		updates := int(rate * duration.Seconds())
		l, err := b.run(ctx, fmt.Sprintf("P3-%.0f", rate), loadtest.Work{
			Shape: loadtest.Steady, Seed: 130 + uint64(i), Rate: rate, Duration: duration,
			Wave: 2000, Instances: 4000 + updates/8,
		})
		if err != nil {
			return err
		}
		what := func(s string) string {
			return fmt.Sprintf("%s at %.0f updates/s, send to publish, against a raw write", s, rate)
		}
		twice := &report.Target{Of: report.OfRatio, AtMost: 2}
		b.add("P3", what("p50"), ms(l.Latency.P50), "ms", ms(raw.P50), twice)
		b.add("P3", what("p99"), ms(l.Latency.P99), "ms", ms(raw.P99), twice)
		b.add("P3", what("p99.9"), ms(l.Latency.P999), "ms", ms(raw.P999), nil)
		b.add("P3", fmt.Sprintf("at %.0f updates/s: mean latency, of which the commit, against the raw write's mean", rate), ms(l.Latency.Mean), "ms", ms(raw.Mean), nil)
		b.add("P3", fmt.Sprintf("at %.0f updates/s: mean time of a commit", rate), l.commit(), "ms", 0, nil)
		b.add("P3", fmt.Sprintf("at %.0f updates/s: mean size of a batch", rate), l.changesPerBatch(), "rows", 0, nil)
		b.add("P3", fmt.Sprintf("at %.0f updates/s: processors busy: service, PostgreSQL", rate), l.took.service.Seconds()/l.wall.Seconds(), "cores", l.took.postgres.Seconds()/l.wall.Seconds(), nil)
		b.latencies = append(b.latencies,
			report.Latencies{Name: fmt.Sprintf("bridge, %.0f/s", rate), P50: ms(l.Latency.P50), P90: ms(l.Latency.P90), P99: ms(l.Latency.P99), P999: ms(l.Latency.P999)},
			report.Latencies{Name: fmt.Sprintf("raw write, %.0f/s", rate), P50: ms(raw.P50), P90: ms(raw.P90), P99: ms(raw.P99), P999: ms(raw.P999)})
		p99[i] = l.Latency.P99
	}
	b.add("P3", "p99 at 3000 updates/s against that at 300", ms(p99[1]), "ms", ms(p99[0]), &report.Target{Of: report.OfRatio, AtMost: 2})

	return b.rawRows(ctx, "raw single writes", 35, quick(b, 20_000, 5000), func(rows *limits.Rows) error {
		rate, latency, err := rows.Singles(ctx, rawConnections, 0, quick(b, 10*time.Second, 3*time.Second))
		if err != nil {
			return err
		}
		b.add("L2", "raw single write, 4 connections, as fast as they can", rate, "rows/s", 0, nil)
		b.add("L2", "its p50", ms(latency.Quantile(0.5)), "ms", 0, nil)
		return nil
	})
}

// rawConnections is how many connections share the raw single writes.
const rawConnections = 4

// rawSingles is the limit of P3 at a rate.
func (b *bench) rawSingles(ctx context.Context, rate float64, duration time.Duration) (loadtest.Latency, error) {
	var latency *ledger.Histogram
	what := fmt.Sprintf("raw single writes, %.0f/s", rate)
	err := b.rawRows(ctx, what, 30+uint64(rate), 4000+int(rate*duration.Seconds())/8, func(rows *limits.Rows) (err error) {
		_, latency, err = rows.Singles(ctx, rawConnections, rate, duration)
		return err
	})
	if err != nil {
		return loadtest.Latency{}, err
	}
	return loadtest.Summarize(latency), nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
