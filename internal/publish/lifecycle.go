package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/event"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// Pending is an event that waits in the queue.
type Pending struct {
	ID int64
	event.Lifecycle
}

// Queue holds the events that the sink has not taken yet.
type Queue interface {
	// Pending returns at most limit events, the oldest first, and leaves them
	// where they are.
	Pending(ctx context.Context, limit int) ([]Pending, error)
	// Done removes events. Those that are gone already are no error.
	Done(ctx context.Context, ids []int64) error
}

const (
	// roundLimit bounds the events in memory.
	roundLimit = 100
	// concurrency bounds the requests to a sink.
	concurrency = 8
	// maxFailures ends a round: the sink is away, and each try may take as long
	// as its deadline. It is above 1 so that an event which the sink alone
	// fails on does not keep back all others.
	maxFailures = concurrency
	// maxRetryAfter bounds what a sink may ask us to wait.
	maxRetryAfter = 5 * time.Minute
	// finishTimeout bounds the removal of what was sent when Run is told to end.
	finishTimeout = 5 * time.Second
)

// LifecycleConfig is what a Lifecycle needs.
type LifecycleConfig struct {
	// Queue is read by Run alone. Two processes that read the same queue send
	// its events twice; receivers drop repeats by the event's MessageID.
	Queue Queue

	// Sink is "none" (or empty), "log", or the http or https URL of an endpoint
	// that takes Segment's track calls. User and password of the URL become
	// basic authentication: the user is Segment's write key.
	Sink secret.String

	Interval       time.Duration // between looks that nobody asked for. Default: 10 s
	RequestTimeout time.Duration // of one HTTP request. Default: 10 s
	MinBackoff     time.Duration // after the first failure. Default: 1 s
	MaxBackoff     time.Duration // after many. Default: 1 min

	// Log hears of failures, and is the sink "log". Default: nothing.
	Log *slog.Logger

	// Registerer takes the metrics. Default: they are not registered.
	Registerer prometheus.Registerer
}

// Lifecycle hands lifecycle events from a queue to a sink, each at least once
// and in no certain order. An event that the sink refuses as malformed is
// dropped, with a log entry.
type Lifecycle struct {
	cfg     LifecycleConfig
	log     *slog.Logger
	sink    sink // nil: none
	metrics *lifecycleMetrics
	wake    chan struct{} // size 1: any number of calls make one look
}

// NewLifecycle returns a Lifecycle. It starts nothing.
func NewLifecycle(cfg LifecycleConfig) (*Lifecycle, error) {
	setDefault(&cfg.Interval, 10*time.Second)
	setDefault(&cfg.RequestTimeout, 10*time.Second)
	setDefault(&cfg.MinBackoff, time.Second)
	setDefault(&cfg.MaxBackoff, time.Minute)
	l := &Lifecycle{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1)}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	name := "none"
	switch target := cfg.Sink.Reveal(); target {
	case "", "none":
	case "log":
		name, l.sink = target, logSink{l.log}
	default:
		s, err := newHTTPSink(target, cfg.RequestTimeout)
		if err != nil {
			return nil, err
		}
		name, l.sink = "http", s
	}
	if l.sink != nil && cfg.Queue == nil {
		return nil, errors.New("a sink for lifecycle events needs a queue")
	}
	var err error
	if l.metrics, err = newLifecycleMetrics(cfg.Registerer, name); err != nil {
		return nil, err
	}
	return l, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Wake says that there are new events. It never blocks.
func (l *Lifecycle) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run sends events until ctx ends, and then returns nil, after it has removed
// from the queue what the sink has taken. With sink none it touches nothing: a
// queue that another process still empties is not ours to throw away.
func (l *Lifecycle) Run(ctx context.Context) error {
	if l.sink == nil {
		<-ctx.Done()
		return nil
	}
	defer l.sink.close()
	var r rounds
	for failures := 0; ctx.Err() == nil; {
		done := l.round(ctx, &r)
		switch {
		case done.err != nil && ctx.Err() == nil:
			if done.settled > 0 {
				failures = 0
			}
			wait := max(l.backoff(failures), min(done.after, maxRetryAfter))
			failures++
			l.log.Warn("lifecycle events are not delivered", "error", done.err, "failed", done.failed, "delivered", done.settled, "retry_in", wait)
			// A wake does not shorten this: new events are no sign that the
			// sink is back.
			pause(ctx, wait, nil)
		case done.more:
			failures = 0
		default:
			failures = 0
			pause(ctx, jitter(l.cfg.Interval), l.wake)
		}
	}
	return nil
}

// rounds is what one round leaves for the next.
type rounds struct {
	// settled are events that are done with but still in the queue, because the
	// queue could not be reached. They must not be sent again. At most
	// roundLimit: nothing is read before they are gone.
	settled []int64
}

type outcome struct {
	settled, failed int
	more            bool          // the queue may hold more
	after           time.Duration // the sink asked us to wait that long
	err             error         // the first failure
}

// round sends the oldest events once.
func (l *Lifecycle) round(ctx context.Context, r *rounds) (o outcome) {
	if o.err = l.settle(ctx, r); o.err != nil {
		return o
	}
	pending, err := l.cfg.Queue.Pending(ctx, roundLimit)
	if err != nil {
		o.err = fmt.Errorf("read lifecycle events: %w", err)
		return o
	}

	var mu sync.Mutex // guards o and r
	var group errgroup.Group
	group.SetLimit(concurrency)
	for _, p := range pending {
		group.Go(func() error {
			mu.Lock()
			enough := o.failed >= maxFailures
			mu.Unlock()
			if enough || ctx.Err() != nil {
				return nil
			}
			err := l.sink.send(ctx, &p.Lifecycle)
			mu.Lock()
			defer mu.Unlock()
			l.judge(&p, err, &o, r)
			return nil
		})
	}
	_ = group.Wait() // what went wrong is in o

	l.metrics.pending.Set(float64(len(pending) - o.settled))
	o.more = len(pending) == roundLimit
	if err := l.settle(ctx, r); err != nil && o.err == nil {
		o.err = err
	}
	return o
}

func (l *Lifecycle) judge(p *Pending, err error, o *outcome, r *rounds) {
	if err != nil && !errors.Is(err, errMalformed) {
		l.metrics.failed.Inc()
		o.failed++
		if o.err == nil {
			o.err = fmt.Errorf("send a lifecycle event: %w", err)
		}
		var later *retryAfterError
		if errors.As(err, &later) {
			o.after = max(o.after, later.wait)
		}
		return
	}
	if err != nil {
		l.metrics.dropped.Inc()
		l.log.Error("a lifecycle event is dropped", "event", p.Event, "message_id", p.MessageID, "error", err)
	} else {
		l.metrics.sent.Inc()
	}
	o.settled++
	r.settled = append(r.settled, p.ID)
}

// settle removes from the queue what is done with, even if ctx has ended.
func (l *Lifecycle) settle(ctx context.Context, r *rounds) error {
	if len(r.settled) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	if err := l.cfg.Queue.Done(ctx, r.settled); err != nil {
		return fmt.Errorf("remove lifecycle events: %w", err)
	}
	r.settled = r.settled[:0]
	return nil
}

func (l *Lifecycle) backoff(failures int) time.Duration {
	d := l.cfg.MinBackoff
	for range failures {
		if d *= 2; d >= l.cfg.MaxBackoff {
			d = l.cfg.MaxBackoff
			break
		}
	}
	return jitter(d)
}

// jitter is d, give or take a fifth.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + rand.N(d*2/5+1)
}

func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
	}
}
