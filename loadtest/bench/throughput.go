package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
)

// storm is P1: one cluster, waves of 2,000 instances, as fast as the stream
// takes them.
func (b *bench) storm(ctx context.Context) error {
	l, err := b.stormOnOne(ctx, "P1", 11)
	if err != nil {
		return err
	}
	b.add("P1", "storm: one cluster, 2,000 instances x 8 updates, wave after wave", l.rate(), "updates/s", 0, &report.Target{Of: report.OfFigure, AtLeast: 20_000})
	b.add("P1", "processor time of the service for 1,000 updates", l.perThousand(l.took.service), "CPU-s", 0, &report.Target{Of: report.OfFigure, AtMost: 0.04})
	b.add("P1", "the same of PostgreSQL", l.perThousand(l.took.postgres), "CPU-s", 0, nil)
	b.add("P1", "the same of the generator", l.perThousand(l.took.generator), "CPU-s", 0, nil)
	b.add("P1", "updates for each row written", l.folded(), "", 0, nil)
	b.add("P1", "mean size of a batch", l.changesPerBatch(), "rows", 0, nil)
	return nil
}

func (b *bench) stormOnOne(ctx context.Context, name string, seed uint64) (*load, error) {
	return b.run(ctx, name, loadtest.Work{
		Shape: loadtest.Storm, Seed: seed, Instances: quick(b, 240_000, 40_000), Wave: 2000, Duration: quick(b, 12*time.Second, 3*time.Second),
	})
}

// mean is that of one figure of measurements that were made several times.
func mean[T any](all []T, of func(T) float64) (mean float64) {
	for _, one := range all {
		mean += of(one) / float64(len(all))
	}
	return mean
}

// rate is in messages per second, from the first one sent to the last publish.
func (l *load) rate() float64 { return float64(l.Sent) / l.Duration.Seconds() }

// folded is how many updates a row had that was written.
func (l *load) folded() float64 { return float64(l.Changes) / float64(l.Publishes) }

func (l *load) perThousand(cpu time.Duration) float64 {
	return cpu.Seconds() * 1000 / float64(l.Sent)
}

// clusters is P7: 200 clusters of 50 instances each. The storm on one cluster is
// measured before and after, since the machine may have other things to do.
func (b *bench) clusters(ctx context.Context) error {
	var one [2]*load
	var err error
	if one[0], err = b.stormOnOne(ctx, "P7-before", 171); err != nil {
		return err
	}
	l, err := b.run(ctx, "P7", loadtest.Work{
		Shape: loadtest.Storm, Seed: 17, Clusters: 200, Wave: 200 * 50,
		Instances: quick(b, 240_000, 40_000), Duration: quick(b, 12*time.Second, 3*time.Second),
	})
	if err != nil {
		return err
	}
	if one[1], err = b.stormOnOne(ctx, "P7-after", 172); err != nil {
		return err
	}
	b.add("P7", "storm on 200 clusters x 50 instances, against that on one", l.rate(), "updates/s", mean(one[:], (*load).rate), &report.Target{Of: report.OfRatio, AtLeast: 0.8})
	b.add("P7", "processor time of the service for 1,000 updates", l.perThousand(l.took.service), "CPU-s",
		mean(one[:], func(l *load) float64 { return l.perThousand(l.took.service) }), nil)
	b.add("P7", "the same of PostgreSQL", l.perThousand(l.took.postgres), "CPU-s",
		mean(one[:], func(l *load) float64 { return l.perThousand(l.took.postgres) }), nil)
	b.add("P7", "the same of the generator", l.perThousand(l.took.generator), "CPU-s", 0, nil)
	b.add("P7", "mean size of a batch", l.changesPerBatch(), "rows", 0, nil)
	b.add("P7", "updates for each row written", l.folded(), "", 0, nil)
	return nil
}

// rows is P2: nothing to fold, so every update is a row. The raw limit is
// measured before and after, since the machine may have other things to do.
func (b *bench) rows(ctx context.Context) error {
	raw := make([]float64, 2)
	var err error
	if raw[0], err = b.rawBatch(ctx, 21); err != nil {
		return err
	}
	l, err := b.run(ctx, "P2", loadtest.Work{
		Shape: loadtest.Closed, Seed: 12, Instances: quick(b, 80_000, 20_000), Wave: 2000, Duration: quick(b, 12*time.Second, 3*time.Second),
	})
	if err != nil {
		return err
	}
	if raw[1], err = b.rawBatch(ctx, 22); err != nil {
		return err
	}
	rawRate := (raw[0] + raw[1]) / 2
	plain := float64(l.Publishes) / l.Duration.Seconds()
	// The generator and the service share the machine. What the generator has
	// used the service could not, so the time in which the rows were written is
	// the wall's less the generator's share of all cores.
	cores := float64(runtime.NumCPU())
	out := plain * l.wall.Seconds() / (l.wall.Seconds() - l.took.generator.Seconds()/cores)
	b.add("P2", "rows, each published before the instance's next update; generator's CPU counted out", out, "rows/s", rawRate, &report.Target{Of: report.OfRatio, AtLeast: 0.45})
	b.add("P2", "the same, generator's CPU counted in", plain, "rows/s", rawRate, nil)
	b.add("P2", "processor time of the service for 1,000 rows", l.took.service.Seconds()*1000/float64(l.Publishes), "CPU-s", 0, nil)
	b.add("P2", "the same of PostgreSQL", l.took.postgres.Seconds()*1000/float64(l.Publishes), "CPU-s", 0, nil)
	b.add("P2", "the same of the generator", l.took.generator.Seconds()*1000/float64(l.Publishes), "CPU-s", 0, nil)
	b.add("P2", "mean size of a batch", l.changesPerBatch(), "rows", 0, nil)
	b.add("P2", "share of the machine that was idle", 1-(l.took.service+l.took.postgres+l.took.generator+l.took.redis).Seconds()/cores/l.wall.Seconds(), "", 0, nil)
	b.add("L1", "raw batch write, 500 rows a statement, 2 connections", rawRate, "rows/s", 0, nil)
	return nil
}

// rawBatch is the limit of P2.
func (b *bench) rawBatch(ctx context.Context, seed uint64) (rate float64, err error) {
	err = b.rawRows(ctx, "raw batch writes", seed, quick(b, 60_000, 20_000), func(rows *limits.Rows) (err error) {
		rate, err = rows.Batches(ctx, 2, quick(b, 10*time.Second, 3*time.Second))
		return err
	})
	return rate, err
}

// rawRows calls f with rows in a database of their own.
func (b *bench) rawRows(ctx context.Context, what string, seed uint64, instances int, f func(*limits.Rows) error) (err error) {
	b.line.begin(what + ": filling the tables")
	postgres, drop, err := b.database(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop()) }()
	rows, err := limits.NewRows(ctx, postgres, seed, instances)
	if err != nil {
		return err
	}
	b.line.begin(what)
	if err := f(rows); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
