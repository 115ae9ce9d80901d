package api

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
)

const (
	// maxWatching bounds those who watch, each of whom remembers what it was
	// told.
	maxWatching = 32
	// maxTold is how many shards one message tells, so that it stays far below
	// what clients take.
	maxTold = 500
	// coalesce is how long changes gather before they are told.
	coalesce = 200 * time.Millisecond
	// lookAgain is how often those who watch look unasked: nothing tells that a
	// pin has lapsed, or that this replica was cut off.
	lookAgain = time.Second
)

// look is all shards as they were at one time. It is not changed any more, nor
// are the shards: they are told to many at once.
type look struct {
	at       time.Time
	changed  <-chan struct{} // closed when there is more to see
	known    bool
	detached bool
	shards   []*trestlev1.Shard
	byID     map[string]*trestlev1.Shard
	clusters func(string) error // whether a cluster exists
}

// looks gives the look of the moment to all who watch, so that a change costs
// one look and not one for each of them. A shard that has not changed from one
// look to the next is the same message in both.
type looks struct {
	fleet Fleet
	// mu guards last. Under it the state is read and converted, which waits for
	// nobody.
	mu   sync.Mutex
	last *look
}

// now gives the last look if that is fresh, or if nothing has changed and it is
// not old. Whoever gets one that has been overtaken finds its changed closed.
func (l *looks) now() *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil {
		fresh := coalesce / 2
		select {
		case <-l.last.changed:
		default:
			fresh = lookAgain / 2
		}
		if time.Since(l.last.at) < fresh {
			return l.last
		}
	}
	state, changed := l.fleet.State()
	next := &look{
		at: time.Now(), changed: changed, known: state.Known, detached: state.Detached,
		shards: make([]*trestlev1.Shard, 0, len(state.Shards)), byID: make(map[string]*trestlev1.Shard, len(state.Shards)),
		clusters: func(name string) error { return clusterExists(state, name) },
	}
	convert := newConverter(state, next.at)
	for i := range state.Shards {
		sh := convert.shard(&state.Shards[i])
		if l.last != nil {
			if before := l.last.byID[sh.GetId()]; before != nil && proto.Equal(before, sh) {
				sh = before
			}
		}
		next.shards = append(next.shards, sh)
		next.byID[sh.GetId()] = sh
	}
	l.last = next
	return next
}

// WatchShards tells all shards, and then those that change. It looks anew only
// when what it has to tell is on its way, so a slow client gets what is newest
// when its turn comes.
func (s *shardService) WatchShards(r *trestlev1.WatchShardsRequest, stream grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]) error {
	if r.GetCluster() != "" {
		if err := checkText("cluster", r.GetCluster(), maxNameBytes); err != nil {
			return err
		}
	}
	select {
	case s.seats <- struct{}{}:
		defer func() { <-s.seats }()
	default:
		return errTooManyWatch
	}
	seen := s.looks.now()
	if !seen.known {
		return errUnread
	}
	if r.GetCluster() != "" {
		if err := seen.clusters(r.GetCluster()); err != nil {
			return err
		}
	}
	w := watch{cluster: r.GetCluster(), stream: stream, told: make(map[string]*trestlev1.Shard)}
	for {
		if err := w.tell(seen); err != nil {
			return err
		}
		if err := s.pause(stream.Context(), seen.changed, lookAgain*9/10+rand.N(lookAgain/5)); err != nil {
			return err
		}
		if err := s.pause(stream.Context(), nil, coalesce); err != nil {
			return err
		}
		seen = s.looks.now()
	}
}

// pause waits for so long, or until something has changed.
func (s *shardService) pause(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-changed:
	case <-over.C:
	case <-s.stopping:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// watch is one client, and what it was told.
type watch struct {
	cluster  string // "" for all
	stream   grpc.ServerStreamingServer[trestlev1.WatchShardsResponse]
	begun    bool
	told     map[string]*trestlev1.Shard
	detached bool
}

// tell sends what the client does not know yet, if there is any.
func (w *watch) tell(seen *look) error {
	var fresh []*trestlev1.Shard
	there := 0
	for _, sh := range seen.shards {
		if w.cluster != "" && sh.GetCluster() != w.cluster {
			continue
		}
		there++
		if w.told[sh.GetId()] != sh {
			fresh = append(fresh, sh)
		}
	}
	for _, sh := range fresh {
		w.told[sh.GetId()] = sh
	}
	var removed []string
	if len(w.told) > there {
		for id := range w.told {
			if seen.byID[id] == nil {
				removed = append(removed, id)
				delete(w.told, id)
			}
		}
	}
	if w.begun && len(fresh) == 0 && len(removed) == 0 && w.detached == seen.detached {
		return nil
	}
	w.detached = seen.detached
	for more := true; more; {
		m := &trestlev1.WatchShardsResponse{Initial: !w.begun, Detached: seen.detached}
		w.begun = true
		m.Shards, fresh = fresh[:min(maxTold, len(fresh))], fresh[min(maxTold, len(fresh)):]
		m.Removed, removed = removed[:min(maxTold, len(removed))], removed[min(maxTold, len(removed)):]
		more = len(fresh) > 0 || len(removed) > 0
		m.More = more
		if err := w.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}
