package app

import (
	"context"
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/store"
)

// outboxInterval is the time between two looks at the size of the outbox.
const outboxInterval = 10 * time.Second

// metrics are those of the service as a whole.
type metrics struct {
	score        *prometheus.GaugeVec
	cordoned     *prometheus.GaugeVec
	outboxRows   prometheus.Gauge
	outboxOldest prometheus.Gauge
}

func newMetrics(registerer prometheus.Registerer, version, revision string) *metrics {
	m := &metrics{
		score: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gitpod_ws_manager_bridge_cluster_score", Help: "Score of each workspace cluster.",
		}, []string{"workspace_cluster"}),
		cordoned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gitpod_ws_manager_bridge_cluster_cordoned", Help: "1 if the workspace cluster is cordoned.",
		}, []string{"workspace_cluster"}),
		outboxRows: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trestle_outbox_rows", Help: "Rows of the outbox: commits whose messages are not known to be published, of all replicas.",
		}),
		outboxOldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trestle_outbox_oldest_seconds", Help: "Age of the oldest row of the outbox, 0 if it is empty.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "trestle_build_info", Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "go_version": runtime.Version()},
	})
	build.Set(1)
	registerer.MustRegister(m.score, m.cordoned, m.outboxRows, m.outboxOldest, build)
	return m
}

// clusters shows the score and the state of every cluster that exists.
func (m *metrics) clusters(clusters []store.Cluster) {
	m.score.Reset()
	m.cordoned.Reset()
	for _, c := range clusters {
		m.score.WithLabelValues(c.Name).Set(float64(c.Score))
		cordoned := 0.0
		if c.State == "cordoned" {
			cordoned = 1
		}
		m.cordoned.WithLabelValues(c.Name).Set(cordoned)
	}
}

// watchOutbox keeps the gauges of the outbox until ctx ends.
func (m *metrics) watchOutbox(ctx context.Context, db *store.Store, log *slog.Logger) error {
	ticker := time.NewTicker(outboxInterval)
	defer ticker.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, outboxInterval)
		rows, oldest, err := db.OutboxStats(attempt)
		cancel()
		switch {
		case err == nil:
			m.outboxRows.Set(float64(rows))
			age := 0.0
			if !oldest.IsZero() {
				age = max(0, time.Since(oldest).Seconds())
			}
			m.outboxOldest.Set(age)
		case ctx.Err() == nil:
			log.Debug("the outbox could not be measured", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
