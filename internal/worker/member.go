package worker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
)

// member is one shard for one term: it hears the shard's cluster, buffers, and
// once it is owned writes.
type member struct {
	w      *Worker
	id     shard.ID
	intake *pipeline.Intake
	log    *slog.Logger

	// synced is closed when a whole snapshot has been heard, dropped when the
	// member has been.
	synced, dropped chan struct{}
	syncedOnce      sync.Once
	// ended is closed when the stream has been left and nothing comes in any
	// more. It is replaced when the stream is taken up again, by who releases
	// and owns, who is one at a time.
	ended chan struct{}

	// mu guards what follows. It may be taken under the worker's.
	mu sync.Mutex
	// cluster is where to hear; without a URL that is not known.
	cluster upstream.Cluster
	// changed is closed and replaced when cluster has changed.
	changed chan struct{}
	client  *upstream.Client
	fence   shard.Fence // zero before it is owned
	stop    context.CancelFunc
	ready   bool // somebody watches whether the stream stays up

	// Of measure, which is called under the worker's lock: what the intake had
	// been offered at the last call, and updates a second, smoothed.
	offered uint64
	rate    float64
}

func newMember(w *Worker, id shard.ID, intake *pipeline.Intake) *member {
	m := &member{
		w: w, id: id, intake: intake,
		log:    w.cfg.Logger.With("cluster", id.Cluster, "shard", id.String()),
		synced: make(chan struct{}), dropped: make(chan struct{}), changed: make(chan struct{}),
		// There is no stream yet.
		stop: func() {}, ended: make(chan struct{}),
	}
	close(m.ended)
	return m
}

func (m *member) owned() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fence != shard.Fence{}
}

// hears says whether the cluster can be heard now.
func (m *member) hears() bool {
	m.mu.Lock()
	client := m.client
	m.mu.Unlock()
	return client != nil && client.State().Connected
}

// deaf says whether it was tried to hear the cluster where it is now, in vain.
func (m *member) deaf() bool {
	m.mu.Lock()
	client, unknown := m.client, m.cluster.URL == ""
	m.mu.Unlock()
	if client == nil {
		return unknown
	}
	state := client.State()
	return !state.Connected && state.Reconnects > 0
}

// ask asks the cluster for a snapshot, if it is heard.
func (m *member) ask() {
	m.mu.Lock()
	client := m.client
	m.mu.Unlock()
	if client != nil {
		client.Ask()
	}
}

// refresh takes a snapshot of the cluster, where it is now, and returns when it
// has been offered.
func (m *member) refresh(ctx context.Context) error {
	m.mu.Lock()
	client, changed, left := m.client, m.changed, m.ended
	m.mu.Unlock()
	if client == nil {
		return upstream.ErrDeaf
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-changed:
		case <-left:
		case <-ctx.Done():
		}
	}()
	return client.Refresh(ctx)
}

// retarget says where the cluster is.
func (m *member) retarget(cluster upstream.Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cluster.URL == cluster.URL && m.cluster.TLS.Equal(cluster.TLS) {
		return
	}
	m.cluster = cluster
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *member) target() (upstream.Cluster, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cluster, m.changed
}

// hear begins to hear the cluster, as a part of Run. The worker's mu is held.
func (m *member) hear(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	m.mu.Lock()
	m.stop, m.ended = stop, ended
	m.mu.Unlock()
	m.w.goroutines.Go(func() {
		defer close(ended)
		defer stop()
		for ctx.Err() == nil {
			m.hearAt(ctx)
		}
	})
}

// hearAt hears the cluster where it is now, until that changes or ctx ends.
func (m *member) hearAt(ctx context.Context) {
	cluster, changed := m.target()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		select {
		case <-changed:
			m.log.Info("the cluster's address or TLS has changed")
			stop()
		case <-ctx.Done():
		}
	})
	if cluster.URL == "" {
		m.log.Warn("the cluster cannot be heard: it is not known where it is, or its registration cannot be used")
		<-ctx.Done()
		return
	}
	cfg := m.w.cfg.Client
	cfg.Cluster, cfg.Sink = cluster, m.intake
	client, err := upstream.New(cfg)
	if err != nil {
		m.log.Error("the cluster cannot be heard", "error", err)
		<-ctx.Done()
		return
	}
	m.mu.Lock()
	m.client = client
	m.mu.Unlock()
	parts.Go(func() {
		select {
		case <-client.Synced():
			m.syncedOnce.Do(func() { close(m.synced) })
		case <-ctx.Done():
		}
	})
	if err := client.Run(ctx); err != nil && ctx.Err() == nil {
		m.log.Error("the cluster is heard no more", "error", err)
		<-ctx.Done()
	}
}

// left is closed when the stream has been left.
func (m *member) left() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

// leave leaves the stream; when it returns nothing comes in any more.
func (m *member) leave() {
	m.mu.Lock()
	stop := m.stop
	m.mu.Unlock()
	stop()
	<-m.left()
}

// watchReady tells, as long as the shard is only prepared, when its stream is
// down: what the cluster says then is not heard.
func (m *member) watchReady() {
	m.mu.Lock()
	watched := m.ready
	m.ready = true
	m.mu.Unlock()
	if watched {
		return
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	// An error means that all ends anyway.
	_ = m.w.start(func(ctx context.Context) {
		tick := time.NewTicker(readyInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-m.dropped:
				return
			case <-ctx.Done():
				return
			}
			if m.owned() {
				return
			}
			if !m.hears() && !m.w.cfg.OwnerDeaf(m.id) {
				m.w.signal(ctx, coordinator.Signal{Shard: m.id})
				return
			}
		}
	})
}

// own begins to write, what was buffered first.
func (m *member) own(fence shard.Fence) error {
	m.mu.Lock()
	m.fence = fence
	m.mu.Unlock()
	seamless := false
	select {
	case <-m.synced:
		seamless = m.w.cfg.HandedOver(m.id)
	default:
	}
	if seamless {
		m.intake.Seamless()
	}
	m.log.Info("the shard is written here", "epoch", fence.Epoch, "seamless", seamless)
	if err := m.intake.Own(fence); err != nil {
		return fmt.Errorf("own %s: %w", m.id, err)
	}
	if m.intake.Partial() {
		m.ask()
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.w.start(func(ctx context.Context) {
		select {
		case <-m.intake.Fenced():
			m.leave()
			m.w.signal(ctx, coordinator.Signal{Shard: m.id, Fenced: true, Epoch: fence.Epoch})
		case <-m.dropped:
		case <-ctx.Done():
		}
	})
}

// resume goes on under the same fence, also after a release that was given up.
// It reports false if it cannot.
func (m *member) resume(fence shard.Fence) bool {
	m.mu.Lock()
	same := m.fence == fence
	m.mu.Unlock()
	if !same || !m.intake.Resume() {
		return false
	}
	select {
	case <-m.left():
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		if m.w.ctx.Err() == nil {
			m.hear(m.w.ctx)
		}
	default:
	}
	return true
}

// drain writes out and publishes.
func (m *member) drain(ctx context.Context) error {
	if err := m.intake.Written(ctx); err != nil {
		return err
	}
	if !m.w.cfg.Succeeded() {
		return m.intake.Drain(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	err := m.intake.Drain(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		m.log.Warn("the shard is released with messages in its outbox; its next owner publishes them", "error", err)
		return nil
	}
	return err
}

// measure gives what there is to say of the shard, if it is written here. The
// worker's mu is held.
func (m *member) measure(now time.Time, since time.Duration) (coordinator.Measured, bool) {
	m.mu.Lock()
	client, owned := m.client, m.fence != shard.Fence{}
	m.mu.Unlock()
	offered := m.intake.Offered()
	if seconds := since.Seconds(); seconds > 0 {
		m.rate += 0.5 * (float64(offered-m.offered)/seconds - m.rate)
	}
	m.offered = offered
	if !owned {
		return coordinator.Measured{}, false
	}
	measured := coordinator.Measured{Rate: m.rate, Deaf: m.deaf()}
	if oldest := m.intake.Oldest(); !oldest.IsZero() {
		measured.Lag = max(now.Sub(oldest), 0)
	}
	if client != nil {
		state := client.State()
		measured.Live = state.Instances / max(m.id.Slices, 1)
		measured.LastEvent = state.LastHeard
	}
	return measured, true
}
