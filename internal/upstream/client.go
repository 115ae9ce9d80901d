package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// ErrFull is what a Sink answers to an Offer when too many new instances wait.
var ErrFull = errors.New("too many new instances wait")

// errSilent is the end of a stream that has been shown to say nothing of what
// happens.
var errSilent = errors.New("snapshots hold changes that the stream did not bring")

// Sink takes what is heard. Its methods are called by several goroutines at
// once. Only Drained and Room may wait.
type Sink interface {
	// Offer hands over one status; h.Raw is valid only during the call. It
	// waits for no database and no network. After ErrFull the stream ends,
	// and is taken up again when Drained returns; a snapshot offers the same
	// status again when Room does. Any other error ends the stream or snapshot too, and
	// is tried again with backoff.
	Offer(h status.Heard) error
	// Invalid is told of a status that cannot be used, a *status.InvalidError
	// wrapped with the cluster's name. The stream goes on.
	Invalid(err error)
	// Drained blocks until statuses may be offered again, or ctx ends, whose
	// error it returns then.
	Drained(ctx context.Context) error
	// Room blocks until an entry of a snapshot may be offered again, or ctx ends,
	// whose error it returns then.
	Room(ctx context.Context) error
	// Subscribed says that a new subscription begins. What was heard on the
	// stream before no longer stands against an unversioned snapshot entry;
	// entries of an earlier subscription's snapshot that are unversioned are
	// not offered any more.
	Subscribed()
}

// Timing says when a Client does what it does unasked. Periods are jittered by
// a quarter either way.
type Timing struct {
	// Settle is how long a new stream may stay without a sign before the
	// first snapshot is taken. Default 1 s.
	Settle time.Duration
	// SecondLook is the time between the first snapshot and the second, and
	// between a suspicion that the stream is dead and the look that settles
	// it. Default 5 s.
	SecondLook time.Duration
	// Every is the time between later snapshots. Default 5 min.
	Every time.Duration
	// Silence is how long a stream may be quiet before a snapshot is taken
	// for it. Default 3 min.
	Silence time.Duration
	// Stall is how long a snapshot may go without a byte. Default 30 s.
	Stall time.Duration
	// Pause is how long a snapshot waits for a full sink before it is given
	// up, to be taken again. Default 1 min.
	Pause time.Duration
	// Keepalive is the time without traffic after which the stream's
	// connection is pinged; without an answer in half of it, it is given up.
	// Servers do not tolerate less than 10 s. Default 20 s.
	Keepalive time.Duration
	// MinBackoff and MaxBackoff bound the time between attempts to
	// subscribe. Defaults 100 ms and 15 s.
	MinBackoff, MaxBackoff time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Settle, time.Second},
		{&t.SecondLook, 5 * time.Second},
		{&t.Every, 5 * time.Minute},
		{&t.Silence, 3 * time.Minute},
		{&t.Stall, 30 * time.Second},
		{&t.Pause, time.Minute},
		{&t.Keepalive, 20 * time.Second},
		{&t.MinBackoff, 100 * time.Millisecond},
		{&t.MaxBackoff, 15 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return t
}

// Config is what a Client needs. Cluster.Name and Cluster.URL are required;
// Sink and Metrics are for Run.
type Config struct {
	Cluster Cluster
	Sink    Sink
	Metrics *Metrics
	// Logger defaults to one that discards.
	Logger *slog.Logger
	// Budget is shared by the clients of a replica; nil is without limit.
	Budget *Budget
	// Trace hands on the trace context of updates.
	Trace bool
	// MaxUpdateBytes limits one status. A larger one is skipped in a snapshot
	// and ends the stream, as gRPC cannot skip it. Default 4 MiB.
	MaxUpdateBytes int
	// MaxSnapshotBytes limits the answer to GetWorkspaces. It is never held
	// in memory as a whole. Default 512 MiB, at most 4 GiB.
	MaxSnapshotBytes int64
	Timing           Timing
}

const (
	defaultMaxUpdate   = 4 << 20
	defaultMaxSnapshot = 512 << 20
)

// Client hears one workspace cluster. Run is for one caller at a time; the
// other methods may be called at any time by anybody, whether it runs or not.
type Client struct {
	cfg    Config
	log    *slog.Logger
	target target
	tls    *tls.Config // nil for plain
	codec  codec

	// established carries the generation of a stream that a snapshot is due
	// for. Size 1: a newer one takes the place of one that nobody has taken
	// up. Only the subscription loop sends.
	established chan uint64
	// asked says that somebody wants a snapshot; size 1, so that wishes coalesce
	// and nobody blocks.
	asked      chan struct{}
	synced     chan struct{}
	syncedOnce sync.Once

	// heard counts the messages of all streams, lastHeard is when the last
	// one came, in Unix nanoseconds.
	heard     atomic.Uint64
	lastHeard atomic.Int64

	// order guards generation, and keeps the unversioned entries of an
	// earlier subscription's snapshot from being offered after Subscribed.
	// The sink's Offer and Subscribed are called under it: they do not wait.
	order      sync.Mutex
	generation uint64

	// mu guards what follows.
	mu    sync.Mutex
	state State
	kill  context.CancelCauseFunc // of the running subscription, or nil
}

// State is what is known of a cluster's connection at one moment.
type State struct {
	// Connected says that a subscription is open, Since when that began or
	// when the last one ended.
	Connected bool
	Since     time.Time
	// LastHeard is when the stream last brought a message, LastSnapshot when
	// the last complete snapshot began; zero if never.
	LastHeard, LastSnapshot time.Time
	// Instances and SnapshotBytes are of that snapshot.
	Instances     int
	SnapshotBytes int64
	// Reconnects counts the subscriptions that ended, attempts included.
	Reconnects uint64
	// Error is why the last subscription ended, empty while one is open.
	Error string
	// SnapshotError is why the last snapshot failed, empty if it did not.
	SnapshotError string
}

// New checks the configuration. It starts nothing and connects to nothing.
func New(cfg Config) (*Client, error) {
	if cfg.Cluster.Name == "" {
		return nil, errors.New("a cluster needs a name")
	}
	at, err := parseTarget(cfg.Cluster.URL)
	if err != nil {
		return nil, fmt.Errorf("URL of cluster %s: %w", cfg.Cluster.Name, err)
	}
	secured, err := cfg.Cluster.TLS.config()
	if err != nil {
		return nil, fmt.Errorf("TLS of cluster %s: %w", cfg.Cluster.Name, err)
	}
	if cfg.MaxUpdateBytes <= 0 {
		cfg.MaxUpdateBytes = defaultMaxUpdate
	}
	if cfg.MaxSnapshotBytes <= 0 {
		cfg.MaxSnapshotBytes = defaultMaxSnapshot
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Timing = cfg.Timing.withDefaults()
	return &Client{
		cfg:         cfg,
		log:         cfg.Logger.With("cluster", cfg.Cluster.Name),
		target:      at,
		tls:         secured,
		codec:       newCodec(),
		established: make(chan uint64, 1),
		asked:       make(chan struct{}, 1),
		synced:      make(chan struct{}),
	}, nil
}

// Run hears the cluster until ctx ends, and returns nil then. Whatever fails
// on the way is counted, logged and tried again.
func (c *Client) Run(ctx context.Context) error {
	if c.cfg.Sink == nil || c.cfg.Metrics == nil {
		return fmt.Errorf("hear cluster %s: no sink or no metrics", c.cfg.Cluster.Name)
	}
	metrics := c.cfg.Metrics.begin(c.cfg.Cluster.Name)
	defer metrics.end()
	var snapshots sync.WaitGroup
	snapshots.Go(func() { c.takeSnapshots(ctx, metrics) })
	c.subscribe(ctx, metrics)
	snapshots.Wait()
	return nil
}

// Synced is closed when all of a snapshot has been offered that was asked for
// under a subscription that was still open at its end.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Ask asks for a snapshot as soon as one can be taken: after the one under way,
// if there is one. Without a subscription it does nothing, for the next one
// begins with a snapshot.
func (c *Client) Ask() {
	select {
	case c.asked <- struct{}{}:
	default: // it is asked for already
	}
}

// State is for health, lag and consoles.
func (c *Client) State() State {
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	if at := c.lastHeard.Load(); at != 0 {
		state.LastHeard = time.Unix(0, at)
	}
	return state
}

// Workspaces asks the cluster for the instances that it knows now. An error
// means that the list is not known in full, which is evidence of nothing: a
// status so broken or so large that its id cannot be read is one.
func (c *Client) Workspaces(ctx context.Context) ([]status.InstanceID, error) {
	var ids []status.InstanceID
	_, err := c.getWorkspaces(ctx, func(entry []byte, size int64) error {
		if entry == nil {
			return fmt.Errorf("a status of %d bytes is too large to be read", size)
		}
		h, err := status.Scan(entry)
		var invalid *status.InvalidError
		switch {
		case err == nil:
		case errors.As(err, &invalid) && invalid.Reason == status.ReasonMalformed:
			return err
		case h.ID == status.InstanceID{}:
			return nil // named otherwise than any instance of ours can be
		}
		ids = append(ids, h.ID)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask cluster %s at %s for its workspaces: %w", c.cfg.Cluster.Name, c.cfg.Cluster.URL, err)
	}
	return ids, nil
}

// describeTimeout bounds DescribeCluster, connection included.
const describeTimeout = 10 * time.Second

// Describe asks the cluster for its workspace classes, on a connection of its
// own and for at most 10 s.
func (c *Client) Describe(ctx context.Context) (*wsman.DescribeClusterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	conn, _, err := c.connect()
	if err != nil {
		return nil, fmt.Errorf("describe cluster %s: %w", c.cfg.Cluster.Name, err)
	}
	defer conn.Close()
	response, err := wsman.NewWorkspaceManagerClient(conn).DescribeCluster(ctx, &wsman.DescribeClusterRequest{})
	if err != nil {
		return nil, fmt.Errorf("describe cluster %s at %s: %w", c.cfg.Cluster.Name, c.cfg.Cluster.URL, err)
	}
	return response, nil
}

// offer hands on one status as it was heard.
func (c *Client) offer(raw []byte, h status.Heard, metrics *clusterMetrics, offer func(status.Heard) error) error {
	scanned, err := status.Scan(raw)
	if err != nil {
		c.invalid(err, metrics)
		return nil
	}
	scanned.At, scanned.Snapshot, scanned.Trace = h.At, h.Snapshot, h.Trace
	return offer(scanned)
}

func (c *Client) invalid(err error, metrics *clusterMetrics) {
	var invalid *status.InvalidError
	if errors.As(err, &invalid) {
		metrics.invalid(invalid.Reason)
	}
	c.cfg.Sink.Invalid(fmt.Errorf("cluster %s: %w", c.cfg.Cluster.Name, err))
}
