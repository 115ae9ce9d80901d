package sweep

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

// The values of the label outcome of a round.
const (
	outcomeDone = "done"
	// outcomeUnreachable: the cluster could not be asked.
	outcomeUnreachable = "unreachable"
	// outcomeBehind: an owner has not written yet what it has heard.
	outcomeBehind = "behind"
	// outcomeMoving: the shard was changing hands.
	outcomeMoving = "moving"
	// outcomeFailed: the database could not be read or written.
	outcomeFailed = "failed"
)

// metrics of the rounds. The one that begins with gitpod is what existing
// dashboards query.
type metrics struct {
	markedStopped *prometheus.CounterVec
	rounds        *prometheus.CounterVec
	seconds       prometheus.Histogram
	rows          prometheus.Counter
	orphans       prometheus.Counter
	missing       *prometheus.GaugeVec
	held          *prometheus.GaugeVec
	disconnected  *prometheus.GaugeVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	byCluster := []string{"workspace_cluster"}
	m := &metrics{
		markedStopped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gitpod_ws_instances_marked_stopped_total", Help: "Instances stopped by a sweep, by the phase they were in.",
		}, []string{"previous_phase"}),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_sweep_rounds_total", Help: "Rounds of the leader, of clusters and of the installation: done, unreachable, behind, moving, failed.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trestle_sweep_seconds", Help: "Seconds that the round of a cluster took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14),
		}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_sweep_rows_read_total", Help: "Rows that rounds have read.",
		}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_sweep_orphaned_outbox_rows_total", Help: "Rows of the outbox that had no owner and were published by the leader.",
		}),
		missing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "trestle_sweep_missing_instances", Help: "Instances that the cluster did not know when it was last asked, and should have.",
		}, byCluster),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "trestle_sweep_held_instances", Help: "Instances of a cluster that is held back because it misses too many at once; 0 if it is not.",
		}, byCluster),
		disconnected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "trestle_sweep_disconnected_seconds", Help: "Seconds between the cluster's last answer to the leader and the last time it was asked.",
		}, byCluster),
	}
	for _, outcome := range []string{outcomeDone, outcomeUnreachable, outcomeBehind, outcomeMoving, outcomeFailed} {
		m.rounds.WithLabelValues(outcome)
	}
	for _, phase := range phases() {
		m.markedStopped.WithLabelValues(string(phase))
	}
	for _, collector := range []prometheus.Collector{
		m.markedStopped, m.rounds, m.seconds, m.rows, m.orphans, m.missing, m.held, m.disconnected,
	} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register the metrics of sweeps: %w", err)
		}
	}
	return m, nil
}

func phases() []status.Phase {
	return []status.Phase{
		store.PhaseUnknown, store.PhasePreparing, store.PhaseBuilding,
		status.PhasePending, status.PhaseCreating, status.PhaseInitializing, status.PhaseRunning,
		status.PhaseInterrupted, status.PhaseStopping,
	}
}

// stopped is the counter of a phase. A phase that is none of ours counts as
// unknown: others write that column too.
func (m *metrics) stopped(phase status.Phase) prometheus.Counter {
	for _, known := range phases() {
		if phase == known {
			return m.markedStopped.WithLabelValues(string(phase))
		}
	}
	return m.markedStopped.WithLabelValues(string(store.PhaseUnknown))
}

// drop removes what is shown of a cluster.
func (m *metrics) drop(cluster string) {
	for _, gauge := range []*prometheus.GaugeVec{m.missing, m.held, m.disconnected} {
		gauge.DeleteLabelValues(cluster)
	}
}

// reset removes what is shown of all clusters: somebody else leads.
func (m *metrics) reset() {
	for _, gauge := range []*prometheus.GaugeVec{m.missing, m.held, m.disconnected} {
		gauge.Reset()
	}
}
