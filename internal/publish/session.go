package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/event"
)

// chunkSize is the number of messages in a round trip. 500 are about 80 KB on
// the wire: enough that the round trip does not matter, and few enough that a
// call's deadline is looked at often.
const chunkSize = 500

// probeAfter is how long a session may lie idle before it is asked whether it
// still lives. It spares a quiet system a failed call after every restart of
// Redis, and a busy one the question.
const probeAfter = time.Second

// identity is how the server knows a connection. Zero: it would not tell.
type identity struct{ id, addr string }

// session is one connection to Redis, used by one call at a time.
//
// When a call fails with messages unanswered, they may lie in the server's
// receive buffer, to be published whenever it gets there: a server that was
// stuck for a while reads old and new connections in turns. What the caller
// publishes next, repeats and newer messages, would then be followed by old
// ones. So the connection is remembered as doubtful, and before anything else
// is published the server is told to kill it, which drops what it holds.
type session struct {
	conn   *redis.Conn
	self   identity
	usedAt time.Time

	// The round trip in the making. Reused, because it is about 80 KB.
	kinds    []kind
	ends     []int // of each payload
	payloads []byte
}

// acquire returns a session on which it is safe to publish.
func (p *Publisher) acquire(ctx context.Context) (*session, error) {
	s := p.takeIdle()
	if s != nil && time.Since(s.usedAt) > probeAfter {
		if err := s.conn.Ping(ctx).Err(); err != nil {
			// Nothing was under way, so nothing is doubtful. The others are no
			// younger.
			p.discard(s)
			p.discardIdle()
			s = nil
		}
	}
	if s == nil {
		var err error
		if s, err = p.connect(ctx); err != nil {
			return nil, err
		}
	}
	if err := p.fence(ctx, s); err != nil {
		p.discard(s)
		return nil, err
	}
	return s, nil
}

func (p *Publisher) connect(ctx context.Context) (*session, error) {
	s := &session{conn: p.client.EphemeralConn()}
	// The first command also logs in. Only after it has succeeded is a refusal
	// one of the command itself.
	if err := s.conn.Ping(ctx).Err(); err != nil {
		p.discard(s)
		return nil, fmt.Errorf("connect to Redis: %w", err)
	}
	info, err := s.conn.Do(ctx, "client", "info").Text()
	switch {
	case err == nil:
		s.self = parseIdentity(info)
	case isReply(err):
		p.noFence.Do(func() {
			p.log.Warn("Redis does not tell about connections: after a failure, late messages may arrive behind newer ones", "error", err)
		})
	default:
		p.discard(s)
		return nil, fmt.Errorf("ask Redis about the connection: %w", err)
	}
	return s, nil
}

// parseIdentity reads "id=3 addr=127.0.0.1:41254 laddr=…".
func parseIdentity(info string) (self identity) {
	for field := range strings.FieldsSeq(info) {
		switch name, value, _ := strings.Cut(field, "="); name {
		case "id":
			self.id = value
		case "addr":
			self.addr = value
		}
	}
	if self.id == "" || self.addr == "" {
		return identity{}
	}
	return self
}

// fence kills the doubtful connections. Every caller kills all that it finds,
// also those that another one is about to: it may not publish before.
func (p *Publisher) fence(ctx context.Context, s *session) error {
	p.mu.Lock()
	doubtful := slices.Clone(p.doubtful)
	p.mu.Unlock()
	if len(doubtful) == 0 {
		return nil
	}
	pipe := s.conn.Pipeline()
	for _, d := range doubtful {
		// A server that has restarted counts from 1 again. The address keeps us
		// from killing a stranger, the type from ever killing a subscriber.
		pipe.ClientKillByFilter(ctx, "id", d.id, "addr", d.addr, "type", "normal")
	}
	cmds, err := pipe.Exec(ctx)
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !isReply(err) {
			return fmt.Errorf("end a doubtful connection to Redis: %w", err)
		}
	}
	if err != nil && !isReply(err) {
		return fmt.Errorf("end a doubtful connection to Redis: %w", err)
	}
	if err != nil {
		p.log.Warn("Redis refuses to end a connection that failed: late messages may arrive behind newer ones", "error", err)
	}
	p.mu.Lock()
	p.doubtful = slices.DeleteFunc(p.doubtful, func(d identity) bool { return slices.Contains(doubtful, d) })
	p.mu.Unlock()
	return nil
}

// release keeps s for the next call.
func (p *Publisher) release(s *session) {
	s.usedAt = time.Now()
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.idle = append(p.idle, s)
	}
	p.mu.Unlock()
	if closed {
		p.discard(s)
	}
}

// abandon is for a session that failed with messages under way.
func (p *Publisher) abandon(s *session) {
	if s.self != (identity{}) {
		p.mu.Lock()
		p.doubtful = append(p.doubtful, s.self)
		p.mu.Unlock()
	}
	p.discard(s)
	p.discardIdle()
}

func (p *Publisher) takeIdle() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	s := p.idle[last]
	p.idle = slices.Delete(p.idle, last, last+1)
	return s
}

func (p *Publisher) discardIdle() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, s := range idle {
		p.discard(s)
	}
}

func (p *Publisher) discard(s *session) {
	// What closing a given-up connection has to say helps nobody.
	_ = s.conn.Close()
}

// load takes the next messages for a round trip, and says whether there were any.
func (s *session) load(from *cursor) bool {
	s.kinds, s.ends, s.payloads = s.kinds[:0], s.ends[:0], s.payloads[:0]
	for len(s.kinds) < chunkSize {
		payloads, k, ok := from.next(s.payloads)
		if !ok {
			break
		}
		s.payloads = payloads
		s.kinds = append(s.kinds, k)
		s.ends = append(s.ends, len(payloads))
	}
	return len(s.kinds) > 0
}

// send makes the round trip and adds to taken what Redis answered for. Broken
// says that answers are missing, so that the session is not to be used again.
func (s *session) send(ctx context.Context, taken *tally) (broken bool, err error) {
	pipe := s.conn.Pipeline()
	start := 0
	for i, k := range s.kinds {
		pipe.Publish(ctx, k.channel(), s.payloads[start:s.ends[i]])
		start = s.ends[i]
	}
	cmds, execErr := pipe.Exec(ctx)
	var answered tally
	for i, cmd := range cmds {
		cmdErr := cmd.Err()
		if cmdErr == nil {
			answered[s.kinds[i]]++
			continue
		}
		broken = broken || !isReply(cmdErr)
		if err == nil {
			err = cmdErr
		}
	}
	if err == nil && execErr != nil {
		// The driver did not come as far as the commands.
		return true, execErr
	}
	for k := range kinds {
		taken[k] += answered[k]
	}
	return broken, err
}

// isReply says whether err is an answer of the server, which leaves the
// connection in order.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// cursor walks through the messages in the order in which they are published:
// set by set, first the instances, then what their prebuilds have to say.
type cursor struct {
	sets  []event.Set
	kind  kind
	index int
}

// next appends the next message to b. At the end ok is false.
func (c *cursor) next(b []byte) (_ []byte, k kind, ok bool) {
	for len(c.sets) > 0 {
		set, k, i := &c.sets[0], c.kind, c.index
		c.index++
		switch {
		case k == kindInstance && i < len(set.Instances):
			return appendInstance(b, &set.Instances[i]), k, true
		case k == kindHeadless && i < len(set.Headless):
			return appendHeadless(b, &set.Headless[i]), k, true
		case k == kindPrebuild && i < len(set.Prebuilds):
			return appendPrebuild(b, &set.Prebuilds[i]), k, true
		}
		c.kind, c.index = k+1, 0
		if c.kind == kinds {
			c.sets, c.kind = c.sets[1:], 0
		}
	}
	return b, 0, false
}
