package term

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/shard"
)

// Metrics are the leader's; on other replicas the gauges are 0.
type Metrics struct {
	Moves          *prometheus.CounterVec
	Aborted        *prometheus.CounterVec
	Phases         *prometheus.HistogramVec
	Unowned        prometheus.Gauge
	UnownedSeconds prometheus.Gauge
	LoadRatio      prometheus.Gauge
	Overloaded     prometheus.Gauge
	Unplaced       prometheus.Gauge
	Braked         prometheus.Gauge
	PlanSeconds    prometheus.Histogram
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "trestle_" + name, Help: help})
	}
	m := &Metrics{
		Moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_shard_moves_total", Help: "Moves of shards begun, by reason. Counted by the leader."}, []string{"reason"}),
		Aborted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_handovers_aborted_total", Help: "Hand-overs given up, by why. Counted by the leader."}, []string{"why"}),
		Phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "trestle_handover_phase_seconds", Help: "How long each phase of a hand-over took.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14)}, []string{"phase"}),
		Unowned:        gauge("shards_unowned", "Shards that nobody writes. Seen by the leader."),
		UnownedSeconds: gauge("shards_unowned_seconds", "How long the longest of them has had no owner."),
		LoadRatio:      gauge("load_max_over_mean", "Load of the most loaded replica over the mean. Seen by the leader."),
		Overloaded:     gauge("replicas_overloaded", "Replicas above their cap. Seen by the leader."),
		Unplaced:       gauge("shards_unplaced", "Shards that the last plan left without an owner."),
		Braked:         gauge("brake", "1 while nothing moves after the loss of many replicas."),
		PlanSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trestle_plan_seconds", Help: "How long a plan took to make.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12)}),
	}
	for _, reason := range shard.Reasons() {
		m.Moves.WithLabelValues(string(reason))
	}
	for _, c := range []prometheus.Collector{
		m.Moves, m.Aborted, m.Phases, m.Unowned, m.UnownedSeconds, m.LoadRatio, m.Overloaded, m.Unplaced, m.Braked, m.PlanSeconds,
	} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the leader's metrics: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) reset() {
	for _, g := range []prometheus.Gauge{m.Unowned, m.UnownedSeconds, m.LoadRatio, m.Overloaded, m.Unplaced, m.Braked} {
		g.Set(0)
	}
}

func (m *Metrics) planned(took time.Duration, p shard.Plan) {
	m.PlanSeconds.Observe(took.Seconds())
	m.LoadRatio.Set(p.After.Ratio())
	m.Overloaded.Set(float64(len(p.Overloaded)))
	m.Unplaced.Set(float64(len(p.Unplaced)))
	m.Braked.Set(0)
	if p.Brake.Holds() {
		m.Braked.Set(1)
	}
}

// outcomes counts what a stored draft has ended.
func (m *Metrics) outcomes(d *draft, now time.Time) {
	for _, o := range d.outcomes {
		if o.Aborted != "" {
			m.Aborted.WithLabelValues(string(o.Aborted)).Inc()
		}
		switch o.Left {
		case shard.PhasePrepare, shard.PhaseRelease, shard.PhaseRaise, shard.PhaseUnowned:
			if since := d.entry.value.Since; !since.IsZero() {
				m.Phases.WithLabelValues(string(o.Left)).Observe(now.Sub(since).Seconds())
			}
		}
	}
}
