package store

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the store. Labels are the names of our own statements.
type metrics struct {
	seconds *prometheus.HistogramVec
	errors  *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, pool, writers *pgxpool.Pool) (*metrics, error) {
	m := &metrics{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "trestle_store_statement_seconds",
			Help:    "Time from sending a statement to its commit, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}, []string{"statement"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_store_errors_total",
			Help: "Statements that failed.",
		}, []string{"statement"}),
	}
	if registerer == nil {
		return m, nil
	}
	connections := func(name, help string, value func(*pgxpool.Stat) int32) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 {
				n := value(pool.Stat())
				if writers != pool {
					n += value(writers.Stat())
				}
				return float64(n)
			})
	}
	for _, collector := range []prometheus.Collector{
		m.seconds, m.errors,
		connections("trestle_store_connections", "Open connections to the database.", (*pgxpool.Stat).TotalConns),
		connections("trestle_store_connections_busy", "Connections to the database in use.", (*pgxpool.Stat).AcquiredConns),
	} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register the metrics of the store: %w", err)
		}
	}
	return m, nil
}

// done records one statement. Use: defer m.done("raise", time.Now(), &err).
func (m *metrics) done(statement string, began time.Time, err *error) {
	m.seconds.WithLabelValues(statement).Observe(time.Since(began).Seconds())
	if *err != nil {
		m.errors.WithLabelValues(statement).Inc()
	}
}
