// Package sim simulates workspace clusters: real gRPC servers of
// wsman.WorkspaceManager with the habits of the real ones, for tests and load
// tests.
//
// Habits: a buffer of 250 messages for each subscriber, and the end of the
// subscription when it is full; no history; no header before the first message;
// GOAWAY for pings that come too often; GetWorkspaces from live state. A filter
// in a request (must_match) is ignored.
//
// Invariants: what is published changes the live state and reaches the buffers
// of all subscribers in one step, so that a snapshot never misses what a
// subscriber of that moment has not been sent; every subscriber gets messages in
// the order of publishing. Messages are encoded once and sent as bytes, so that
// the generator is cheap beside what it loads.
//
// Whoever makes a Cluster owns it and runs it; many clusters live in one
// process, each with its own listener.
package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// DefaultBuffer is how many messages the real server keeps for a subscriber.
const DefaultBuffer = 250

// Config says what a cluster is like.
type Config struct {
	// Name is used in logs and errors.
	Name string
	// Address to listen on; default 127.0.0.1 and a free port, which stays the
	// same when the cluster is stopped and started again.
	Address string
	// TLS is nil for plain text; see Authority.ServerTLS.
	TLS *tls.Config
	// Buffer is how many messages a subscriber may be behind; default
	// DefaultBuffer.
	Buffer int
	// NeverDrop lets Publish wait for slow subscribers instead of ending their
	// subscription: for measuring throughput.
	NeverDrop bool
	// ForgetStopped is how long a stopped instance stays in the live state. 0:
	// until Forget; negative: it leaves at once.
	ForgetStopped time.Duration
	// MinPing is the shortest time between keepalive pings that is tolerated;
	// default 10 s. Pings without a stream are tolerated only once in two
	// hours, unless PingsWithoutStream.
	MinPing            time.Duration
	PingsWithoutStream bool
	// MaxSendBytes limits an answer; 0 is gRPC's own limit (2 GiB).
	MaxSendBytes int
	// Classes is the answer of DescribeCluster; may be changed by SetClasses.
	Classes *wsman.DescribeClusterResponse
	// Logger may be nil.
	Logger *slog.Logger
}

// ID is an instance id, the 16 bytes of a UUID.
type ID = [16]byte

// Effect is what an update does to the live state.
type Effect int

const (
	// Live: the message is the state of the instance.
	Live Effect = iota
	// Stopped: it is, and the instance is forgotten ForgetStopped later.
	Stopped
	// Untouched: the live state stays as it was. For what a healthy server
	// would not say: old versions, garbage.
	Untouched
)

// Update is a message about an instance.
type Update struct {
	ID      ID
	Message Message
	Effect  Effect
}

// Stats count what happened to a cluster since it was made.
type Stats struct {
	// Subscribers there are now; Subscribed were there ever.
	Subscribers, Subscribed int
	// Dropped subscribers had a full buffer.
	Dropped int
	// Unheard is how often the last subscription that stood has ended: what is
	// published until the next one reaches nobody.
	Unheard int
	// Snapshots were answered with a list.
	Snapshots int
	// Described is the number of DescribeCluster calls that were answered.
	Described int
	// Live instances.
	Live int
	// Published updates.
	Published int
}

// Cluster is a simulated workspace cluster. All methods are safe for concurrent
// use; Run may be called once.
type Cluster struct {
	cfg   Config
	codec codec
	addr  string
	// power switches the server off and on while Run lives.
	power chan powerSwitch

	// mu guards everything below. Nothing is sent or received under it.
	mu       sync.Mutex
	listener net.Listener // until Run has taken it
	faults   Faults
	classes  *wsman.DescribeClusterResponse
	live     map[ID]liveEntry
	// stopped are instances to forget, the oldest first; an entry whose
	// instance has been heard of again is passed over.
	stopped     []stoppedEntry
	subscribers map[*subscriber]struct{}
	// room is signalled when a subscriber has sent something or is gone.
	room  *sync.Cond
	stats Stats
	// changed is closed and replaced when stats or faults change, but not for
	// each published update.
	changed chan struct{}
}

type liveEntry struct {
	message Message
	stopped time.Time // zero: not stopped
}

type stoppedEntry struct {
	id ID
	at time.Time
}

// New makes a cluster and listens on its address; calls are answered once Run
// runs.
func New(cfg Config) (*Cluster, error) {
	if cfg.Name == "" {
		return nil, errors.New("a simulated cluster needs a name")
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = DefaultBuffer
	}
	if cfg.Buffer < 0 {
		return nil, fmt.Errorf("cluster %s: a buffer of %d messages", cfg.Name, cfg.Buffer)
	}
	if cfg.MinPing == 0 {
		cfg.MinPing = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Classes == nil {
		cfg.Classes = &wsman.DescribeClusterResponse{
			WorkspaceClasses: []*wsman.WorkspaceClass{
				{Id: "g1-standard", DisplayName: "Standard", Description: "Up to 4 cores, 8 GB memory", CreditsPerMinute: 0.166667},
				{Id: "g1-large", DisplayName: "Large", Description: "Up to 8 cores, 16 GB memory", CreditsPerMinute: 0.333333},
			},
			PreferredWorkspaceClass: "g1-standard",
		}
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", cfg.Name, err)
	}
	c := &Cluster{
		cfg:         cfg,
		codec:       codec,
		addr:        lis.Addr().String(),
		power:       make(chan powerSwitch),
		listener:    lis,
		classes:     cfg.Classes,
		live:        make(map[ID]liveEntry),
		subscribers: make(map[*subscriber]struct{}),
		changed:     make(chan struct{}),
	}
	c.room = sync.NewCond(&c.mu)
	return c, nil
}

// Name is the name from Config.
func (c *Cluster) Name() string { return c.cfg.Name }

// Addr is the host:port that the cluster listens on, now or when started again.
func (c *Cluster) Addr() string { return c.addr }

// Publish changes the live state and sends the updates, in order, to everyone
// who is subscribed now. It does not wait, unless NeverDrop is set: then it
// waits until every subscriber has room, and returns ctx's error if that ends
// first; updates before that one have been published.
func (c *Cluster) Publish(ctx context.Context, updates ...Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range updates {
		if c.cfg.NeverDrop {
			if err := c.waitForRoom(ctx); err != nil {
				return err
			}
		}
		u := &updates[i]
		c.apply(u)
		c.stats.Published++
		for s := range c.subscribers {
			if s.end != nil {
				continue
			}
			if s.behind() >= c.cfg.Buffer {
				c.drop(s)
				continue
			}
			s.push(u.Message)
		}
	}
	return nil
}

// apply does to the live state what the update says. mu is held.
func (c *Cluster) apply(u *Update) {
	switch {
	case u.Effect == Untouched:
	case u.Effect == Stopped && c.cfg.ForgetStopped < 0:
		delete(c.live, u.ID)
	case u.Effect == Stopped:
		now := time.Now()
		c.live[u.ID] = liveEntry{message: u.Message, stopped: now}
		if c.cfg.ForgetStopped > 0 {
			c.stopped = append(c.stopped, stoppedEntry{u.ID, now})
			c.expire(now)
		}
	default:
		c.live[u.ID] = liveEntry{message: u.Message}
	}
}

// expire forgets what has been stopped for long enough. mu is held.
func (c *Cluster) expire(now time.Time) {
	n := 0
	for ; n < len(c.stopped) && now.Sub(c.stopped[n].at) >= c.cfg.ForgetStopped; n++ {
		if e := c.stopped[n]; c.live[e.id].stopped.Equal(e.at) {
			delete(c.live, e.id)
		}
	}
	c.stopped = c.stopped[n:]
}

// waitForRoom returns when every subscriber has room for a message. mu is held
// by the caller, and released while waiting.
func (c *Cluster) waitForRoom(ctx context.Context) error {
	full := func() bool {
		for s := range c.subscribers {
			if s.end == nil && s.behind() >= c.cfg.Buffer {
				return true
			}
		}
		return false
	}
	if !full() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.room.Broadcast()
	})
	defer stop()
	for full() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("publish on cluster %s: %w", c.cfg.Name, err)
		}
		c.room.Wait()
	}
	return nil
}

// Forget takes instances out of the live state, all of them if none is given.
// Nobody is told, as with the real server.
func (c *Cluster) Forget(ids ...ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(ids) == 0 {
		clear(c.live)
		c.stopped = nil
	}
	for _, id := range ids {
		delete(c.live, id)
	}
}

// SetClasses changes the answer of DescribeCluster.
func (c *Cluster) SetClasses(r *wsman.DescribeClusterResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.classes = r
}

// Drop ends every subscription as if its buffer were full: what is buffered is
// sent before.
func (c *Cluster) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subscribers {
		if s.end == nil {
			c.drop(s)
		}
	}
}

// CutStreams ends every subscription now, with what is buffered unsent.
func (c *Cluster) CutStreams() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subscribers {
		if s.end == nil {
			c.finish(s, status.Error(codes.Unavailable, "stream cut"), true)
		}
	}
}

// Stats gives the counts of this moment.
func (c *Cluster) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count()
}

// Subscribers is the number of subscriptions that stand: what is published now
// goes to each of them.
func (c *Cluster) Subscribers() int { return c.Stats().Subscribers }

// Await returns when ok says so of the counts, or with ctx's error. It is
// asked again whenever a subscriber comes or goes or a call is answered.
func (c *Cluster) Await(ctx context.Context, ok func(Stats) bool) error {
	for {
		c.mu.Lock()
		now, changed := c.count(), c.changed
		c.mu.Unlock()
		if ok(now) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for cluster %s (%+v): %w", c.cfg.Name, now, ctx.Err())
		}
	}
}

// AwaitSubscribers returns when at least n subscriptions stand.
func (c *Cluster) AwaitSubscribers(ctx context.Context, n int) error {
	return c.Await(ctx, func(s Stats) bool { return s.Subscribers >= n })
}

// count completes stats. mu is held.
func (c *Cluster) count() Stats {
	s := c.stats
	s.Live = len(c.live)
	s.Subscribers = c.standing()
	return s
}

// standing is the number of subscriptions that stand. mu is held.
func (c *Cluster) standing() (n int) {
	for s := range c.subscribers {
		if s.end == nil {
			n++
		}
	}
	return n
}

// drop ends a subscription that is too far behind. mu is held.
func (c *Cluster) drop(s *subscriber) {
	c.stats.Dropped++
	c.finish(s, status.Errorf(codes.ResourceExhausted, "subscriber is %d messages behind", c.cfg.Buffer), false)
}

// finish ends a subscription that stands, with or without what waits. mu is
// held.
func (c *Cluster) finish(s *subscriber, err error, discard bool) {
	s.end = err
	if discard {
		s.queue = nil
	}
	s.ready.Signal()
	c.room.Broadcast()
	if c.standing() == 0 {
		c.stats.Unheard++
	}
	c.notify()
}

// notify wakes those who wait in Await or hang. mu is held.
func (c *Cluster) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}
