package report

import (
	"cmp"
	"math"
	"slices"

	"github.com/trestle-bridge/trestle/loadtest/record"
)

// secondly are published changes, p99 and waiting of each second. What is told
// by rates leaves a last second out that is only a part of one.
func secondly(r *record.Recording) (published, p99, waiting []float64) {
	for i, s := range r.Seconds {
		published = append(published, rate(r, i, s.Published))
		p99 = append(p99, latencyOr(s.Latency, s.Latency.P99MS))
		waiting = append(waiting, float64(s.Waiting))
	}
	return published, p99, waiting
}

// rate is a count within second i, unknown if that is not whole.
func rate(r *record.Recording, i int, count int64) float64 {
	if i > 0 && float64(i+1) > r.DurationS {
		return math.NaN()
	}
	return float64(count)
}

// latencyOr is a quantile, unknown if there is nothing to tell.
func latencyOr(l record.Latency, ms float64) float64 {
	if l.Count == 0 {
		return math.NaN()
	}
	return ms
}

// extremes are the highest known value, 0 if there is none, and the lowest one
// above 0.
func extremes(values ...[]float64) (most, lowest float64) {
	for _, list := range values {
		for _, v := range list {
			if math.IsNaN(v) {
				continue
			}
			most = max(most, v)
			if v > 0 && (lowest == 0 || v < lowest) {
				lowest = v
			}
		}
	}
	return most, lowest
}

// usage is what a replica used over a run.
type usage struct {
	cpuMean, cpu, rss, waiting float64
	shardsLeast, shardsMost    float64
}

func usageOf(p *record.Replica) usage {
	u := usage{cpuMean: math.NaN(), cpu: math.NaN(), rss: math.NaN(), waiting: math.NaN(), shardsLeast: math.NaN(), shardsMost: math.NaN()}
	sum := 0.0
	for i, s := range p.Samples {
		if i == 0 {
			u = usage{shardsLeast: float64(s.Shards)}
		}
		sum += s.CPUCores
		u.cpu = max(u.cpu, s.CPUCores)
		u.rss = max(u.rss, float64(s.RSSBytes))
		u.waiting = max(u.waiting, float64(s.Waiting))
		u.shardsLeast = min(u.shardsLeast, float64(s.Shards))
		u.shardsMost = max(u.shardsMost, float64(s.Shards))
		u.cpuMean = sum / float64(i+1)
	}
	return u
}

// slowest are the clusters with the highest p99, and how many are left out.
func slowest(clusters []record.Cluster, most int) (slow []record.Cluster, left int) {
	slow = slices.SortedStableFunc(slices.Values(clusters), func(a, b record.Cluster) int {
		return cmp.Or(cmp.Compare(b.Latency.P99MS, a.Latency.P99MS), cmp.Compare(a.Name, b.Name))
	})
	most = min(most, len(slow))
	return slow[:most], len(slow) - most
}
