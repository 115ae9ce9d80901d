package scenario

import (
	"fmt"
	"strconv"
	"strings"
)

// A Target is whom a fault strikes, in words: the zero value is nobody in
// particular.
type Target struct {
	Kind TargetKind
	// Name is of NamedReplica; Cluster, from 0, of OwnerOf and OneCluster.
	Name    string
	Cluster int
}

// TargetKind says how a target is chosen.
type TargetKind string

// The kinds of targets.
const (
	Nobody TargetKind = ""
	// Leader leads; Owner carries something, and does not lead if there is
	// another; OwnerOf carries a cluster; AnyReplica is drawn; AllReplicas is
	// each that lives.
	Leader       TargetKind = "leader"
	Owner        TargetKind = "owner"
	OwnerOf      TargetKind = "owner of cluster"
	AnyReplica   TargetKind = "any"
	AllReplicas  TargetKind = "all"
	NamedReplica TargetKind = "replica"
	// Postgres, Redis and Etcd are the servers, or the connections to them.
	Postgres TargetKind = "postgres"
	Redis    TargetKind = "redis"
	Etcd     TargetKind = "etcd"
	// AllClusters and OneCluster are the simulated ones, or the connections to
	// them.
	AllClusters TargetKind = "clusters"
	OneCluster  TargetKind = "cluster"
)

// String is the target as a scenario writes it.
func (t Target) String() string {
	switch t.Kind {
	case OwnerOf, OneCluster:
		return fmt.Sprintf("%s %d", t.Kind, t.Cluster)
	case NamedReplica:
		return t.Name
	default:
		return string(t.Kind)
	}
}

// parseTarget reads a target; ok is false if there is no such.
func parseTarget(text string) (t Target, ok bool) {
	switch kind := TargetKind(text); kind {
	case Leader, Owner, AnyReplica, AllReplicas, Postgres, Redis, Etcd, AllClusters:
		return Target{Kind: kind}, true
	}
	for _, kind := range []TargetKind{OwnerOf, OneCluster} {
		if number, found := strings.CutPrefix(text, string(kind)+" "); found {
			n, err := strconv.Atoi(number)
			return Target{Kind: kind, Cluster: n}, err == nil && n >= 0
		}
	}
	if number, found := strings.CutPrefix(text, "replica-"); found {
		n, err := strconv.Atoi(number)
		return Target{Kind: NamedReplica, Name: text}, err == nil && n > 0
	}
	return Target{}, false
}
