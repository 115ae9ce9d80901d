package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"
)

// Limits of what callers may do; all of it is above 0.
type Limits struct {
	// PerSecond is how many calls a caller may make, over time; twice as many
	// at once after a quiet second or two.
	PerSecond float64
	// AtOnce is how many calls of one caller may be under way, InAll of all
	// callers together.
	AtOnce, InAll int
}

// maxCallers is how many callers are remembered. Who is forgotten begins anew,
// so it bounds memory and not the calls; InAll bounds those.
const maxCallers = 4096

// complainEvery is how often it is told of one caller that it does too much.
const complainEvery = 10 * time.Second

// LimitError is a call too many. Its text says what to do.
type LimitError struct {
	what string
	// Tell is false if the same was told of this caller a moment ago.
	Tell bool
}

func (e *LimitError) Error() string { return e.what }

// Limiter holds callers to their limits. All methods may be called at once.
type Limiter struct {
	limits Limits
	// mu guards what follows.
	mu      sync.Mutex
	callers *lru.Cache[string, *caller]
	inAll   int
}

type caller struct {
	rate   *rate.Limiter
	told   rate.Sometimes
	atOnce int // guarded by Limiter.mu
}

// NewLimiter starts with nobody.
func NewLimiter(limits Limits) (*Limiter, error) {
	if !(limits.PerSecond > 0) || limits.AtOnce <= 0 || limits.InAll <= 0 {
		return nil, errors.New("access: all limits of calls must be above 0")
	}
	callers, err := lru.New[string, *caller](maxCallers)
	if err != nil {
		return nil, fmt.Errorf("remember callers: %w", err)
	}
	return &Limiter{limits: limits, callers: callers}, nil
}

// Enter begins a call of a caller; leave, which is called once, ends it. The
// error is a LimitError.
func (l *Limiter) Enter(name string) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, known := l.callers.Get(name)
	if !known {
		burst := max(1, int(2*l.limits.PerSecond))
		c = &caller{rate: rate.NewLimiter(rate.Limit(l.limits.PerSecond), burst), told: rate.Sometimes{First: 1, Interval: complainEvery}}
		l.callers.Add(name, c)
	}
	refuse := func(what string, args ...any) error {
		e := &LimitError{what: fmt.Sprintf(what, args...)}
		c.told.Do(func() { e.Tell = true })
		return e
	}
	switch {
	case c.atOnce >= l.limits.AtOnce:
		return nil, refuse("%d calls of yours are under way, which is as many as one caller may have; wait for one to end", c.atOnce)
	case l.inAll >= l.limits.InAll:
		return nil, refuse("%d calls are under way here; ask another replica, or wait", l.inAll)
	case !c.rate.Allow():
		return nil, refuse("these are more calls than the %v a second that one caller may make; wait a moment", l.limits.PerSecond)
	}
	c.atOnce++
	l.inAll++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.atOnce--
		l.inAll--
	}, nil
}

// Origin is where a call comes from, as callers without a name are told apart:
// the address, or the network of 64 bits where a single machine has as many
// addresses as it likes.
func Origin(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return "unknown"
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.Network()
	}
	at, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	at = at.Unmap().WithZone("")
	if at.Is6() {
		if network, err := at.Prefix(64); err == nil {
			return network.String()
		}
	}
	return at.String()
}
