package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/trestle-bridge/trestle/loadtest/script"
)

// ListenerConfig says where to listen.
type ListenerConfig struct {
	// Redis is a host:port, or a redis:// URL.
	Redis string
	// Ledger hears everything.
	Ledger *Ledger
	// DB, if set, is asked for the row of some of the instances published, as
	// soon as the publish arrives: the row must be there by then. One goroutine
	// uses it, so a single connection will do.
	DB Querier
	// SampleInterval is the shortest time between such questions; default 20 ms.
	SampleInterval time.Duration
}

// Listener hears the three channels over one connection.
type Listener struct {
	cfg   ListenerConfig
	opts  *redis.Options
	ready chan struct{}
	once  sync.Once
	// samples holds the latest publish to look into. Of size 1: what comes
	// while one is being looked into is not sampled.
	samples chan sampleRequest
}

type sampleRequest struct{ number, publish int32 }

// NewListener makes a listener.
func NewListener(cfg ListenerConfig) (*Listener, error) {
	if cfg.Ledger == nil {
		return nil, errors.New("a listener needs a ledger")
	}
	if cfg.SampleInterval == 0 {
		cfg.SampleInterval = 20 * time.Millisecond
	}
	opts, err := redis.ParseURL(cfg.Redis)
	if err != nil {
		opts = &redis.Options{Addr: cfg.Redis}
	}
	opts.Protocol = 2
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return &Listener{cfg: cfg, opts: opts, ready: make(chan struct{}), samples: make(chan sampleRequest, 1)}, nil
}

// Ready is closed when the listener is subscribed to all channels.
func (l *Listener) Ready() <-chan struct{} { return l.ready }

// Run listens until ctx ends. A lost connection is taken up again, and counted
// as a gap in the ledger. It returns nil when ctx ends.
func (l *Listener) Run(ctx context.Context) error {
	var sampling sync.WaitGroup
	defer sampling.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.cfg.DB != nil {
		sampling.Go(func() { l.sample(ctx) })
	}

	client := redis.NewClient(l.opts)
	defer client.Close()
	sub := client.Subscribe(ctx, channelInstances, channelPrebuilds, channelHeadless)
	defer sub.Close()
	// A blocked Receive does not see the end of its context.
	stop := context.AfterFunc(ctx, func() { sub.Close() })
	defer stop()

	lost := false
	for {
		message, err := sub.Receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if !lost {
				lost = true
				l.cfg.Ledger.gap()
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		switch m := message.(type) {
		case *redis.Subscription:
			if m.Count == 3 {
				lost = false
				l.once.Do(func() { close(l.ready) })
			}
		case *redis.Message:
			number, publish := l.cfg.Ledger.Heard(m.Channel, m.Payload, time.Now())
			if publish > 0 && l.cfg.DB != nil {
				select {
				case l.samples <- sampleRequest{int32(number), int32(publish)}:
				default:
				}
			}
		}
	}
}

// sample looks into rows until ctx ends.
func (l *Listener) sample(ctx context.Context) {
	tick := time.NewTicker(l.cfg.SampleInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// What has waited here since the last tick is old; the next is fresh.
		select {
		case <-l.samples:
		default:
		}
		select {
		case <-ctx.Done():
			return
		case s := <-l.samples:
			version, err := l.version(ctx, int(s.number))
			if err == nil {
				l.cfg.Ledger.sampled(s.number, s.publish, version)
			}
			// A database that is away is no evidence; what it holds in the end
			// is checked anyway.
		}
	}
}

func (l *Listener) version(ctx context.Context, number int) (uint64, error) {
	id := l.cfg.Ledger.cfg.Subject(number).ID.Instance
	rows, err := l.cfg.DB.Query(ctx, `SELECT coalesce(status_version, 0) FROM workspace_instance WHERE id = $1`, id)
	if err != nil {
		return 0, fmt.Errorf("read the row of %s: %w", script.FormatUUID(id), err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("read the row of %s: %w", script.FormatUUID(id), err)
	}
	return uint64(v), nil
}
