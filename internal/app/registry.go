package app

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
)

// attemptTimeout bounds a call to a database that may have gone silent.
const attemptTimeout = 20 * time.Second

type registryConfig struct {
	Static   []config.StaticBridge
	Interval time.Duration // between two looks
	Store    *store.Store
	Metrics  *metrics
	// Changed is told where the clusters are that can be heard, after each
	// look, and whether others exist than before; it must not wait.
	Changed func(usable map[string]upstream.Cluster, others bool)
	Logger  *slog.Logger
}

// registry knows which clusters exist: the rows of workspace_cluster and the
// static ones of the configuration, of which a row wins over a static one of
// its name.
type registry struct {
	cfg registryConfig

	// mu guards what follows.
	mu sync.Mutex
	// usable says where the clusters are that can be heard, by name.
	usable map[string]upstream.Cluster
	// exist are the clusters that exist, those that cannot be heard included.
	exist []coordinator.Cluster
	// known says that they have been read at least once.
	known bool

	// broken are the registrations that cannot be used, and why, so that each
	// is said once. It is the business of run alone.
	broken map[string]string

	// changed wakes run when the clusters may have changed. Size 1: several
	// changes are one look.
	changed chan struct{}
}

func newRegistry(cfg registryConfig) *registry {
	cfg.Static = slices.Clone(cfg.Static)
	return &registry{cfg: cfg, broken: make(map[string]string), changed: make(chan struct{}, 1)}
}

// look makes run look at once which clusters there are.
func (r *registry) look() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// run looks which clusters there are until ctx ends.
func (r *registry) run(ctx context.Context) {
	for {
		pause := r.cfg.Interval
		if err := r.reconcile(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Warn("the workspace clusters could not be read from the database; those known stay", "error", err)
			pause = min(pause, time.Second)
		}
		select {
		case <-time.After(pause*9/10 + rand.N(pause/5)):
		case <-r.changed:
		case <-ctx.Done():
			return
		}
	}
}

// reconcile looks once.
func (r *registry) reconcile(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	rows, err := r.cfg.Store.Clusters(attempt)
	cancel()
	if err != nil {
		// Which static ones a row stands for is not known until the rows are.
		return err
	}
	r.mu.Lock()
	before := r.usable
	r.mu.Unlock()
	usable := make(map[string]upstream.Cluster)
	gauges := make([]store.Cluster, 0, len(rows))
	exist := make([]coordinator.Cluster, 0, len(rows))
	for i, static := range r.cfg.Static {
		if slices.ContainsFunc(rows, func(row store.Cluster) bool { return row.Name == static.Name }) {
			continue
		}
		// Its files may have been replaced. It is heard on as before if they
		// cannot be used, which is what a replacement looks like halfway.
		static, broken := static.Reread()
		r.complain(static.Name, broken)
		r.cfg.Static[i] = static
		if static.Govern {
			usable[static.Name] = staticCluster(static)
			exist = append(exist, coordinator.Cluster{Name: static.Name})
		}
		gauges = append(gauges, store.Cluster{Name: static.Name, Score: int32(static.Score), State: static.State})
	}
	for _, row := range rows {
		gauges = append(gauges, row)
		if !row.Govern {
			continue
		}
		exist = append(exist, coordinator.Cluster{Name: row.Name})
		cluster, broken := registeredCluster(row)
		r.complain(row.Name, broken)
		if broken != nil {
			// It is asked and heard on as it was registered before.
			if cluster, was := before[row.Name]; was {
				usable[row.Name] = cluster
			}
			continue
		}
		usable[row.Name] = cluster
	}
	slices.SortFunc(exist, func(a, b coordinator.Cluster) int { return strings.Compare(a.Name, b.Name) })
	r.cfg.Metrics.clusters(gauges)
	r.mu.Lock()
	others := !slices.Equal(r.exist, exist)
	r.usable, r.exist, r.known = usable, exist, true
	r.mu.Unlock()
	r.cfg.Changed(maps.Clone(usable), others)
	return nil
}

// complain says that a registration cannot be used, once for each reason.
func (r *registry) complain(cluster string, broken error) {
	if broken == nil {
		delete(r.broken, cluster)
		return
	}
	if r.broken[cluster] != broken.Error() {
		r.broken[cluster] = broken.Error()
		r.cfg.Logger.Error("a cluster cannot be heard as it is registered", "cluster", cluster, "error", broken)
	}
}

// clusters gives those that exist; false while that is not known.
func (r *registry) clusters() ([]coordinator.Cluster, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exist, r.known
}

// at gives where a cluster is, if that is known.
func (r *registry) at(name string) (upstream.Cluster, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cluster, known := r.usable[name]
	return cluster, known
}

func staticCluster(static config.StaticBridge) upstream.Cluster {
	cluster := upstream.Cluster{Name: static.Name, URL: static.URL}
	if static.TLS != (config.TLSFiles{}) {
		cluster.TLS = &upstream.TLS{
			CA:   secret.New(string(static.Material.CA)),
			Cert: secret.New(string(static.Material.Crt)),
			Key:  static.Material.Key,
		}
	}
	return cluster
}

// registeredCluster decodes what the registry keeps. An error says why it
// cannot be used.
func registeredCluster(row store.Cluster) (upstream.Cluster, error) {
	cluster := upstream.Cluster{Name: row.Name, URL: row.URL}
	if row.Broken != nil {
		return upstream.Cluster{}, row.Broken
	}
	if row.TLS == nil {
		return cluster, usable(cluster)
	}
	cluster.TLS = &upstream.TLS{}
	for _, part := range []struct {
		what string
		from secret.String
		to   *secret.String
	}{
		{"CA", row.TLS.CA, &cluster.TLS.CA},
		{"certificate", row.TLS.Certificate, &cluster.TLS.Cert},
		{"key", row.TLS.Key, &cluster.TLS.Key},
	} {
		pem, err := base64.StdEncoding.DecodeString(part.from.Reveal())
		if err != nil {
			// The error would show a part of what it could not read.
			return upstream.Cluster{}, fmt.Errorf("cluster %s: the TLS %s in workspace_cluster is not base64 of PEM", row.Name, part.what)
		}
		*part.to = secret.New(string(pem))
	}
	return cluster, usable(cluster)
}

// usable says whether a client can be made for a cluster.
func usable(cluster upstream.Cluster) error {
	_, err := upstream.New(upstream.Config{Cluster: cluster})
	return err
}
