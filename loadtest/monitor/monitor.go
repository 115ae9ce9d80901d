// Package monitor watches a service under test and writes into a recording what
// it sees: who owned which shard when, which shards moved and how long that
// took, who led, and what each replica used and had to do.
//
// It knows the service by ShardService and by its metrics alone. A service that
// does not answer is no error: what cannot be seen is left out.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/trestle-bridge/trestle/loadtest/operator"
	"github.com/trestle-bridge/trestle/loadtest/record"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

// Replica is one to take samples of.
type Replica struct {
	Name string
	// Metrics is the URL of its metrics.
	Metrics string
	// Usage, if set, says what its process uses, better than its metrics, which
	// a replica that is held cannot tell.
	Usage func() (cpu time.Duration, memory int64, err error)
}

// Config says what to watch.
type Config struct {
	Operator *operator.Operator
	Recorder *record.Recorder
	// Replicas gives those that live; it is asked every second.
	Replicas func() []Replica
	// Interval between two samples; default 1 s.
	Interval time.Duration
}

// Monitor watches. Its methods may be called at once; Run is called once.
type Monitor struct {
	cfg    Config
	shards *shards
	client http.Client

	// mu guards lost.
	mu sync.Mutex
	// lost is when replicas were lost that did not end in order.
	lost map[string]time.Time
}

// New makes a monitor.
func New(cfg Config) (*Monitor, error) {
	if cfg.Operator == nil || cfg.Recorder == nil || cfg.Replicas == nil {
		return nil, errors.New("a monitor needs an operator, a recorder and replicas")
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	m := &Monitor{cfg: cfg, lost: make(map[string]time.Time), client: http.Client{Timeout: cfg.Interval}}
	m.shards = newShards(cfg.Recorder, m.lostAt)
	return m, nil
}

// Lost says that a replica was lost at a moment, without having let go of its
// shards: it was killed, say.
func (m *Monitor) Lost(replica string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost[replica] = at
}

func (m *Monitor) lostAt(replica string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost[replica]
}

// Run watches until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer m.client.CloseIdleConnections()
	parts.Go(func() {
		m.cfg.Operator.Watch(ctx, func(all bool, shards []*trestlev1.Shard, removed []string) {
			m.shards.heard(time.Now(), all, shards, removed)
		})
	})
	parts.Go(func() { m.watchLeader(ctx) })
	sampled := make(map[string]sample)
	tick := time.NewTicker(m.cfg.Interval)
	defer tick.Stop()
	for {
		m.sample(ctx, sampled)
		m.shards.seen(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watchLeader records who leads, whenever that changes.
func (m *Monitor) watchLeader(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Interval)
	defer tick.Stop()
	leader := ""
	for {
		answer, err := m.cfg.Operator.Replicas(ctx)
		if now := operator.ReplicaName(answer.GetFleet().GetLeader()); err == nil && now != "" && now != leader {
			m.cfg.Recorder.Event(time.Now(), "leader", "%s leads", now)
			leader = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample is what was last seen of a replica's counters.
type sample struct {
	at      time.Time
	cpu     time.Duration
	updates float64
}

// sample takes one of each replica, all at once.
func (m *Monitor) sample(ctx context.Context, last map[string]sample) {
	var mu sync.Mutex // guards last
	var parts sync.WaitGroup
	for _, r := range m.cfg.Replicas() {
		parts.Go(func() {
			now, s, err := m.look(ctx, r)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			before, known := last[r.Name]
			last[r.Name] = now
			// A process that has begun again counts from 0.
			if took := now.at.Sub(before.at).Seconds(); known && took > 0 && now.cpu >= before.cpu {
				s.CPUCores = (now.cpu - before.cpu).Seconds() / took
				s.UpdatesPerSecond = max(0, now.updates-before.updates) / took
			}
			m.cfg.Recorder.Sampled(now.at, r.Name, s)
		})
	}
	parts.Wait()
}

// look reads what a replica says of itself.
func (m *Monitor) look(ctx context.Context, r Replica) (sample, record.Sample, error) {
	now := sample{at: time.Now()}
	var s record.Sample
	families, err := m.families(ctx, r.Metrics)
	if err == nil {
		now.cpu = time.Duration(sum(families["process_cpu_seconds_total"]) * float64(time.Second))
		now.updates = sum(families["gitpod_ws_manager_bridge_workspace_instance_update_started_total"])
		s = record.Sample{
			RSSBytes: int64(sum(families["process_resident_memory_bytes"])),
			Waiting:  int64(sum(families["trestle_pipeline_waiting_instances"])),
			Outbox:   int64(sum(families["trestle_pipeline_outbox_behind"])),
			Shards:   observed(families["trestle_shard_epoch"]),
			Leader:   sum(families["trestle_leader"]) > 0,
		}
	}
	if r.Usage != nil {
		cpu, memory, usageErr := r.Usage()
		if usageErr != nil {
			return now, s, usageErr
		}
		now.cpu, s.RSSBytes = cpu, memory
		return now, s, nil
	}
	return now, s, err
}

func (m *Monitor) families(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	request.Close = true // no connection is left for the service to wait for
	response, err := m.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for metrics: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the metrics of %s: %w", url, err)
	}
	return families, nil
}

// sum adds the series of a metric up.
func sum(family *dto.MetricFamily) (total float64) {
	for _, m := range family.GetMetric() {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return total
}

// observed is how many shards a replica holds the fence of.
func observed(epochs *dto.MetricFamily) (n int) {
	for _, m := range epochs.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "kind" && l.GetValue() == "observed" {
				n++
			}
		}
	}
	return n
}
