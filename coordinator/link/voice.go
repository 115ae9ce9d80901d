package link

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// voice says what this replica has to say, in keys under its lease. It compares
// what is to be said with what the store shows and writes the difference, so
// after a new lease, or a store that was lost or restored, all is said again.
type voice struct {
	l    *Link
	wake chan struct{}

	// mu guards what follows.
	mu     sync.Mutex
	says   map[string]string
	silent bool
}

func newVoice(l *Link) *voice {
	return &voice{l: l, wake: make(chan struct{}, 1), says: make(map[string]string)}
}

func (s *voice) set(key string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.says[key] != string(value) {
		s.says[key] = string(value)
		poke(s.wake)
	}
}

func (s *voice) unset(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, said := s.says[key]; said {
		delete(s.says, key)
		poke(s.wake)
	}
}

// answer takes changed answers; an empty one is taken back.
func (s *voice) answer(fresh map[shard.ID]table.Answer) {
	for id, a := range fresh {
		key := s.l.cfg.Layout.Answer(s.l.cfg.Incarnation, id)
		if a == (table.Answer{}) {
			s.unset(key)
		} else {
			s.set(key, table.Encode(a))
		}
	}
}

// hush says nothing more.
func (s *voice) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

func (s *voice) run(ctx context.Context) error {
	// pending is the revision of our last write of a key.
	pending := make(map[string]int64)
	for ctx.Err() == nil {
		lease, _ := s.l.lease.current()
		ops := s.difference(lease, pending)
		if len(ops) == 0 {
			wait(ctx, time.Second, s.wake)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, s.l.cfg.Timing.Call)
		result, err := s.l.Txn(limited, nil, ops)
		cancel()
		switch {
		case err == nil:
			for _, op := range ops {
				pending[op.Key] = result.Revision
			}
		case errors.Is(err, kv.ErrNoLease):
			s.l.lease.gone(lease)
		case ctx.Err() == nil:
			s.l.cfg.Logger.Warn("what this replica has to say cannot be written", "error", err)
			wait(ctx, jitter(300*time.Millisecond), nil)
		}
	}
	return nil
}

// difference is what is to be written, in the order of keys: answers come before
// the member that they are of, so that whoever sees it come back knows at once
// what it holds.
func (s *voice) difference(lease kv.LeaseID, pending map[string]int64) (ops []kv.Op) {
	s.mu.Lock()
	says, silent := maps.Clone(s.says), s.silent
	s.mu.Unlock()
	if lease == 0 || silent {
		return nil
	}
	s.l.mirror.look(func(v *table.View) {
		if v.Revision == 0 {
			return
		}
		for key := range v.Mine {
			if _, said := says[key]; !said && pending[key] <= v.Revision {
				ops = append(ops, kv.Delete(key))
			}
		}
		for key, value := range says {
			stored, shown := v.Mine[key]
			if shown && stored.Lease == lease && string(stored.Value) == value {
				delete(pending, key)
				continue
			}
			if pending[key] > v.Revision {
				continue // on its way
			}
			ops = append(ops, kv.Put(key, []byte(value), lease))
		}
	})
	slices.SortFunc(ops, func(a, b kv.Op) int { return strings.Compare(a.Key, b.Key) })
	return ops[:min(len(ops), kv.MaxOps)]
}
