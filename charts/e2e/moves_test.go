package e2e

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/loadtest/ledger"
)

// waited is a change that was followed by a publish.
type waited struct {
	cluster         int
	sent, published time.Time
}

// move is when a shard's next owner began to write.
type move struct {
	cluster int
	at      time.Time
}

// story is what happened to updates and shards. Its methods may be called at
// once.
type story struct {
	mu     sync.Mutex // guards what follows
	waited []waited
	moves  []move
	epochs map[string]int64
}

func (s *story) heard(cluster int, at time.Time, followed []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, after := range followed {
		s.waited = append(s.waited, waited{cluster, at.Add(-after), at})
	}
}

// begin forgets everything.
func (s *story) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waited, s.moves, s.epochs = nil, nil, make(map[string]int64)
}

// raised records a fence; the first of a shard is no move.
func (s *story) raised(cluster int, shard string, epoch int64, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, known := s.epochs[shard]; known && epoch != before {
		s.moves = append(s.moves, move{cluster, at})
	}
	s.epochs[shard] = epoch
}

// watch looks at the fences until ctx ends: a raised one is the moment from which
// a new owner writes.
func (w *world) watch(ctx context.Context) error {
	for {
		rows, err := w.db.Query(ctx, `SELECT cluster, shard, epoch, extract(epoch FROM clock_timestamp() - updated_at)::float8 FROM trestle_fence WHERE starts_with(cluster, $1)`, w.prefix+"-")
		if err == nil {
			var cluster, shard string
			var epoch int64
			var age float64
			for rows.Next() {
				if err = rows.Scan(&cluster, &shard, &epoch, &age); err != nil {
					break
				}
				number, bad := strconv.Atoi(strings.TrimPrefix(cluster, w.prefix+"-"))
				if bad != nil {
					err = bad
					break
				}
				w.story.raised(number, shard, epoch, time.Now().Add(-time.Duration(age*float64(time.Second))))
			}
			rows.Close()
			err = cmp.Or(err, rows.Err())
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("look at the fences: %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}

// An update is of a moving shard if it was sent within this time of its move. The
// old owner leaves the stream just before the next one writes; what is more than
// that costs nothing but company for those that were late.
const (
	beforeMove = 3 * time.Second
	afterMove  = time.Second
)

// latencies are of the updates sent in a time: of all, of those for shards that
// moved just then, and of those for shards that stayed meanwhile.
type latencies struct {
	all, moving, staying ledger.Histogram
	moves                map[int]int // of each cluster
}

func (s *story) during(from, until time.Time) *latencies {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &latencies{moves: make(map[int]int)}
	var moves []move
	for _, m := range s.moves {
		if m.at.After(from) && m.at.Before(until) {
			moves = append(moves, m)
			l.moves[m.cluster]++
		}
	}
	for _, x := range s.waited {
		if x.sent.Before(from) || !x.sent.Before(until) {
			continue
		}
		took := x.published.Sub(x.sent)
		l.all.Add(took)
		near := func(m move) bool { return x.sent.After(m.at.Add(-beforeMove)) && x.sent.Before(m.at.Add(afterMove)) }
		switch {
		case slices.ContainsFunc(moves, func(m move) bool { return m.cluster == x.cluster && near(m) }):
			l.moving.Add(took)
		case slices.ContainsFunc(moves, near):
			l.staying.Add(took)
		}
	}
	return l
}
