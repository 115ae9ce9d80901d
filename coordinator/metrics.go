package coordinator

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/coordinator/table"
)

type metrics struct {
	leading prometheus.Gauge
	terms   prometheus.Counter
	raised  prometheus.Histogram
}

// seen are the metrics that are read off the table when they are asked for.
type seen struct {
	c                                  *Coordinator
	detached, heartbeat, epochs, loads *prometheus.Desc
}

func newMetrics(r prometheus.Registerer, c *Coordinator) (*metrics, error) {
	m := &metrics{
		leading: prometheus.NewGauge(prometheus.GaugeOpts{Name: "trestle_leader", Help: "1 on the replica that leads."}),
		terms: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_coordinator_terms_total", Help: "Terms of leadership begun here."}),
		raised: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trestle_takeover_seconds", Help: "From the wish to own a shard until it is owned: fence and start of writing.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	s := &seen{
		c:         c,
		detached:  prometheus.NewDesc("trestle_detached", "1 while this replica is cut off from etcd and goes on with what it holds.", nil, nil),
		heartbeat: prometheus.NewDesc("trestle_oldest_heartbeat_seconds", "Age of the oldest word of a living replica, by our clock.", nil, nil),
		epochs: prometheus.NewDesc("trestle_shard_epoch", "Epochs of the shards of this replica: intended by the assignment, observed as held.",
			[]string{"shard", "kind"}, nil),
		loads: prometheus.NewDesc("trestle_replica_load", "Weight of the shards of this replica.", nil, nil),
	}
	for _, collector := range []prometheus.Collector{m.leading, m.terms, m.raised, s} {
		if err := r.Register(collector); err != nil {
			return nil, fmt.Errorf("register the coordinator's metrics: %w", err)
		}
	}
	return m, nil
}

// Describe names the metrics.
func (s *seen) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.detached
	ch <- s.heartbeat
	ch <- s.epochs
	ch <- s.loads
}

// Collect reads them off the table. Epochs are those of our own shards, so that
// every shard is told of once in the whole fleet while all is well.
func (s *seen) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	detached := 0.0
	if s.c.Detached() {
		detached = 1
	}
	gauge(s.detached, detached)
	held := s.c.duties.Held()
	for id, fence := range held {
		gauge(s.epochs, float64(fence.Epoch), id.String(), "observed")
	}
	oldest, load := time.Duration(0), 0.0
	intended := make(map[string]float64)
	s.c.link.Look(func(v *table.View) {
		for who := range v.Members {
			if at := v.Loads[who].Value.At; !at.IsZero() {
				oldest = max(oldest, time.Since(at))
			}
		}
		for id, stored := range v.Shards {
			if _, ours := held[id]; ours || stored.Value.Owner == s.c.me() {
				intended[id.String()] = float64(stored.Value.Epoch)
			}
			if stored.Value.Owner == s.c.me() {
				load += stored.Value.Weight
			}
		}
	})
	for id, epoch := range intended {
		gauge(s.epochs, epoch, id, "intended")
	}
	gauge(s.heartbeat, oldest.Seconds())
	gauge(s.loads, load)
}
