package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

// The values of the label outcome.
const (
	outcomeSkipped = "skipped"
	outcomeError   = "error"
	outcomeSuccess = "success"
)

// metrics are those of a pipeline. The names that begin with gitpod, and
// those without a prefix, are what existing dashboards query.
type metrics struct {
	statusUpdates      *prometheus.CounterVec
	updatesStarted     *prometheus.CounterVec
	updatesCompleted   *prometheus.HistogramVec
	stale              prometheus.Counter
	stalePrebuilds     prometheus.Counter
	prebuildsCompleted *prometheus.CounterVec
	startup            *prometheus.HistogramVec
	firstActivity      *prometheus.HistogramVec

	batchSize      prometheus.Histogram
	commitSeconds  prometheus.Histogram
	heard          *prometheus.CounterVec
	folded         prometheus.Counter
	changes        prometheus.Counter
	failedAttempts prometheus.Counter
	quarantined    prometheus.Counter
	revived        prometheus.Counter
	invalidUpdates *prometheus.CounterVec
	foreign        *prometheus.CounterVec
	fencedWrites   *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, p *Pipeline) *metrics {
	instanceSeconds := prometheus.ExponentialBuckets(2, 2, 10)
	m := &metrics{
		statusUpdates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gitpod_ws_manager_bridge_status_updates_total",
			Help: "Status updates received from workspace clusters.",
		}, []string{"workspace_cluster", "known_instance"}),
		updatesStarted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gitpod_ws_manager_bridge_workspace_instance_update_started_total",
			Help: "Status updates whose processing began, folded ones included.",
		}, []string{"workspace_cluster", "workspace_instance_type"}),
		updatesCompleted: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gitpod_ws_manager_bridge_workspace_instance_update_completed_seconds",
			Help: "Seconds from hearing a status update to its outcome.",
			Buckets: append([]float64{0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03},
				prometheus.ExponentialBuckets(0.05, 2, 8)...),
		}, []string{"workspace_cluster", "workspace_instance_type", "outcome"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gitpod_ws_manager_bridge_stale_status_updates_total",
			Help: "Status updates that were not newer than what is known.",
		}),
		stalePrebuilds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gitpod_ws_manager_bridge_stale_prebuild_events_total",
			Help: "Status updates that were not newer than what their prebuild has.",
		}),
		prebuildsCompleted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gitpod_prebuilds_completed_total",
			Help: "Prebuilds that ended, by the state they ended with.",
		}, []string{"state"}),
		startup: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "workspace_startup_time",
			Help:    "Seconds from an instance's creation to its first RUNNING.",
			Buckets: instanceSeconds,
		}, []string{"neededImageBuild", "region"}),
		firstActivity: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "first_user_activity_time",
			Help:    "Seconds from an instance's first RUNNING to its user's first activity.",
			Buckets: instanceSeconds,
		}, []string{"region"}),

		batchSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trestle_pipeline_batch_instances", Help: "Instances in a committed batch.",
			Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000},
		}),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trestle_pipeline_commit_seconds", Help: "Seconds that a committed batch took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		heard: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_pipeline_heard_total", Help: "Status updates by what became of them before they were decoded: fresh, repeat, stale, unknown.",
		}, []string{"verdict"}),
		folded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_pipeline_folded_updates_total", Help: "Status updates carried by committed changes; over trestle_pipeline_changes_total it is the fold ratio.",
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_pipeline_changes_total", Help: "Changes of instances that were committed.",
		}),
		failedAttempts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_pipeline_failed_attempts_total", Help: "Batches that could not be written for no row's sake and were put back.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_pipeline_quarantined_total", Help: "Changes that the database refused for their own sake.",
		}),
		revived: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trestle_pipeline_revived_instances_total", Help: "Instances that were back after STOPPING or STOPPED.",
		}),
		invalidUpdates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_pipeline_invalid_updates_total", Help: "Status updates that could not be used, by reason.",
		}, []string{"workspace_cluster", "reason"}),
		foreign: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_pipeline_foreign_updates_total", Help: "Status updates of instances that belong to another cluster.",
		}, []string{"workspace_cluster"}),
		fencedWrites: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trestle_pipeline_fenced_writes_total", Help: "Terms of ownership that ended because a write was refused: another owner had raised the fence.",
		}, []string{"workspace_cluster"}),
	}
	registerer.MustRegister(m.statusUpdates, m.updatesStarted, m.updatesCompleted, m.stale, m.stalePrebuilds,
		m.prebuildsCompleted, m.startup, m.firstActivity, m.batchSize, m.commitSeconds, m.heard, m.folded, m.changes,
		m.failedAttempts, m.quarantined, m.revived, m.invalidUpdates, m.foreign, m.fencedWrites, waitingCollector{p})
	return m
}

// batch counts a committed batch.
func (m *metrics) batch(instances int, took time.Duration) {
	m.batchSize.Observe(float64(instances))
	m.commitSeconds.Observe(took.Seconds())
	m.changes.Add(float64(instances))
}

// applied observes what an applied change tells of its instance's life.
func (m *metrics) applied(result store.Result) {
	if result.Started {
		needed := "false"
		if result.NeededImageBuild {
			needed = "true"
		}
		m.startup.WithLabelValues(needed, result.Region).Observe(result.StartedAt.Sub(result.CreatedAt).Seconds())
	}
	if result.FirstActivity && !result.StartedAt.IsZero() {
		m.firstActivity.WithLabelValues(result.Region).Observe(result.FirstActivityAt.Sub(result.StartedAt).Seconds())
	}
}

// kinds orders the kinds of instances for the arrays of intakeMetrics.
var kinds = [...]status.Kind{status.KindRegular, status.KindPrebuild, status.KindImageBuild}

// kind is an index into them. What is not decoded yet is taken for regular, as
// most are.
type kind uint8

func kindOf(name status.Kind) kind {
	for i := range kinds {
		if kinds[i] == name {
			return kind(i)
		}
	}
	return 0
}

// intakeMetrics are the series of one cluster, looked up once: at full speed
// the look-ups would cost more than the dedup.
type intakeMetrics struct {
	m                           *metrics
	cluster                     string
	knownTrue, knownFalse       prometheus.Counter
	startedBy                   [len(kinds)]prometheus.Counter
	skippedBy, errorBy, success [len(kinds)]prometheus.Observer
	byVerdict                   [verdictUnknown + 1]prometheus.Counter
	foreign, fencedWrites       prometheus.Counter
}

func (m *metrics) intake(cluster string) *intakeMetrics {
	in := &intakeMetrics{
		m:            m,
		cluster:      cluster,
		knownTrue:    m.statusUpdates.WithLabelValues(cluster, "true"),
		knownFalse:   m.statusUpdates.WithLabelValues(cluster, "false"),
		foreign:      m.foreign.WithLabelValues(cluster),
		fencedWrites: m.fencedWrites.WithLabelValues(cluster),
	}
	for i, kind := range kinds {
		in.startedBy[i] = m.updatesStarted.WithLabelValues(cluster, string(kind))
		in.skippedBy[i] = m.updatesCompleted.WithLabelValues(cluster, string(kind), outcomeSkipped)
		in.errorBy[i] = m.updatesCompleted.WithLabelValues(cluster, string(kind), outcomeError)
		in.success[i] = m.updatesCompleted.WithLabelValues(cluster, string(kind), outcomeSuccess)
	}
	for v, name := range map[verdict]string{verdictFresh: "fresh", verdictFull: "full", verdictRepeat: "repeat", verdictStale: "stale", verdictUnknown: "unknown"} {
		in.byVerdict[v] = m.heard.WithLabelValues(name)
	}
	return in
}

func (in *intakeMetrics) invalid(err error) {
	reason := "other"
	var invalid *status.InvalidError
	if errors.As(err, &invalid) {
		reason = string(invalid.Reason)
	}
	in.m.invalidUpdates.WithLabelValues(in.cluster, reason).Inc()
}

// started counts an update that is decoded.
func (in *intakeMetrics) started(kind kind) {
	in.byVerdict[verdictFresh].Inc()
	in.startedBy[kind].Inc()
}

// skipped counts an update that never reaches the store.
func (in *intakeMetrics) skipped(v verdict, kind kind, heard time.Time) {
	in.byVerdict[v].Inc()
	if v == verdictStale {
		in.m.stale.Inc()
	}
	in.known(v != verdictUnknown, 1)
	in.startedBy[kind].Inc()
	in.completed(kind, outcomeSkipped, heard)
}

func (in *intakeMetrics) known(known bool, updates int) {
	if known {
		in.knownTrue.Add(float64(updates))
	} else {
		in.knownFalse.Add(float64(updates))
	}
}

func (in *intakeMetrics) completed(kind kind, outcome string, heard time.Time) {
	observers := &in.success
	switch outcome {
	case outcomeSkipped:
		observers = &in.skippedBy
	case outcomeError:
		observers = &in.errorBy
	}
	observers[kind].Observe(time.Since(heard).Seconds())
}

// completedChange counts every update that a change carried. Of the folded
// ones only the first and the last have their times; the others are taken to
// be like the last.
func (in *intakeMetrics) completedChange(change *status.Change, outcome string) {
	in.m.folded.Add(float64(change.Updates))
	kind := kindOf(change.Kind)
	in.completed(kind, outcome, change.FirstAt)
	for range change.Updates - 1 {
		in.completed(kind, outcome, change.LastAt)
	}
}

// failed counts every update of a change that the database has refused.
func (in *intakeMetrics) failed(change *status.Change) {
	in.known(true, change.Updates)
	in.completedChange(change, outcomeError)
}

// waitingCollector gives what waits at the moment of a scrape.
type waitingCollector struct{ p *Pipeline }

var (
	descWaiting = prometheus.NewDesc("trestle_pipeline_waiting_instances",
		"Instances with updates that are not committed.", []string{"workspace_cluster", "shard"}, nil)
	descOldest = prometheus.NewDesc("trestle_pipeline_oldest_waiting_seconds",
		"Age of the oldest update that is not committed: how far the cluster's rows lag behind what was heard.", []string{"workspace_cluster", "shard"}, nil)
	descBehind = prometheus.NewDesc("trestle_pipeline_outbox_behind",
		"1 while a shard's messages are published from the outbox rather than as they are committed.", []string{"workspace_cluster", "shard"}, nil)
)

func (c waitingCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descWaiting
	ch <- descOldest
	ch <- descBehind
}

func (c waitingCollector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	for _, in := range c.p.snapshotIntakes() {
		labels := []string{in.id.Cluster, in.id.String()}
		var lag float64
		if oldest := in.Oldest(); !oldest.IsZero() {
			lag = now.Sub(oldest).Seconds()
		}
		behind := 0.0
		if in.Behind() {
			behind = 1
		}
		ch <- prometheus.MustNewConstMetric(descWaiting, prometheus.GaugeValue, float64(in.Waiting()), labels...)
		ch <- prometheus.MustNewConstMetric(descOldest, prometheus.GaugeValue, lag, labels...)
		ch <- prometheus.MustNewConstMetric(descBehind, prometheus.GaugeValue, behind, labels...)
	}
}

// span records a change whose update brought a trace context.
func (l *lane) span(change *status.Change, in *Intake) {
	if l.p.cfg.Tracer == nil || change.Trace == "" {
		return
	}
	parent := l.p.cfg.Extract(context.Background(), change.Trace)
	_, span := l.p.cfg.Tracer.Start(parent, "write instance status",
		trace.WithTimestamp(change.FirstAt),
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("trestle.cluster", in.id.Cluster),
			attribute.String("trestle.instance", change.ID.String()),
			attribute.Int("trestle.updates", change.Updates),
			attribute.Int("trestle.lane", l.index),
		))
	span.End()
}
