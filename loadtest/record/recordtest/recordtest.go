// Package recordtest makes up recordings of load tests, for tests of what shows
// them. The same Config makes the same recording.
package recordtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/record"
)

// Config says what to make up.
type Config struct {
	Seconds, Replicas, Clusters, Slices int
	// Rate is in updates a second.
	Rate float64
	// Calm has no faults in it.
	Calm bool
	// Failed is a run whose verdict is bad.
	Failed bool
	// Hostile names contain markup.
	Hostile bool
}

// maker holds what the parts of a recording have in common.
type maker struct {
	cfg Config
	rec *record.Recording
	rng *rand.Rand
	// owner and epoch are those of each shard so far.
	owner []int
	epoch []int64
}

// Make makes a recording up: with faults, a replica is killed after three tenths
// of the time, the shards are carried over to others one by one from the middle
// on, and Redis is away for a while near the end.
func Make(cfg Config) *record.Recording {
	m := &maker{cfg: cfg, rng: rand.New(rand.NewPCG(7, uint64(cfg.Seconds))), rec: &record.Recording{
		Format: record.Format, Scenario: "crash-and-upgrade",
		Description: "A replica is killed under a steady load, then the fleet is upgraded, then Redis goes away.",
		Seed:        42, Began: time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC), DurationS: float64(cfg.Seconds),
		Product: "v1.2.3-4-gabcdef0",
		Environment: record.Environment{
			Installation: record.OwnFleet, Machine: "linux/amd64, 8 cores", Cores: 8, MemoryBytes: 32 << 30,
			Parts: []record.Setting{{Name: "PostgreSQL", Value: "17.6"}, {Name: "Redis", Value: "7.4"}, {Name: "etcd", Value: "3.7.3"}},
		},
		Parameters: record.Parameters{
			Shape: "steady", RatePerSecond: cfg.Rate, Clusters: cfg.Clusters, Instances: 20000, Replicas: cfg.Replicas,
			Settings: []record.Setting{{Name: "slices", Value: fmt.Sprint(cfg.Slices)}},
		},
	}}
	if cfg.Hostile {
		m.rec.Scenario = `<script>alert("scenario")</script>`
		m.rec.Description = `</style><img src=x onerror=alert(1)> & "quotes" 'too'`
	}
	if !cfg.Calm {
		m.faults()
	}
	m.shards()
	m.replicas()
	m.seconds()
	m.verdict()
	return m.rec
}

// Replica is the name of a replica by its number.
func (c Config) Replica(n int) string {
	if c.Hostile {
		return fmt.Sprintf(`<b onmouseover="alert(%d)">replica</b>`, n)
	}
	return fmt.Sprintf("trestle-%d", n)
}

func (c Config) cluster(n int) string {
	if c.Hostile {
		return fmt.Sprintf(`</script><svg onload=alert(%d)>`, n)
	}
	return fmt.Sprintf("sim-%03d", n)
}

func (m *maker) at(share float64) float64 { return round(share * m.rec.DurationS) }

func round(v float64) float64 { return math.Round(v*1000) / 1000 }

func (m *maker) faults() {
	recovered := func(at float64) *float64 { at = round(at); return &at }
	kill, upgrade, redis := m.at(0.3), m.at(0.5), m.at(0.85)
	m.rec.Faults = []record.Fault{
		{Name: "kill-replica", Target: m.cfg.Replica(1), FromS: kill, UntilS: kill, RecoveredS: recovered(kill + 0.02*m.rec.DurationS + 0.6), What: "It was killed (SIGKILL) and started again later."},
		{Name: "rolling-upgrade", Target: "all replicas", FromS: upgrade, UntilS: m.at(0.7), RecoveredS: recovered(m.at(0.71)), What: "Each replica was stopped in order and replaced by one of the next revision."},
		{Name: "outage", Target: "Redis", FromS: redis, UntilS: m.at(0.9), What: "Connections to Redis were refused."},
	}
	m.rec.Events = []record.Event{
		{AtS: 0, Kind: "leader", What: m.cfg.Replica(0) + " leads."},
		{AtS: kill, Kind: "ended", What: m.cfg.Replica(1) + " was killed."},
		{AtS: m.at(0.4), Kind: "ready", What: m.cfg.Replica(1) + " is ready for shards."},
		{AtS: m.at(0.55), Kind: "leader", What: m.cfg.Replica(m.cfg.Replicas-1) + " leads."},
	}
}

// shards deals the shards to the replicas, takes those of the killed one away,
// gives it some back, and moves each once during the upgrade.
func (m *maker) shards() {
	slices := max(1, m.cfg.Slices)
	for c := range m.cfg.Clusters {
		for s := range slices {
			m.rec.Shards = append(m.rec.Shards, record.Shard{Cluster: m.cfg.cluster(c), Slice: s, Slices: slices})
		}
	}
	n := len(m.rec.Shards)
	m.owner, m.epoch = make([]int, n), make([]int64, n)
	end := m.rec.DurationS
	for i := range m.rec.Shards {
		m.owner[i], m.epoch[i] = i%m.cfg.Replicas, 1
		start := round(min(0.05+0.002*float64(i), 0.2) * min(end, 10) / 10)
		m.rec.Shards[i].Spans = []record.Span{
			{FromS: 0, UntilS: start}, {Replica: m.cfg.Replica(m.owner[i]), Epoch: 1, FromS: start, UntilS: end},
		}
	}
	if m.cfg.Calm || m.cfg.Replicas < 2 {
		return
	}
	kill := m.at(0.3)
	for i := range m.rec.Shards {
		if m.owner[i] == 1 {
			to := (i/m.cfg.Replicas)%(m.cfg.Replicas-1) + 1
			m.move(i, (1+to)%m.cfg.Replicas, kill, round(1.2+m.rng.Float64()*0.8), record.Crash, "orphan")
		}
	}
	for i := range m.rec.Shards {
		at := m.at(0.5 + 0.2*float64(i)/float64(n))
		m.move(i, (m.owner[i]+1)%m.cfg.Replicas, at, round(0.02+m.rng.Float64()*0.06), record.Planned, "upgrade")
	}
}

// move cuts the last span of a shard off.
func (m *maker) move(i, to int, at, took float64, kind record.MoveKind, reason string) {
	s := &m.rec.Shards[i]
	took = min(took, round(m.rec.DurationS-at))
	m.rec.Moves = append(m.rec.Moves, record.Move{
		AtS: at, TookS: took, Cluster: s.Cluster, Slice: s.Slice, Slices: s.Slices,
		From: m.cfg.Replica(m.owner[i]), To: m.cfg.Replica(to), Kind: kind, Reason: reason,
	})
	s.Spans[len(s.Spans)-1].UntilS = at
	m.owner[i], m.epoch[i] = to, m.epoch[i]+1
	s.Spans = append(s.Spans,
		record.Span{FromS: at, UntilS: round(at + took)},
		record.Span{Replica: m.cfg.Replica(to), Epoch: m.epoch[i], FromS: round(at + took), UntilS: m.rec.DurationS})
}

func (m *maker) replicas() {
	end, kill, back := m.rec.DurationS, m.at(0.3), m.at(0.38)
	share := m.cfg.Rate / float64(m.cfg.Replicas)
	for r := range m.cfg.Replicas {
		p := record.Replica{Name: m.cfg.Replica(r), Lives: []record.Life{{FromS: 0, UntilS: end, Revision: "r1"}}}
		killed := r == 1 && !m.cfg.Calm
		if killed {
			p.Lives = []record.Life{{FromS: 0, UntilS: kill, Revision: "r1", Ended: "killed"}, {FromS: back, UntilS: end, Revision: "r2"}}
		}
		memory := 60e6 + 4e6*float64(r)
		for t := 0.5; t < end; t++ {
			if killed && t >= kill && t < back {
				memory = 40e6
				continue
			}
			memory += (140e6 - memory) * 0.01
			waiting := int64(20 + m.rng.IntN(30))
			if m.disturbed(t) {
				waiting *= 12
			}
			owned := 0
			for i := range m.rec.Shards {
				for _, span := range m.rec.Shards[i].Spans {
					if span.Replica == p.Name && span.FromS <= t && t < span.UntilS {
						owned++
					}
				}
			}
			p.Samples = append(p.Samples, record.Sample{
				AtS: t, CPUCores: round(share/9000 + 0.05*m.rng.Float64()), RSSBytes: int64(memory),
				Waiting: waiting, Outbox: waiting / 10, Shards: owned,
				UpdatesPerSecond: round(m.cfg.Rate * float64(owned) / float64(len(m.rec.Shards))),
				Leader:           (r == 0) == (t < m.at(0.55)) && (r == 0 || r == m.cfg.Replicas-1),
			})
		}
		m.rec.Replicas = append(m.rec.Replicas, p)
	}
}

func (m *maker) disturbed(t float64) bool {
	for _, f := range m.rec.Faults {
		if f.Disturbs(int(t)) {
			return true
		}
	}
	return false
}

// latency is made up of one number; the shape is always the same.
func latency(count int64, p50 float64) record.Latency {
	if count == 0 {
		return record.Latency{}
	}
	return record.Latency{
		Count: count, MeanMS: round(p50 * 1.3), P50MS: round(p50), P90MS: round(p50 * 2),
		P99MS: round(p50 * 4.5), P999MS: round(p50 * 9), MaxMS: round(p50 * 14),
	}
}

func (m *maker) seconds() {
	var waiting, published int64
	clusters := make([]record.Cluster, m.cfg.Clusters)
	outage := func(i int) bool {
		return !m.cfg.Calm && float64(i) >= m.at(0.85) && float64(i) < m.at(0.9)
	}
	for i := range m.cfg.Seconds {
		due := int64(m.cfg.Rate)
		s := record.Second{Due: due, Sent: due + int64(m.rng.IntN(5)) - 2, Changes: due * 9 / 10}
		p50 := 1.6 + 0.6*m.rng.Float64()
		switch {
		case outage(i):
			s.Waiting = waiting + s.Changes
		case m.disturbed(float64(i)):
			s.Waiting, p50 = int64(m.cfg.Rate/5), p50*12
		default:
			s.Waiting = int64(m.cfg.Rate/200) + int64(m.rng.IntN(20))
		}
		s.Published = max(0, waiting+s.Changes-s.Waiting)
		s.Waiting = waiting + s.Changes - s.Published
		s.Publishes = s.Published * 19 / 20
		waiting, published = s.Waiting, published+s.Published
		s.Latency = latency(s.Published, p50)
		m.rec.Seconds = append(m.rec.Seconds, s)
		m.rec.Totals.Sent += s.Sent
		m.rec.Totals.Changes += s.Changes
		m.rec.Totals.Publishes += s.Publishes
		for c := range clusters {
			n := int64(m.cfg.Clusters)
			part := record.Second{Sent: s.Sent / n, Changes: s.Changes / n, Published: s.Published / n, Publishes: s.Publishes / n, Waiting: s.Waiting / n}
			part.Latency = latency(part.Published, p50*(0.8+0.4*float64(c)/float64(n)))
			clusters[c].Seconds = append(clusters[c].Seconds, part)
		}
	}
	m.rec.Totals.Published = published + waiting
	m.rec.Totals.Repeats = m.rec.Totals.Sent - m.rec.Totals.Changes
	for c := range clusters {
		clusters[c].Name = m.cfg.cluster(c)
		clusters[c].Latency = latency(published/int64(m.cfg.Clusters), 1.9+0.01*float64(c))
	}
	m.rec.Clusters = clusters
	m.rec.Latency = record.Latencies{All: latency(published, 2.4), Calm: latency(published*7/10, 1.9)}
	if !m.cfg.Calm {
		m.rec.Latency.Disturbed = latency(published*3/10, 22)
	}
}

func (m *maker) verdict() {
	v := &m.rec.Verdict
	v.Instances, v.Exact = 20000, 18200
	v.Expectations = []record.Expectation{
		{What: "longest planned move", Want: "at most 500 ms", Got: "78 ms", Held: true},
		{What: "take-over after a kill", Want: "at most 5 s", Got: "1.97 s", Held: true},
	}
	v.Information = []record.Count{
		{Name: "repeats after a crash", Count: 31, What: "publishes that came again because a replica died"},
		{Name: "subscribers dropped", Count: 2, What: "by a cluster, because their buffer was full; healed by a snapshot"},
	}
	if m.cfg.Failed {
		v.Zeros.Lost, v.Zeros.Doubled = 3, 1
		v.Expectations[0].Got, v.Expectations[0].Held = "812 ms", false
		v.Unsettled = "2 instances wait for a publish"
		for i := range 3 {
			v.AddFinding("lost: instance 00000000-0000-4000-8000-%012d (lifecycle): status_version is 7, want 8", i)
		}
		if m.cfg.Hostile {
			v.AddFinding("%s", `wrong: <script>alert("finding")</script>`)
		}
	}
	v.Judge()
}
