package app

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
)

// attemptTimeout bounds a call to a database that may have gone silent.
const attemptTimeout = 20 * time.Second

// retryPause is the time between two attempts to take a cluster over, or to
// write what one that is left has said, after one that failed for another
// reason than an outage.
const retryPause = 2 * time.Second

type fleetConfig struct {
	Config   config.Config
	Store    *store.Store
	Pipeline *pipeline.Pipeline
	Budget   *upstream.Budget
	Upstream *upstream.Metrics
	Metrics  *metrics
	Traced   bool
	Logger   *slog.Logger
}

// fleet keeps one member for each cluster that exists: the rows of
// workspace_cluster and the static ones of the configuration, of which a row
// wins over a static one of its name.
type fleet struct {
	cfg fleetConfig

	// mu guards what follows.
	mu      sync.Mutex
	members map[string]*member
	// exist names the clusters that exist, those that cannot be heard
	// included; nil until they have been read.
	exist []string
	// known says that the clusters have been read at least once.
	known bool

	// broken are the registrations that cannot be used, and why, so that each
	// is said once. It is the business of run alone.
	broken map[string]string

	// changed wakes run when the clusters may have changed. Size 1: several
	// changes are one look.
	changed chan struct{}
	// leaving is the members that are being left.
	leaving sync.WaitGroup
}

func newFleet(cfg fleetConfig) *fleet {
	return &fleet{
		cfg:     cfg,
		members: make(map[string]*member),
		broken:  make(map[string]string),
		changed: make(chan struct{}, 1),
	}
}

// look makes run look at once which clusters there are.
func (f *fleet) look() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// run hears all clusters, and looks for new ones, until ctx ends and every
// stream has been left. What was heard may still be unwritten then: see drain.
func (f *fleet) run(ctx context.Context) {
	for {
		pause := f.cfg.Config.ClusterReconcileInterval
		if err := f.reconcile(ctx); err != nil && ctx.Err() == nil {
			f.cfg.Logger.Warn("the workspace clusters could not be read from the database; those known are heard on", "error", err)
			pause = min(pause, time.Second)
		}
		select {
		case <-time.After(pause*9/10 + rand.N(pause/5)):
		case <-f.changed:
		case <-ctx.Done():
			for _, m := range f.snapshot() {
				m.stopHearing()
			}
			f.leaving.Wait()
			return
		}
	}
}

// drain writes out and publishes what all clusters were heard to say. If ctx
// ends before, the error says what is left.
func (f *fleet) drain(ctx context.Context) error {
	members := f.snapshot()
	errs := make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() { errs[i] = m.drain(ctx) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// reconcile starts and leaves members, so that they become those that should
// be. It waits for nobody: a cluster whose address or TLS has changed is heard
// again by the look that follows when it has been left.
func (f *fleet) reconcile(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	rows, err := f.cfg.Store.Clusters(attempt)
	cancel()
	read := err == nil
	if err != nil {
		if f.isKnown() {
			return err
		}
		// Until the database is reached, the static ones are all we know of.
		rows = nil
	}
	wanted := make(map[string]upstream.Cluster)
	gauges := make([]store.Cluster, 0, len(rows))
	exist := make([]string, 0, len(rows))
	unusable := make(map[string]bool)
	for _, static := range f.cfg.Config.StaticBridges {
		if !slices.ContainsFunc(rows, func(row store.Cluster) bool { return row.Name == static.Name }) {
			if static.Govern {
				wanted[static.Name] = staticCluster(static)
				exist = append(exist, static.Name)
			}
			gauges = append(gauges, store.Cluster{Name: static.Name, Score: int32(static.Score), State: static.State})
		}
	}
	for _, row := range rows {
		gauges = append(gauges, row)
		if !row.Govern {
			continue
		}
		exist = append(exist, row.Name)
		cluster, broken := registeredCluster(row)
		f.complain(row.Name, broken)
		if broken != nil {
			unusable[row.Name] = true
			continue
		}
		wanted[row.Name] = cluster
	}
	f.cfg.Metrics.clusters(gauges)

	for _, m := range f.snapshot() {
		if unusable[m.cluster.Name] {
			continue // heard on as it was registered before
		}
		want, still := wanted[m.cluster.Name]
		delete(wanted, m.cluster.Name)
		if m.left || still && m.cluster.URL == want.URL && m.cluster.TLS.Equal(want.TLS) {
			continue
		}
		// A change of address or TLS is a new member, too: what the old one
		// has heard is written before.
		f.cfg.Logger.Info("leaving a cluster", "cluster", m.cluster.Name, "changed", still)
		m.left = true
		f.leaving.Go(func() { f.leave(ctx, m) })
	}
	for name, cluster := range wanted {
		m, startErr := f.start(ctx, cluster)
		if startErr != nil {
			f.cfg.Logger.Error("a cluster cannot be heard", "cluster", name, "error", startErr)
			err = errors.Join(err, startErr)
			continue
		}
		f.mu.Lock()
		f.members[name] = m
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if read {
		f.exist = exist
	}
	f.known = f.known || read
	return err
}

// leave stops hearing a cluster and forgets it when all that it has said is
// written and published. If ctx ends before, the member stays, with what waits
// in it, for the drain of the shutdown.
func (f *fleet) leave(ctx context.Context, m *member) {
	m.stopHearing()
	for {
		err := m.intake.Drain(ctx)
		if err != nil && !m.owned && ctx.Err() == nil {
			// It is left, and could not be taken over so far.
			if err = f.takeOver(ctx, m); err == nil {
				m.owned = true
				err = m.intake.Drain(ctx)
			}
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Error("a cluster cannot be left yet: what it has said is not written", "error", err)
		select {
		case <-time.After(retryPause*3/4 + rand.N(retryPause/2)):
		case <-ctx.Done():
			return
		}
	}
	m.intake.Close()
	f.mu.Lock()
	delete(f.members, m.cluster.Name)
	f.mu.Unlock()
	f.look()
}

// complain says that a registration cannot be used, once for each reason.
func (f *fleet) complain(cluster string, broken error) {
	if broken == nil {
		delete(f.broken, cluster)
		return
	}
	if f.broken[cluster] != broken.Error() {
		f.broken[cluster] = broken.Error()
		f.cfg.Logger.Error("a cluster cannot be heard as it is registered", "cluster", cluster, "error", broken)
	}
}

func (f *fleet) snapshot() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*member, 0, len(f.members))
	for _, m := range f.members {
		out = append(out, m)
	}
	return out
}

func (f *fleet) isKnown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

// member is one cluster that is heard.
type member struct {
	cluster upstream.Cluster
	intake  *pipeline.Intake
	client  *upstream.Client
	log     *slog.Logger

	cancel context.CancelFunc
	// heard is closed when the stream has been left and nothing comes in any
	// more.
	heard chan struct{}
	// owned says that the cluster was taken over. It is written before heard
	// is closed, and read after.
	owned bool
	// left says that the member is being left. It is the business of
	// reconcile alone.
	left bool
}

// start begins to hear a cluster. What it says waits in the pipeline until the
// fence is raised, which is tried until the database answers.
func (f *fleet) start(ctx context.Context, cluster upstream.Cluster) (*member, error) {
	id := shard.Whole(cluster.Name)
	intake, err := f.cfg.Pipeline.Open(id)
	if err != nil {
		return nil, err
	}
	log := f.cfg.Logger.With("cluster", cluster.Name)
	client, err := upstream.New(upstream.Config{
		Cluster:          cluster,
		Sink:             intake,
		Logger:           f.cfg.Logger, // the client adds the cluster
		Metrics:          f.cfg.Upstream,
		MaxUpdateBytes:   int(f.cfg.Config.Upstream.MaxUpdateBytes),
		MaxSnapshotBytes: int64(f.cfg.Config.Upstream.MaxSnapshotBytes),
		Timing:           upstream.Timing{Every: f.cfg.Config.Upstream.SnapshotInterval},
		Budget:           f.cfg.Budget,
		Trace:            f.cfg.Traced,
	})
	if err != nil {
		intake.Close()
		return nil, err
	}
	hearing, cancel := context.WithCancel(ctx)
	m := &member{cluster: cluster, intake: intake, client: client, log: log, cancel: cancel, heard: make(chan struct{})}
	go func() {
		defer close(m.heard)
		var parts sync.WaitGroup
		parts.Go(func() { f.own(ctx, hearing, m) })
		if err := client.Run(hearing); err != nil && hearing.Err() == nil {
			log.Error("the cluster is heard no more", "error", err)
		}
		parts.Wait()
	}()
	return m, nil
}

// own takes the cluster over and begins to write; afterwards it leaves the
// cluster if another replica takes it over. It returns when hearing ends.
//
// An attempt that is under way is ended by ctx alone: a fence whose raising was
// broken off may be raised all the same, later than that of the next member,
// which would take itself for replaced.
func (f *fleet) own(ctx, hearing context.Context, m *member) {
	for {
		err := f.takeOver(ctx, m)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Error("the cluster cannot be taken over; it is tried again", "error", err)
		select {
		case <-time.After(retryPause*3/4 + rand.N(retryPause/2)):
		case <-hearing.Done():
			return
		}
	}
	m.owned = true
	select {
	case <-m.intake.Fenced():
		m.log.Error("another replica has taken the cluster over; this one leaves it")
		m.cancel()
	case <-hearing.Done():
	}
}

// takeOver raises the shard's fence, as soon as the database can be reached.
func (f *fleet) takeOver(ctx context.Context, m *member) error {
	id := m.intake.Shard()
	return untilReached(ctx, m.log, "take over the cluster", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		poison, err := f.cfg.Store.Quarantined(ctx, id.Cluster)
		if err != nil {
			return err
		}
		m.intake.Remember(poison)
		fence, err := f.cfg.Store.Raise(ctx, id, f.cfg.Pipeline.Owner(), 0)
		if err != nil {
			return err
		}
		return m.intake.Own(fence)
	})
}

// stopHearing leaves the stream and waits until nothing comes in any more.
func (m *member) stopHearing() {
	m.cancel()
	<-m.heard
}

// drain writes out and publishes what was heard, and forgets the cluster.
func (m *member) drain(ctx context.Context) error {
	defer m.intake.Close()
	return m.intake.Drain(ctx)
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
