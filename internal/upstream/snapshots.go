package upstream

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

const (
	// breath is the number of snapshot entries after which the reader of the
	// stream, and everybody else, gets a turn.
	breath = 256
	// maxSnapshotBackoff bounds the time between attempts at a snapshot.
	maxSnapshotBackoff = 30 * time.Second
)

// snapshotDue asks for the first snapshot of a subscription.
func (c *Client) snapshotDue(generation uint64) {
	select {
	case <-c.established: // nobody took it up; the newer one is what counts
	default:
	}
	c.established <- generation
}

// takeSnapshots takes each snapshot when it is due, one at a time. A snapshot
// goes on if its subscription ends meanwhile: what it brings is true, and a
// cluster whose streams end quickly is heard all the same.
func (c *Client) takeSnapshots(ctx context.Context, metrics *clusterMetrics) {
	p := plan{timing: c.cfg.Timing}
	timer := time.NewTimer(0)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p.generation = <-c.established:
			p.begin(time.Now())
			timer.Reset(0)
			continue
		case <-c.asked:
			if p.generation != 0 {
				p.asked = true
				timer.Reset(0)
			}
			continue
		case <-timer.C:
		}
		if wait := p.wait(time.Now(), c.lastSign()); wait > 0 {
			timer.Reset(wait)
			continue
		}
		if p.taken > 0 && !c.State().Connected {
			continue // the next subscription brings its own
		}
		timer.Reset(c.takeSnapshot(ctx, &p, metrics))
	}
}

// lastSign is when the stream was last heard; zero if never.
func (c *Client) lastSign() time.Time {
	if at := c.lastHeard.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// takeSnapshot takes one, and says how long to wait before asking the plan
// again.
func (c *Client) takeSnapshot(ctx context.Context, p *plan, metrics *clusterMetrics) time.Duration {
	began, heard := time.Now(), c.heard.Load()
	look := p.silence.look(heard, began.Sub(later(p.began, c.lastSign())) >= c.cfg.Timing.Silence/2)
	read, err := c.snapshot(ctx, p.generation, &look, metrics)
	if ctx.Err() != nil {
		return 0
	}
	c.noteSnapshot(began, read, err)
	if err != nil {
		metrics.snapshotFailure.Inc()
		p.failures++
		wait := jitter(min(time.Second<<min(p.failures-1, 16), maxSnapshotBackoff, c.cfg.Timing.Every))
		if p.failures&(p.failures-1) == 0 {
			c.log.Warn("snapshot failed", "error", err, "failures", p.failures, "retry_in", wait)
		}
		p.silence = silence{}
		return wait
	}
	metrics.snapshot(began, read)
	c.log.Debug("snapshot taken", "instances", read.entries, "bytes", read.bytes, "took", time.Since(began))
	if c.current(p.generation) {
		c.syncedOnce.Do(func() { close(c.synced) })
	}
	p.failures, p.last, p.asked = 0, began, false
	p.taken++
	switch p.silence.judge(look, c.heard.Load()) {
	case dead:
		if c.current(p.generation) {
			c.end(errSilent)
		}
	case suspect:
		return jitter(c.cfg.Timing.SecondLook)
	}
	if p.taken == 1 {
		return jitter(c.cfg.Timing.SecondLook)
	}
	return p.spread(p.wait(time.Now(), c.lastSign()))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *Client) noteSnapshot(began time.Time, read reading, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.state.SnapshotError = err.Error()
		return
	}
	c.state.SnapshotError = ""
	c.state.LastSnapshot, c.state.Instances, c.state.SnapshotBytes = began, read.entries, read.bytes
}

// current says whether this is the generation of the open subscription.
func (c *Client) current(generation uint64) bool {
	c.order.Lock()
	same := c.generation == generation
	c.order.Unlock()
	return same && c.State().Connected
}

// snapshot asks for all statuses and offers them.
func (c *Client) snapshot(ctx context.Context, generation uint64, look *look, metrics *clusterMetrics) (reading, error) {
	n := 0
	read, err := c.getWorkspaces(ctx, func(entry []byte, size int64) error {
		if n++; n%breath == 0 {
			runtime.Gosched()
		}
		if entry == nil {
			c.invalid(&status.InvalidError{
				Reason: status.ReasonTooLarge,
				Err:    fmt.Errorf("a status of %d bytes, the limit is %d", size, c.cfg.MaxUpdateBytes),
			}, metrics)
			return nil
		}
		h := status.Heard{At: time.Now(), Snapshot: true}
		return c.offer(entry, h, metrics, func(h status.Heard) error {
			look.see(h.ID, h.Version)
			return c.offerEntry(ctx, generation, h)
		})
	})
	if err != nil {
		return read, fmt.Errorf("take a snapshot of %s: %w", c.cfg.Cluster.URL, err)
	}
	return read, nil
}

// offerEntry offers one entry of a snapshot, and waits while the sink is full:
// the entries behind it lie on the wire and cost nothing, and a snapshot that
// began anew each time might never come to its end.
func (c *Client) offerEntry(ctx context.Context, generation uint64, h status.Heard) error {
	for {
		err := c.offerInOrder(generation, h)
		if !errors.Is(err, ErrFull) {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, c.cfg.Timing.Pause)
		err = c.cfg.Sink.Room(waiting)
		cancel()
		if err != nil {
			return fmt.Errorf("wait for room in the sink: %w", err)
		}
	}
}

func (c *Client) offerInOrder(generation uint64, h status.Heard) error {
	c.order.Lock()
	defer c.order.Unlock()
	if h.Version == 0 && c.generation != generation {
		return nil // nothing tells whether a later stream has said something newer
	}
	return c.cfg.Sink.Offer(h)
}

// plan says when snapshots are due.
type plan struct {
	timing     Timing
	generation uint64
	began      time.Time // of the subscription
	taken      int       // snapshots of it that succeeded
	failures   int       // in a row
	last       time.Time // when the last one that succeeded began
	asked      bool      // somebody wants one now
	silence    silence
}

func (p *plan) begin(now time.Time) {
	*p = plan{timing: p.timing, generation: p.generation, began: now}
}

// wait is the time until the next snapshot is due, if it is not yet: the
// period after the last one, or sooner if the stream stays quiet. The first
// two, one that settles a suspicion and one that somebody wants are due at once.
func (p *plan) wait(now, heard time.Time) time.Duration {
	if p.taken < 2 || p.failures > 0 || p.silence.suspect || p.asked {
		return 0
	}
	due := p.last.Add(p.timing.Every)
	if quiet := later(p.last, heard).Add(p.timing.Silence); quiet.Before(due) {
		due = quiet
	}
	return max(due.Sub(now), 0)
}

// spread adds up to a quarter, so that what was in step falls out of it.
func (p *plan) spread(d time.Duration) time.Duration {
	return d + jitter(d/8)
}

// verdict is what a look at a quiet stream's cluster shows.
type verdict int

const (
	alive   verdict = iota // nothing speaks against the stream
	suspect                // it should have spoken, or is just about to
	dead                   // it should have spoken and did not
)

// silence watches a stream that says nothing. A quiet cluster is the usual
// reason. But if two snapshots differ by a version, the cluster has sent an
// update between them; if the stream has brought nothing since before the
// first of them, and still nothing when another look shows the same, it is
// dead. Unversioned statuses prove nothing, nor does what has gone.
type silence struct {
	// record holds the versions of a snapshot taken in silence, nil if the
	// stream spoke; messages is how many it had brought when it was taken.
	record   map[status.InstanceID]uint64
	messages uint64
	suspect  bool
}

// look is what one snapshot shows.
type look struct {
	before   map[status.InstanceID]uint64
	record   map[status.InstanceID]uint64
	messages uint64
	news     int
}

// look begins one; it keeps a record only if the stream is quiet.
func (s *silence) look(messages uint64, quiet bool) look {
	l := look{messages: messages}
	if s.record != nil && s.messages == messages {
		l.before = s.record
	}
	if quiet {
		l.record = map[status.InstanceID]uint64{}
	}
	return l
}

func (l *look) see(id status.InstanceID, version uint64) {
	if version == 0 {
		return
	}
	if l.before != nil && l.before[id] != version {
		l.news++
	}
	if l.record != nil {
		l.record[id] = version
	}
}

// judge is asked when the snapshot is complete.
func (s *silence) judge(l look, messages uint64) verdict {
	switch {
	case messages != l.messages:
		*s = silence{} // it speaks
		return alive
	case l.before == nil || l.news == 0:
		*s = silence{record: l.record, messages: messages}
		return alive
	case !s.suspect:
		s.suspect = true
		return suspect
	}
	*s = silence{}
	return dead
}
