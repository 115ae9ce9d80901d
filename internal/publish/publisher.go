package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/event"
)

// Config is what a Publisher needs.
type Config struct {
	Redis Redis

	// Log hears what callers are not told through errors. Default: nothing.
	Log *slog.Logger

	// Registerer takes the metrics. Default: they are not registered.
	Registerer prometheus.Registerer
}

// Publisher publishes messages on Redis. All methods may be called by any
// number of goroutines at once.
type Publisher struct {
	client  *redis.Client
	log     *slog.Logger
	metrics *redisMetrics
	noFence sync.Once // says once that the server cannot fence

	// mu guards the fields below. It is never held during I/O.
	mu       sync.Mutex
	idle     []*session // one for each lane at most; the last one was used last
	doubtful []identity // connections that may still hold messages of failed calls
	closed   bool
}

// New returns a Publisher. It does not connect: that Redis is away is nothing
// that a start should fail for. Ping tells.
func New(cfg Config) (*Publisher, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	metrics, err := newRedisMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	client, err := newClient(cfg.Redis)
	if err != nil {
		return nil, err
	}
	return &Publisher{client: client, log: log, metrics: metrics}, nil
}

// Publish publishes the messages of sets: set by set, of each set first its
// instances, then headless, then prebuilds, each in the order given. Calls that
// must keep an order among themselves have to follow each other.
//
// An error means that an unknown part was published, as a rule the first
// messages; the caller calls again with all of them when it thinks fit. After a
// failed call, a later one on this Publisher ends what may still be under way
// before it publishes. It cannot if Redis does not let it use CLIENT INFO and
// CLIENT KILL; a log entry says so.
//
// Unless it is nil, may is asked right before each round trip, with its messages
// made. An error of it ends the call: nothing more is sent.
//
// The deadline of ctx holds throughout; cancellation is noticed between round
// trips. Without a deadline a server that has died is noticed within a few
// seconds.
func (p *Publisher) Publish(ctx context.Context, sets []event.Set, may Permit) error {
	given := tallyOf(sets)
	if given.sum() == 0 {
		return nil
	}
	start := time.Now()
	var taken tally
	err := p.publish(ctx, sets, may, &taken)
	p.metrics.count(given, taken)
	p.metrics.seconds.Observe(time.Since(start).Seconds())
	if err != nil {
		return fmt.Errorf("publish %d messages, %d of them taken: %w", given.sum(), taken.sum(), err)
	}
	return nil
}

func (p *Publisher) publish(ctx context.Context, sets []event.Set, may Permit, taken *tally) error {
	s, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	for from := (cursor{sets: sets}); s.load(&from); {
		err := ctx.Err()
		if err == nil && may != nil {
			err = may(ctx)
		}
		if err != nil {
			p.release(s)
			return err
		}
		if broken, err := s.send(ctx, taken); broken {
			p.abandon(s)
			return err
		} else if err != nil {
			p.release(s)
			return err
		}
	}
	p.release(s)
	return nil
}

// Ping asks whether Redis answers, within a few seconds or the deadline of ctx.
func (p *Publisher) Ping(ctx context.Context) error {
	if err := p.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping Redis: %w", err)
	}
	return nil
}

// Close closes the connections. Calls under way fail. Further calls of Close do
// nothing.
func (p *Publisher) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.discardIdle()
	if err := p.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close the connections to Redis: %w", err)
	}
	return nil
}
