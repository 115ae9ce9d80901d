package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/secret"
)

// Cluster is a workspace cluster as it is registered.
type Cluster struct {
	Name, URL string
	// TLS is nil for a cluster that is called in plain text.
	TLS *ClusterTLS
	// State is available, cordoned or draining.
	State           string
	Score, MaxScore int32
	// Govern says whether the bridge has to do with the cluster at all.
	Govern bool
	Region string
	// AdmissionConstraints and WorkspaceClasses are JSON arrays.
	AdmissionConstraints, WorkspaceClasses json.RawMessage
	PreferredClass                         string
	// Broken says why the cluster cannot be called as it is registered; nil
	// if nothing is known against it. One such row hides no other.
	Broken error
}

// ClusterTLS is what proves us and the cluster to each other, each the base64
// of a PEM file.
type ClusterTLS struct{ CA, Certificate, Key secret.String }

const clustersSQL = `
SELECT name, url, tls, state, score, max_score, govern, region, admission_constraints,
    available_workspace_classes, preferred_workspace_class
FROM workspace_cluster
ORDER BY name`

// Clusters gives the registered clusters, governed or not, by name.
func (s *Store) Clusters(ctx context.Context) (clusters []Cluster, err error) {
	defer s.metrics.done("clusters", time.Now(), &err)
	rows, err := s.pool.Query(ctx, clustersSQL)
	if err == nil {
		clusters, err = pgx.CollectRows(rows, scanCluster)
	}
	if err != nil {
		return nil, fmt.Errorf("read the clusters: %w", err)
	}
	return clusters, nil
}

func scanCluster(row pgx.CollectableRow) (Cluster, error) {
	var c Cluster
	var tls []byte
	if err := row.Scan(&c.Name, &c.URL, &tls, &c.State, &c.Score, &c.MaxScore, &c.Govern, &c.Region,
		&c.AdmissionConstraints, &c.WorkspaceClasses, &c.PreferredClass); err != nil {
		return Cluster{}, err
	}
	if tls == nil {
		return c, nil
	}
	var material *struct{ CA, Crt, Key string }
	if err := json.Unmarshal(tls, &material); err != nil {
		// The cause may quote the key.
		c.Broken = fmt.Errorf("the TLS material of cluster %s is no object of texts", c.Name)
	}
	if material != nil {
		c.TLS = &ClusterTLS{CA: secret.New(material.CA), Certificate: secret.New(material.Crt), Key: secret.New(material.Key)}
	}
	return c, nil
}
