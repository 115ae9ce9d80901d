package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// powerSwitch asks Run to stop or to start serving.
type powerSwitch struct {
	on   bool
	done chan error
}

// Run serves until ctx ends, and returns when every call has ended.
func (c *Cluster) Run(ctx context.Context) error {
	c.mu.Lock()
	lis := c.listener
	c.listener = nil
	c.mu.Unlock()
	if lis == nil {
		return fmt.Errorf("cluster %s: Run was called before", c.cfg.Name)
	}
	stop := c.serve(lis)
	for {
		select {
		case <-ctx.Done():
			if stop != nil {
				return stop()
			}
			return nil
		case p := <-c.power:
			var err error
			switch {
			case p.on && stop == nil:
				if lis, err = net.Listen("tcp", c.addr); err == nil {
					stop = c.serve(lis)
				}
			case !p.on && stop != nil:
				err = stop()
				stop = nil
			}
			p.done <- err
		}
	}
}

// Close frees the port of a cluster that is not run after all. After Run it does
// nothing.
func (c *Cluster) Close() {
	c.mu.Lock()
	lis := c.listener
	c.listener = nil
	c.mu.Unlock()
	if lis != nil {
		// There is nothing to lose in a listener that nobody has used.
		_ = lis.Close()
	}
}

// Stop ends the server: its connections are closed and its port is free. The
// live state goes on changing with what is published. Run must be running.
func (c *Cluster) Stop(ctx context.Context) error { return c.turn(ctx, false) }

// Start begins to serve again, on the same address.
func (c *Cluster) Start(ctx context.Context) error { return c.turn(ctx, true) }

func (c *Cluster) turn(ctx context.Context, on bool) error {
	// Size 1, so that Run does not wait for someone who has given up.
	p := powerSwitch{on: on, done: make(chan error, 1)}
	select {
	case c.power <- p:
	case <-ctx.Done():
		return fmt.Errorf("cluster %s does not run: %w", c.cfg.Name, ctx.Err())
	}
	if err := <-p.done; err != nil {
		return fmt.Errorf("cluster %s: %w", c.cfg.Name, err)
	}
	return nil
}

// serve starts a server and returns what ends it and waits for that.
func (c *Cluster) serve(lis net.Listener) (stop func() error) {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(c.codec),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             c.cfg.MinPing,
			PermitWithoutStream: c.cfg.PingsWithoutStream,
		}),
	}
	if c.cfg.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(c.cfg.TLS)))
	}
	if c.cfg.MaxSendBytes > 0 {
		opts = append(opts, grpc.MaxSendMsgSize(c.cfg.MaxSendBytes))
	}
	srv := grpc.NewServer(opts...)
	srv.RegisterService(c.description(), c)
	ended := make(chan error, 1) // one value, from Serve
	go func() { ended <- srv.Serve(lis) }()
	return func() error {
		srv.Stop()
		if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	}
}

// description is the service with handlers that answer in encoded messages,
// which the generated interface has no room for.
func (c *Cluster) description() *grpc.ServiceDesc {
	d := wsman.WorkspaceManager_ServiceDesc
	d.HandlerType = (*any)(nil)
	d.Methods = []grpc.MethodDesc{
		{MethodName: "GetWorkspaces", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := dec(new(wsman.GetWorkspacesRequest)); err != nil {
				return nil, err
			}
			return c.getWorkspaces(ctx)
		}},
		{MethodName: "DescribeCluster", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := dec(new(wsman.DescribeClusterRequest)); err != nil {
				return nil, err
			}
			return c.describe(ctx)
		}},
	}
	d.Streams = []grpc.StreamDesc{{
		StreamName:    "Subscribe",
		ServerStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(new(wsman.SubscribeRequest)); err != nil {
				return err
			}
			return c.subscribe(stream)
		},
	}}
	return &d
}

func (c *Cluster) describe(ctx context.Context) (*wsman.DescribeClusterResponse, error) {
	if _, err := c.pass(ctx, func(f Faults) Fault { return f.Describe }); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Described++
	c.notify()
	return c.classes, nil
}

func (c *Cluster) getWorkspaces(ctx context.Context) (*snapshot, error) {
	fault, err := c.pass(ctx, func(f Faults) Fault { return f.Snapshot })
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(time.Now())
	answer := &snapshot{statuses: make(mem.BufferSlice, 0, len(c.live))}
	n := 0
	for _, e := range c.live {
		n++
		if fault == Empty || fault == Half && n%2 == 0 {
			continue
		}
		answer.statuses = append(answer.statuses, e.message.status...)
	}
	c.stats.Snapshots++
	c.notify()
	return answer, nil
}

func (c *Cluster) subscribe(stream grpc.ServerStream) error {
	ctx := stream.Context()
	if _, err := c.pass(ctx, func(f Faults) Fault { return f.Subscribe }); err != nil {
		return err
	}
	s := &subscriber{ready: sync.NewCond(&c.mu)}
	c.mu.Lock()
	c.subscribers[s] = struct{}{}
	c.stats.Subscribed++
	c.notify()
	c.mu.Unlock()

	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s.end == nil {
			c.finish(s, context.Cause(ctx), true)
		}
	})
	defer stop()
	err := c.feed(stream, s)

	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subscribers, s)
	c.room.Broadcast()
	c.notify()
	return err
}

// feed sends what is pushed until the subscription ends.
func (c *Cluster) feed(stream grpc.ServerStream, s *subscriber) error {
	// Some messages are taken at a time, so that the lock is taken less often.
	var batch [64]Message
	for {
		c.mu.Lock()
		for len(s.queue) == 0 && s.end == nil {
			s.ready.Wait()
		}
		n := copy(batch[:], s.queue)
		s.queue = s.queue[n:]
		end := s.end
		c.mu.Unlock()
		if n == 0 {
			return end
		}
		for i := range batch[:n] {
			if err := stream.SendMsg(&batch[i]); err != nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				if s.end == nil {
					c.finish(s, err, true)
				}
				return s.end
			}
			s.unsent.Add(-1)
		}
		clear(batch[:n])
		if c.cfg.NeverDrop {
			c.mu.Lock()
			c.room.Broadcast()
			c.mu.Unlock()
		}
	}
}

// subscriber is one subscription. All but unsent is guarded by Cluster.mu.
type subscriber struct {
	queue []Message
	ready *sync.Cond // signalled when queue or end changes
	// end is why the subscription ends, once queue is sent; nil: it stands.
	end error
	// unsent is the number of messages in queue or taken by feed and not sent.
	// It only falls without the lock.
	unsent atomic.Int32
}

func (s *subscriber) behind() int { return int(s.unsent.Load()) }

func (s *subscriber) push(m Message) {
	s.queue = append(s.queue, m)
	s.unsent.Add(1)
	if len(s.queue) == 1 {
		s.ready.Signal()
	}
}
