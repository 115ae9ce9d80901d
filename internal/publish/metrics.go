package publish

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/event"
)

// kind is one of the three sorts of messages.
type kind uint8

const (
	kindInstance kind = iota
	kindHeadless
	kindPrebuild
	kinds
)

func (k kind) label() string {
	return [kinds]string{"workspace-instance", "headless", "prebuild"}[k]
}

func (k kind) channel() string {
	return [kinds]string{event.ChannelInstances, event.ChannelHeadless, event.ChannelPrebuilds}[k]
}

// tally counts messages by kind.
type tally [kinds]int

func (t *tally) sum() (n int) {
	for _, of := range t {
		n += of
	}
	return n
}

func tallyOf(sets []event.Set) (t tally) {
	for i := range sets {
		t[kindInstance] += len(sets[i].Instances)
		t[kindHeadless] += len(sets[i].Headless)
		t[kindPrebuild] += len(sets[i].Prebuilds)
	}
	return t
}

// redisMetrics counts every message once for each call that was given it, as an
// error unless Redis answered for it.
type redisMetrics struct {
	ok, failed [kinds][]prometheus.Counter
	seconds    prometheus.Histogram
}

func newRedisMetrics(r prometheus.Registerer) (*redisMetrics, error) {
	m := &redisMetrics{seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "trestle_publish_seconds",
		Help:    "Time that Redis took for the messages of one call, failed calls included.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
	})}
	collectors := []prometheus.Collector{m.seconds}
	// Dashboards know the count under both names.
	for _, name := range []string{"gitpod_redis_updates_published_total", "gitpod_ws_manager_bridge_updates_published_total"} {
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name,
			Help: "Messages published on Redis.",
		}, []string{"type", "error"})
		for k := range kinds {
			// Series that exist from the start have a rate from the start.
			m.ok[k] = append(m.ok[k], vec.WithLabelValues(k.label(), "false"))
			m.failed[k] = append(m.failed[k], vec.WithLabelValues(k.label(), "true"))
		}
		collectors = append(collectors, vec)
	}
	return m, register(r, collectors...)
}

func (m *redisMetrics) count(given, taken tally) {
	for k := range kinds {
		for _, c := range m.ok[k] {
			c.Add(float64(taken[k]))
		}
		for _, c := range m.failed[k] {
			c.Add(float64(given[k] - taken[k]))
		}
	}
}

type lifecycleMetrics struct {
	sent, failed, dropped prometheus.Counter
	pending               prometheus.Gauge
}

func newLifecycleMetrics(r prometheus.Registerer, sink string) (*lifecycleMetrics, error) {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trestle_lifecycle_events_total",
		Help: "Lifecycle events handed to the sink: sent, failed (and tried again later), or dropped because the sink calls them malformed.",
	}, []string{"sink", "outcome"})
	m := &lifecycleMetrics{
		pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trestle_lifecycle_pending",
			Help: fmt.Sprintf("Lifecycle events left in the queue by the last round; a round sees %d at most.", roundLimit),
		}),
		sent:    events.WithLabelValues(sink, "sent"),
		failed:  events.WithLabelValues(sink, "failed"),
		dropped: events.WithLabelValues(sink, "dropped"),
	}
	return m, register(r, events, m.pending)
}

// register does nothing without a registerer: the metrics count for themselves.
func register(r prometheus.Registerer, collectors ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
