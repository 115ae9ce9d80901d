package console

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/store"
)

const (
	// checkEvery is how often health is looked at while anybody watches.
	checkEvery = 5 * time.Second
	// checkTimeout bounds one look; a server that is silent is not well.
	checkTimeout = 4 * time.Second
	// maxQuarantined is how many changes of a cluster an explanation lists.
	maxQuarantined = 20
)

// checks looks at health while somebody wants to know, and never otherwise.
type checks struct {
	look       func(context.Context) []observe.Check
	quarantine Quarantine
	// wanted wakes run. Size 1: many who ask are one look.
	wanted chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	latest  health
	changed chan struct{} // closed with the next look
}

func newChecks(look func(context.Context) []observe.Check, quarantine Quarantine) *checks {
	return &checks{
		look: look, quarantine: quarantine, wanted: make(chan struct{}, 1),
		latest: health{Checks: []check{}}, changed: make(chan struct{}),
	}
}

// run looks whenever that is wanted and the last look is old, until ctx ends.
func (c *checks) run(ctx context.Context) {
	for {
		select {
		case <-c.wanted:
		case <-ctx.Done():
			return
		}
		if before, _ := c.read(); time.Since(before.Checked) >= checkEvery {
			c.check(ctx, before)
		}
	}
}

func (c *checks) check(ctx context.Context, before health) {
	limited, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	// Side by side: a database that is silent uses up its own time only.
	stats := make(chan quarantine, 1) // so that the answer need not be waited for
	go func() { stats <- c.count(limited) }()
	now := health{Checks: []check{}}
	for _, result := range c.look(limited) {
		seen := check{Name: result.Name, OK: result.Err == nil}
		if result.Err != nil {
			seen.Error = oneLine(result.Err)
		}
		seen.Since = time.Now().UTC()
		if i := slices.IndexFunc(before.Checks, func(b check) bool { return b.Name == seen.Name }); i >= 0 && before.Checks[i].OK == seen.OK {
			seen.Since = before.Checks[i].Since
		}
		now.Checks = append(now.Checks, seen)
	}
	now.Quarantine = <-stats
	now.Checked = time.Now().UTC()
	if ctx.Err() != nil {
		return // what failed did so because we end
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest = now
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *checks) count(ctx context.Context) quarantine {
	clusters, err := c.quarantine.QuarantineCounts(ctx)
	if err != nil {
		return quarantine{Error: oneLine(err)}
	}
	var q quarantine
	for _, cluster := range clusters {
		q.Changes += cluster.Changes
		q.Clusters = append(q.Clusters, quarantined{Cluster: cluster.Cluster, Changes: cluster.Changes, Last: cluster.Last})
	}
	return q
}

func (c *checks) read() (health, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest, c.changed
}

// last is what was found last, which is made anew if it is old; the channel is
// closed then.
func (c *checks) last() (health, <-chan struct{}) {
	latest, changed := c.read()
	if time.Since(latest.Checked) >= checkEvery {
		select {
		case c.wanted <- struct{}{}:
		default:
		}
	}
	return latest, changed
}

// await returns when what was found last is not old, or when ctx ends.
func (c *checks) await(ctx context.Context) {
	for {
		latest, changed := c.last()
		if time.Since(latest.Checked) < checkEvery {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// Quarantine is where changes are kept that the database refused; see
// store.Store. Both methods are safe for concurrent use.
type Quarantine interface {
	QuarantineCounts(ctx context.Context) ([]store.QuarantineCount, error)
	LastQuarantined(ctx context.Context, cluster string, limit int) ([]store.Poison, error)
}
