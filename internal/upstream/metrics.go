package upstream

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/status"
)

// reason says why a subscription ended. The set is bounded: it is a label.
type reason string

const (
	reasonDropped     reason = "dropped"     // the server says that we are too slow
	reasonTooLarge    reason = "too_large"   // an update beyond our limit
	reasonFull        reason = "full"        // our sink takes no new instances
	reasonSilent      reason = "silent"      // snapshots know what the stream did not say
	reasonClosed      reason = "closed"      // the server ended it without an error
	reasonUnavailable reason = "unavailable" // no connection, or it broke
	reasonTLS         reason = "tls"         // we do not trust the server
	reasonRefused     reason = "refused"     // the server does not trust us
	reasonOther       reason = "other"
)

// Metrics are those of all clusters that a replica hears. They are safe for
// concurrent use.
type Metrics struct {
	reconnects       *prometheus.CounterVec
	up               *prometheus.GaugeVec
	lastHeard        *prometheus.GaugeVec
	lastSnapshot     *prometheus.GaugeVec
	snapshots        *prometheus.CounterVec
	snapshotSeconds  prometheus.Histogram
	snapshotBytes    *prometheus.GaugeVec
	snapshotEntries  *prometheus.GaugeVec
	invalid          *prometheus.CounterVec
	deletableByLabel []interface {
		DeletePartialMatch(prometheus.Labels) int
	}

	// mu guards running. A cluster's series go when its last client ends: one
	// that changes its URL has two for a moment.
	mu      sync.Mutex
	running map[string]int
}

const labelCluster = "workspace_cluster"

// NewMetrics registers the metrics.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	name := func(name string) string { return "trestle_upstream_" + name }
	gauge := func(n, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name(n), Help: help}, []string{labelCluster})
	}
	counter := func(n, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, []string{labelCluster, label})
	}
	m := &Metrics{
		reconnects:   counter("reconnects_total", "Subscriptions that ended, by reason.", "reason"),
		up:           gauge("stream_up", "1 while a subscription is open."),
		lastHeard:    gauge("last_heard_timestamp_seconds", "When the stream last brought a message."),
		lastSnapshot: gauge("last_snapshot_timestamp_seconds", "When the last complete snapshot began."),
		snapshots:    counter("snapshots_total", "Snapshots, by outcome (success, failure).", "outcome"),
		snapshotSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name("snapshot_duration_seconds"), Help: "How long complete snapshots took to read and offer.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		snapshotBytes:   gauge("snapshot_bytes", "Size of the last complete snapshot."),
		snapshotEntries: gauge("snapshot_instances", "Instances in the last complete snapshot."),
		invalid:         counter("invalid_updates_total", "Statuses that cannot be used, by reason.", "reason"),
		running:         map[string]int{},
	}
	m.deletableByLabel = append(m.deletableByLabel, m.reconnects, m.up, m.lastHeard, m.lastSnapshot,
		m.snapshots, m.snapshotBytes, m.snapshotEntries, m.invalid)
	for _, c := range []prometheus.Collector{
		m.reconnects, m.up, m.lastHeard, m.lastSnapshot, m.snapshots,
		m.snapshotSeconds, m.snapshotBytes, m.snapshotEntries, m.invalid,
	} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register upstream metrics: %w", err)
		}
	}
	return m, nil
}

// clusterMetrics are those of one cluster, looked up once.
type clusterMetrics struct {
	all                                         *Metrics
	cluster                                     string
	up, lastHeard, lastSnapshot, bytes, entries prometheus.Gauge
	snapshotSuccess, snapshotFailure            prometheus.Counter
}

// begin makes the series of a cluster. Every begin is followed by one end.
func (m *Metrics) begin(cluster string) *clusterMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running[cluster]++
	for _, r := range status.Reasons() {
		m.invalid.WithLabelValues(cluster, string(r))
	}
	return &clusterMetrics{
		all: m, cluster: cluster,
		up:              m.up.WithLabelValues(cluster),
		lastHeard:       m.lastHeard.WithLabelValues(cluster),
		lastSnapshot:    m.lastSnapshot.WithLabelValues(cluster),
		bytes:           m.snapshotBytes.WithLabelValues(cluster),
		entries:         m.snapshotEntries.WithLabelValues(cluster),
		snapshotSuccess: m.snapshots.WithLabelValues(cluster, "success"),
		snapshotFailure: m.snapshots.WithLabelValues(cluster, "failure"),
	}
}

func (m *clusterMetrics) end() {
	m.all.mu.Lock()
	defer m.all.mu.Unlock()
	if m.all.running[m.cluster]--; m.all.running[m.cluster] > 0 {
		return
	}
	delete(m.all.running, m.cluster)
	for _, vector := range m.all.deletableByLabel {
		vector.DeletePartialMatch(prometheus.Labels{labelCluster: m.cluster})
	}
}

func (m *clusterMetrics) reconnect(why reason) {
	m.all.reconnects.WithLabelValues(m.cluster, string(why)).Inc()
}

func (m *clusterMetrics) invalid(why status.Reason) {
	m.all.invalid.WithLabelValues(m.cluster, string(why)).Inc()
}

func (m *clusterMetrics) snapshot(began time.Time, read reading) {
	m.snapshotSuccess.Inc()
	m.lastSnapshot.Set(float64(began.UnixMilli()) / 1e3)
	m.all.snapshotSeconds.Observe(time.Since(began).Seconds())
	m.bytes.Set(float64(read.bytes))
	m.entries.Set(float64(read.entries))
}
