package api

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// clusterService holds nothing of what is registered: it may be called by
// any number of clients at once.
type clusterService struct {
	bridge.UnimplementedClusterServiceServer

	registry       Registry
	static         []config.StaticBridge
	allowPlaintext bool
	tryTimeout     time.Duration
	log            *slog.Logger
}

// Register adds a cluster. The name may be that of a static one, which the
// registered one then stands for: so a cluster moves from the configuration to
// the registry without a gap. What is taken is checked twice: before the
// cluster is called, to say more of it and sooner, and by the database.
func (s *clusterService) Register(ctx context.Context, r *bridge.RegisterRequest) (*bridge.RegisterResponse, error) {
	cluster, err := s.registration(r)
	if err != nil {
		return nil, err
	}
	note(ctx,
		"url", cluster.URL, "tls", cluster.TLS != nil, "region", cluster.Region, "state", cluster.State, "score", cluster.Score,
		"constraints", string(cluster.AdmissionConstraints), "static_too", s.isStatic(cluster.Name))
	registered, err := s.registry.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.free(cluster, registered); err != nil {
		return nil, err
	}
	classes, err := s.try(ctx, cluster)
	if err != nil {
		return nil, err
	}
	cluster.WorkspaceClasses, cluster.PreferredClass = classes.Available, classes.Preferred
	if err := s.registry.RegisterCluster(ctx, cluster); err != nil {
		return nil, err
	}
	return &bridge.RegisterResponse{}, nil
}

func (s *clusterService) free(cluster store.Cluster, registered []store.Cluster) error {
	named := make(map[string]bool)
	for _, other := range registered {
		named[other.Name] = true
		if other.Name == cluster.Name {
			return &takenError{fmt.Sprintf("a cluster of the name %s is registered already, at %s; choose another name, or deregister that one", other.Name, other.URL)}
		}
		if other.URL == cluster.URL {
			return urlTaken(other.Name, other.URL)
		}
	}
	for _, static := range s.static {
		if static.URL == cluster.URL && static.Name != cluster.Name && !named[static.Name] {
			// Under two names each would hold the other's instances for
			// foreign.
			return urlTaken(static.Name+" of the configuration", static.URL)
		}
	}
	return nil
}

func urlTaken(name, url string) error {
	return &takenError{fmt.Sprintf("the URL %s is taken by cluster %s; a cluster has one name", url, name)}
}

// try calls the cluster, as it would be called from now on.
func (s *clusterService) try(ctx context.Context, cluster store.Cluster) (store.Classes, error) {
	to := upstream.Cluster{Name: cluster.Name, URL: cluster.URL}
	if cluster.TLS != nil {
		var err error
		if to.TLS, err = decodeTLS(cluster.TLS); err != nil {
			return store.Classes{}, err
		}
	}
	client, err := upstream.New(upstream.Config{Cluster: to})
	if err != nil {
		// The rest has been looked at.
		return store.Classes{}, invalid("url", "%v; give a gRPC target: host:port, or with a scheme such as dns:///host:port", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.tryTimeout)
	defer cancel()
	described, err := client.Describe(ctx)
	if err != nil && overdue(ctx) {
		// Whatever it was that ended the call in the end.
		err = context.DeadlineExceeded
	}
	if err != nil {
		return store.Classes{}, &unreachableError{cluster.URL, err}
	}
	classes, err := store.ClassesOf(described)
	if err != nil {
		return store.Classes{}, &unreachableError{cluster.URL, err}
	}
	return classes, nil
}

// Update sets one property of a registered cluster.
func (s *clusterService) Update(ctx context.Context, r *bridge.UpdateRequest) (*bridge.UpdateResponse, error) {
	registered, err := s.registry.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(registered, func(c store.Cluster) bool { return c.Name == r.GetName() })
	if at < 0 {
		return nil, store.ErrUnknownCluster
	}
	change, what, err := changeOf(r)
	if err != nil {
		return nil, err
	}
	if change.TLS != nil {
		tried := registered[at]
		tried.TLS = change.TLS
		if _, err := s.try(ctx, tried); err != nil {
			return nil, err
		}
		change.TriedAt = tried.URL
	}
	note(ctx, what...)
	if err := s.registry.UpdateCluster(ctx, r.GetName(), change); err != nil {
		return nil, err
	}
	return &bridge.UpdateResponse{}, nil
}

// Deregister removes a cluster.
func (s *clusterService) Deregister(ctx context.Context, r *bridge.DeregisterRequest) (*bridge.DeregisterResponse, error) {
	if len(r.GetName()) > maxNameBytes || strings.ContainsRune(r.GetName(), 0) {
		return nil, store.ErrUnknownCluster // no row can have it
	}
	note(ctx, "force", r.GetForce(), "static_too", s.isStatic(r.GetName()))
	if err := s.registry.DeregisterCluster(ctx, r.GetName(), r.GetForce()); err != nil {
		return nil, err
	}
	return &bridge.DeregisterResponse{}, nil
}

// List gives the registered clusters, then the static ones that none of them
// stands for, each by name.
func (s *clusterService) List(ctx context.Context, _ *bridge.ListRequest) (*bridge.ListResponse, error) {
	registered, err := s.registry.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	response := &bridge.ListResponse{}
	byName := func(a, b *bridge.ClusterStatus) int { return cmp.Compare(a.GetName(), b.GetName()) }
	named := make(map[string]bool)
	for _, c := range registered {
		named[c.Name] = true
		response.Status = append(response.Status, &bridge.ClusterStatus{
			Name: c.Name, Url: c.URL, State: stateOf(c.State), Score: c.Score, MaxScore: c.MaxScore, Governed: c.Govern, Region: c.Region,
			AdmissionConstraint: s.constraints(c.Name, c.AdmissionConstraints),
		})
	}
	// The database has an order of its own.
	slices.SortFunc(response.Status, byName)
	var static []*bridge.ClusterStatus
	for _, c := range s.static {
		if named[c.Name] {
			continue
		}
		static = append(static, &bridge.ClusterStatus{
			Name: c.Name, Url: c.URL, State: stateOf(c.State), Score: int32(c.Score), MaxScore: int32(c.MaxScore), Governed: c.Govern, Region: c.Region,
			AdmissionConstraint: s.constraints(c.Name, c.AdmissionConstraints), Static: true,
		})
	}
	slices.SortFunc(static, byName)
	response.Status = append(response.Status, static...)
	return response, nil
}

func stateOf(state string) bridge.ClusterState {
	switch state {
	case stateAvailable:
		return bridge.ClusterState_AVAILABLE
	case stateCordoned:
		return bridge.ClusterState_CORDONED
	case "draining":
		return bridge.ClusterState_DRAINING
	}
	return bridge.ClusterState_UNKNOWN
}

func (s *clusterService) constraints(cluster string, encoded []byte) []*bridge.AdmissionConstraint {
	constraints, err := decodeConstraints(encoded)
	if err != nil {
		s.log.Warn("not all admission constraints of a cluster can be shown", "cluster", cluster, "error", err)
	}
	return constraints
}

func (s *clusterService) isStatic(name string) bool {
	return slices.ContainsFunc(s.static, func(c config.StaticBridge) bool { return c.Name == name })
}

// decodeTLS gives the PEM of what is kept as base64.
func decodeTLS(t *store.ClusterTLS) (*upstream.TLS, error) {
	out := &upstream.TLS{}
	for _, part := range []struct {
		field string
		from  secret.String
		to    *secret.String
	}{
		{"tls.ca", t.CA, &out.CA}, {"tls.crt", t.Certificate, &out.Cert}, {"tls.key", t.Key, &out.Key},
	} {
		pem, err := decodePEM(part.field, part.from.Reveal())
		if err != nil {
			return nil, err
		}
		*part.to = secret.New(pem)
	}
	return out, nil
}
