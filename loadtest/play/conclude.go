package play

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/stage"
)

// conclude makes the recording of what has been played.
func (d *director) conclude(ctx context.Context, facts stage.Facts, report *loadtest.Report) (*record.Recording, error) {
	recorder := d.recorder.Load()
	recorder.Uncounted(report.Repeats, report.Stale, report.Invalid)
	rec := recorder.Finish(d.published)
	expectations, err := d.stage.Finish(ctx)
	if err != nil {
		return nil, err
	}
	w := d.s.Work
	rec.Scenario, rec.Description, rec.Seed = d.s.Name, d.s.Summary, d.cfg.Seed
	rec.Product = facts.Product
	rec.Environment = record.Environment{
		Installation: facts.Installation, Machine: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(), MemoryBytes: memory(), Parts: facts.Parts,
	}
	rec.Parameters = record.Parameters{
		Shape: string(w.Shape), RatePerSecond: w.Rate, Clusters: w.Clusters, Instances: report.Work.Instances, Replicas: len(d.replicas()),
		Settings: []record.Setting{
			{Name: "live instances", Value: fmt.Sprint(w.Live)},
			{Name: "odd instances", Value: fmt.Sprintf("%g %%", 100*w.Odd)},
			{Name: "slow subscribers", Value: w.SlowSubscribers},
			{Name: "prefix", Value: d.prefix},
		},
	}
	if d.cfg.Own != nil {
		rec.Parameters.Replicas = d.s.Fleet.Replicas
		rec.Parameters.Settings = append(rec.Parameters.Settings, record.Setting{Name: "lease", Value: d.s.Fleet.Lease.String()})
	}
	if w.Hot > 0 {
		rec.Parameters.Settings = append(rec.Parameters.Settings, record.Setting{Name: "share of the hot cluster", Value: fmt.Sprintf("%g %%", 100*w.Hot)})
	}
	rec.Verdict = verdict(report, d.test.Ledger().Counts())
	rec.Verdict.Expectations = append(d.met, expectations...)
	if report.Gaps > 0 {
		rec.Verdict.Expectations = append(rec.Verdict.Expectations, record.Expectation{
			What: "the load test's own subscription to Redis", Want: "never lost, or publishes cannot be judged", Got: fmt.Sprintf("lost %d times", report.Gaps),
		})
	}
	rec.Verdict.Judge()
	return rec, rec.Validate()
}

// verdict is what the check has found.
func verdict(report *loadtest.Report, counts ledger.Counts) record.Verdict {
	found := report.Verdict
	v := record.Verdict{
		Instances: found.Instances, Exact: found.Exact, Unsettled: report.Unsettled,
		Zeros: record.Zeros{
			Lost: int64(found.Lost), Doubled: int64(found.Doubled), Regressed: int64(found.Regressed), Wrong: int64(found.Wrong),
			Unpublished: int64(found.Unpublished), Early: int64(found.Early), Malformed: int64(found.Malformed),
		},
		Information: []record.Count{
			{Name: "folded", Count: report.Folded, What: "changes that were told together with a later one"},
			{Name: "drops", Count: int64(report.Drops), What: "times that a cluster dropped a slow subscriber"},
			{Name: "prebuilds", Count: report.Prebuilds, What: "publishes on chan:prebuilds"},
			{Name: "headless", Count: report.Headless, What: "publishes on chan:headless"},
			{Name: "strays", Count: report.Strays, What: "publishes of what is not under test"},
		},
	}
	if report.Unsettled != "" {
		v.Zeros.Late = int64(counts.Pending)
	}
	for _, difference := range found.Differences {
		// Channels are told in an order; rows go back.
		if difference.Kind == oracle.Regressed && strings.HasPrefix(difference.Field, "chan:") {
			v.Zeros.Misordered++
			v.Zeros.Regressed--
		}
		v.AddFinding("%s", difference)
	}
	return v
}

// memory is that of the machine in bytes, 0 if it does not tell.
func memory() int64 {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		var kilobytes int64
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kilobytes); err == nil {
			return kilobytes << 10
		}
	}
	return 0
}
