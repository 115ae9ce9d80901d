package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const (
	// streamWindow is how much the server may send ahead of us, in bytes: some
	// six hundred updates, for the moments in which the reader does not run. All
	// streams of a replica may have as much lie there undecoded, and in a flood
	// they do. It is fixed, because gRPC measures for a window of the right size
	// with pings, and a strict server counts pings.
	streamWindow = 512 << 10
	// readBuffer is how much is read from the connection at once.
	readBuffer = 64 << 10
	// healthy is how long a subscription lasts that was one, even if it
	// brought nothing.
	healthy = 30 * time.Second
	// maxConnectBackoff bounds the time between attempts to reach a server
	// that is not there, so that it is found soon after it is back.
	maxConnectBackoff = time.Second
)

// connect makes a connection for one subscription or call. We come back with
// a new one each time, so gRPC's own backoff between attempts, which would
// work against ours, never has a second attempt. The flag says whether we
// turned the server down in a TLS handshake.
func (c *Client) connect() (*grpc.ClientConn, *atomic.Bool, error) {
	distrust := new(atomic.Bool)
	creds := insecure.NewCredentials()
	if c.tls != nil {
		creds = handshakes{credentials.NewTLS(c.tls.Clone()), distrust}
	}
	conn, err := grpc.NewClient("passthrough:///"+c.target.address,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.target.dial(ctx) }),
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(c.target.authority(c.tls != nil)),
		grpc.WithUserAgent("trestle"),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDisableHealthCheck(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(streamWindow),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:    c.cfg.Timing.Keepalive,
			Timeout: c.cfg.Timing.Keepalive / 2,
			// Without a stream there is nothing to keep alive, and servers
			// take such pings amiss.
			PermitWithoutStream: false,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxConnectBackoff},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(c.codec)),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection to %s: %w", c.cfg.Cluster.URL, err)
	}
	return conn, distrust, nil
}

// handshakes notes that one failed.
type handshakes struct {
	credentials.TransportCredentials
	failed *atomic.Bool
}

func (h handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		h.failed.Store(true)
	}
	return conn, info, err
}

func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.failed}
}

// ending tells how a subscription ended.
type ending struct {
	spoke  bool // it brought a message
	lasted time.Duration
	why    reason
	err    error
}

// subscribe keeps a subscription open until ctx ends.
func (c *Client) subscribe(ctx context.Context, metrics *clusterMetrics) {
	b := retry{timing: c.cfg.Timing}
	for ctx.Err() == nil {
		began := time.Now()
		end := c.subscription(ctx, metrics)
		if ctx.Err() != nil {
			break
		}
		end.lasted = time.Since(began)
		metrics.reconnect(end.why)
		c.ended(end)
		if end.why == reasonTooLarge {
			c.invalid(&status.InvalidError{Reason: status.ReasonTooLarge, Err: end.err}, metrics)
		}
		wait := b.after(end, time.Now())
		level := slog.LevelWarn
		if b.failures&(b.failures-1) != 0 {
			level = slog.LevelDebug // the first, second, fourth, eighth ... in a row are enough
		}
		c.log.Log(ctx, level, "subscription ended", "reason", string(end.why), "error", end.err,
			"lasted", end.lasted, "failures", b.failures, "retry_in", wait)
		if end.why == reasonFull && c.cfg.Sink.Drained(ctx) != nil {
			break
		}
		if !sleep(ctx, wait) {
			break
		}
	}
	c.ended(ending{err: ctx.Err()})
}

// subscription opens one stream and reads it to its end.
func (c *Client) subscription(ctx context.Context, metrics *clusterMetrics) ending {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, distrust, err := c.connect()
	if err != nil {
		return ending{why: reasonOther, err: err}
	}
	defer conn.Close()

	stream, err := c.open(ctx, conn)
	if err != nil {
		return ending{why: classify(ctx, err, distrust.Load()), err: err}
	}
	generation := c.begun(cancel)
	c.log.Info("subscribed", "url", c.cfg.Cluster.URL)
	metrics.up.Set(1)
	defer metrics.up.Set(0)

	// A header, the first message or Settle says that it is time for the
	// first snapshot. Size 1: the first sign counts, nobody waits to give it.
	sign := make(chan struct{}, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if header, err := stream.Header(); err == nil && header != nil {
			give(sign)
		}
	})
	waiting.Go(func() {
		settle := time.NewTimer(c.cfg.Timing.Settle)
		defer settle.Stop()
		select {
		case <-sign:
		case <-settle.C:
		case <-ctx.Done():
			// A stream that brought something, and be it what we cannot
			// read, is due its snapshot even if it is over: otherwise an
			// update that ends every stream at once would leave us deaf.
			select {
			case <-sign:
			default:
				return
			}
		}
		c.snapshotDue(generation)
	})

	spoke, err := c.read(stream, sign, metrics)
	end := ending{spoke: spoke, why: classify(ctx, err, false), err: err}
	if cause := context.Cause(ctx); cause != nil {
		end.err = cause
	}
	if end.why == reasonTooLarge {
		give(sign)
	}
	cancel(nil)
	waiting.Wait()
	return end
}

func give(sign chan<- struct{}) {
	select {
	case sign <- struct{}{}:
	default:
	}
}

func (c *Client) open(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &wsman.WorkspaceManager_ServiceDesc.Streams[0],
		wsman.WorkspaceManager_Subscribe_FullMethodName, grpc.MaxCallRecvMsgSize(c.cfg.MaxUpdateBytes))
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", c.cfg.Cluster.URL, err)
	}
	if err := stream.SendMsg(&wsman.SubscribeRequest{}); err != nil && err != io.EOF {
		return nil, fmt.Errorf("subscribe to %s: %w", c.cfg.Cluster.URL, err)
	}
	// After io.EOF the reader learns why.
	if err := stream.CloseSend(); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", c.cfg.Cluster.URL, err)
	}
	return stream, nil
}

// read takes messages off the stream until it ends. It waits for nothing else.
func (c *Client) read(stream grpc.ClientStream, sign chan<- struct{}, metrics *clusterMetrics) (spoke bool, err error) {
	var m message
	defer m.release()
	offer := c.cfg.Sink.Offer // once, as each such value is an allocation
	for {
		if err := stream.RecvMsg(&m); err != nil {
			return spoke, fmt.Errorf("read the stream of %s: %w", c.cfg.Cluster.URL, err)
		}
		now := time.Now()
		if !spoke {
			spoke = true
			give(sign)
		}
		c.heard.Add(1)
		c.lastHeard.Store(now.UnixNano())
		metrics.lastHeard.Set(float64(now.UnixMilli()) / 1e3)

		envelope, err := status.ScanEnvelope(m.bytes)
		if err != nil {
			c.invalid(err, metrics)
			continue
		}
		h := status.Heard{At: now}
		if c.cfg.Trace {
			h.Trace = envelope.Trace()
		}
		if err := c.offer(envelope.Status, h, metrics, offer); err != nil {
			return spoke, fmt.Errorf("hand on an update: %w", err)
		}
		m.release()
	}
}

// begun notes that a subscription is open.
func (c *Client) begun(kill context.CancelCauseFunc) (generation uint64) {
	c.order.Lock()
	c.generation++
	generation = c.generation
	c.cfg.Sink.Subscribed()
	c.order.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill = kill
	c.state.Connected, c.state.Since, c.state.Error = true, time.Now(), ""
	return generation
}

func (c *Client) ended(end ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill = nil
	if c.state.Connected || c.state.Since.IsZero() {
		c.state.Since = time.Now()
	}
	c.state.Connected = false
	if end.err != nil {
		c.state.Error = end.err.Error()
	}
	if end.why != "" {
		c.state.Reconnects++
	}
}

// end ends the running subscription, if there is one.
func (c *Client) end(cause error) {
	c.mu.Lock()
	kill := c.kill
	c.mu.Unlock()
	if kill != nil {
		kill(cause)
	}
}

// classify names the reason for which a subscription ended.
func classify(ctx context.Context, err error, distrust bool) reason {
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return reasonSilent
	case errors.Is(err, ErrFull):
		return reasonFull
	case distrust:
		return reasonTLS
	case errors.Is(err, io.EOF):
		return reasonClosed
	}
	var rpc interface{ GRPCStatus() *grpcstatus.Status }
	if !errors.As(err, &rpc) {
		return reasonOther
	}
	s := rpc.GRPCStatus()
	switch s.Code() {
	case codes.ResourceExhausted:
		// gRPC itself reports a message beyond the limit with the same code
		// as a server that drops us.
		if strings.HasPrefix(s.Message(), "grpc: ") && strings.Contains(s.Message(), "larger than max") {
			return reasonTooLarge
		}
		return reasonDropped
	case codes.Unavailable:
		return reasonUnavailable
	case codes.Unauthenticated, codes.PermissionDenied:
		return reasonRefused
	}
	return reasonOther
}

// retry decides how long to wait before the next subscription.
type retry struct {
	timing   Timing
	failures int       // in a row
	atOnce   time.Time // when we last came back without waiting
}

func (r *retry) after(end ending, now time.Time) time.Duration {
	well := end.spoke && end.why != reasonTooLarge || end.lasted >= healthy || end.why == reasonSilent || end.why == reasonFull
	if well {
		r.failures = 0
		// What happens meanwhile is lost until the next snapshot, so back at
		// once; but not for ever as fast as we can.
		if now.Sub(r.atOnce) >= maxConnectBackoff {
			r.atOnce = now
			return 0
		}
		return jitter(r.timing.MinBackoff)
	}
	limit := r.timing.MaxBackoff
	if end.why == reasonUnavailable {
		limit = min(limit, maxConnectBackoff)
	}
	wait := min(r.timing.MinBackoff<<min(r.failures, 16), limit)
	r.failures++
	return jitter(wait)
}

// jitter spreads d by a quarter either way.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*float64(d)/2)
}

// sleep waits, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
