package stage

import (
	"strings"
	"testing"

	"github.com/trestle-bridge/trestle/loadtest/scenario"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

func TestTargetsAreChosen(t *testing.T) {
	live := trestlev1.ReplicaState_REPLICA_STATE_LIVE
	replicas := []*trestlev1.Replica{
		{Name: "gone", State: trestlev1.ReplicaState_REPLICA_STATE_GONE, Shards: 99},
		{Name: "replica-1", State: live, Leads: true, Shards: 9},
		{Name: "replica-2", State: live, Shards: 3},
		{Name: "replica-3", State: live, Shards: 5},
		{Name: "replica-4", State: live},
	}
	for _, c := range []struct {
		target scenario.Target
		draw   float64
		want   string
	}{
		{scenario.Target{Kind: scenario.Leader}, 0, "replica-1"},
		{scenario.Target{Kind: scenario.Owner}, 0, "replica-3"},
		{scenario.Target{Kind: scenario.AnyReplica}, 0, "replica-1"},
		{scenario.Target{Kind: scenario.AnyReplica}, 0.99, "replica-4"},
		{scenario.Target{Kind: scenario.NamedReplica, Name: "replica-2"}, 0, "replica-2"},
		{scenario.Target{Kind: scenario.NamedReplica, Name: "replica-9"}, 0, ""},
	} {
		if got := choose(replicas, c.target, c.draw); got != c.want {
			t.Errorf("%v is %q, want %q", c.target, got, c.want)
		}
	}
	if got := choose(replicas[:2], scenario.Target{Kind: scenario.Owner}, 0); got != "replica-1" {
		t.Errorf("the only owner, who leads, is %q", got)
	}
}

func TestCarried(t *testing.T) {
	shard := func(phase trestlev1.ShardPhase, observed int64) *trestlev1.Shard {
		return &trestlev1.Shard{Phase: phase, EpochIntended: 2, EpochObserved: observed, Owner: &trestlev1.ReplicaRef{Incarnation: "a.1"}}
	}
	owned, raise := trestlev1.ShardPhase_SHARD_PHASE_OWNED, trestlev1.ShardPhase_SHARD_PHASE_RAISE
	for name, c := range map[string]struct {
		shards []*trestlev1.Shard
		but    string
		want   bool
	}{
		"none":            {nil, "", false},
		"all":             {[]*trestlev1.Shard{shard(owned, 2), shard(owned, 2)}, "b.1", true},
		"by the dead one": {[]*trestlev1.Shard{shard(owned, 2)}, "a.1", false},
		"on the way":      {[]*trestlev1.Shard{shard(owned, 2), shard(raise, 2)}, "", false},
		"not held yet":    {[]*trestlev1.Shard{shard(owned, 1)}, "", false},
	} {
		if got := carried(c.shards, c.but); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWhatAnInstallationCannotSuffer(t *testing.T) {
	for _, name := range scenario.Names() {
		s, err := scenario.Builtin(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range s.Faults {
			err := OnInstallation(&f)
			switch f.Target.Kind {
			case scenario.AllClusters, scenario.OneCluster:
				if err != nil {
					t.Errorf("%s of %v is refused: %v", f.Do, f.Target, err)
				}
			case scenario.Postgres, scenario.Redis, scenario.Etcd:
				if err == nil {
					t.Errorf("%s of %v is taken", f.Do, f.Target)
				}
			default:
				if (err == nil) != (f.Do == "drain") {
					t.Errorf("%s of %v: %v", f.Do, f.Target, err)
				}
			}
		}
	}
}

func TestPrefixes(t *testing.T) {
	for prefix, ok := range map[string]bool{"lt": true, "load-test-2": true, "": false, "Lt": false, "l_t": false, "lt-": false, "%": false, strings.Repeat("a", 41): false} {
		if err := CheckPrefix(prefix); (err == nil) != ok {
			t.Errorf("%q: %v", prefix, err)
		}
	}
	rows := Rows{Prefix: "lt"}
	for name, ours := range map[string]bool{"lt-000": true, "lt-1234": true, "lt-elsewhere": true, "lt": false, "lt-": false, "lt-00": false, "lt-eu-000": false, "ltx-000": false, "other": false} {
		if rows.ours(name) != ours {
			t.Errorf("%q is taken for ours: %v", name, !ours)
		}
	}
}

func TestPlacesOfMetrics(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.7:9500":                       "10.0.0.7:9500 http://10.0.0.7:9500/metrics",
		"replica-1=10.0.0.7:9500":             "replica-1 http://10.0.0.7:9500/metrics",
		"a=https://metrics.example.com/a/all": "a https://metrics.example.com/a/all",
		"=x:1":                                "",
		"a=":                                  "",
	} {
		r, err := metricsOf(text)
		if got := r.Name + " " + r.Metrics; want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
}
