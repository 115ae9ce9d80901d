// Package kvtest holds a store for tests, in memory and able to fail at will,
// and the suite of habits that it shares with the real one. It works inside a
// testing/synctest bubble: all its time is that of package time.
package kvtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
)

// ErrAway is what a store says that cannot be reached, or whose answer is lost.
var ErrAway = errors.New("the store cannot be reached")

// Fake is the server. Each client of it (Client) fails by itself.
type Fake struct {
	// mu guards what follows.
	mu        sync.Mutex
	revision  int64
	compacted int64
	items     map[string]kv.Item
	history   []kv.Event
	leases    map[kv.LeaseID]*fakeLease
	lastLease kv.LeaseID
	down      bool
	// changed is closed and replaced at every change, and when the server goes
	// away or is wiped.
	changed chan struct{}
	// oracle is told of each write before it is carried out.
	oracle func(who Faults, stored map[string]kv.Item, ops []kv.Op)
}

type fakeLease struct {
	ttl    time.Duration
	expiry *time.Timer
	until  time.Time
}

// New makes an empty store.
func New() *Fake {
	return &Fake{
		revision: 1,
		items:    make(map[string]kv.Item),
		leases:   make(map[kv.LeaseID]*fakeLease),
		changed:  make(chan struct{}),
	}
}

func (f *Fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Observe has an oracle told of each write of a client before it is carried out;
// it must not keep what it is given.
func (f *Fake) Observe(oracle func(who Faults, stored map[string]kv.Item, ops []kv.Op)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.oracle = oracle
}

// Stop makes the server unreachable. Leases expire no sooner than a whole time
// to live after Start, as with etcd after an election.
func (f *Fake) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = true
	for _, l := range f.leases {
		l.expiry.Stop()
	}
	f.wake()
}

// Start undoes Stop.
func (f *Fake) Start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.down {
		return
	}
	f.down = false
	for id := range f.leases {
		f.renew(id)
	}
	f.wake()
}

// Wipe forgets everything, revisions included.
func (f *Fake) Wipe() { f.Restore(Snapshot{items: map[string]kv.Item{}, revision: 1}) }

// Snapshot is an old copy of the store.
type Snapshot struct {
	items    map[string]kv.Item
	revision int64
	leases   map[kv.LeaseID]time.Duration
}

// Snapshot copies the store.
func (f *Fake) Snapshot() Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Snapshot{items: maps.Clone(f.items), revision: f.revision, leases: map[kv.LeaseID]time.Duration{}}
	for id, l := range f.leases {
		s.leases[id] = l.ttl
	}
	return s
}

// Restore puts an old copy in the store's place. Watches begun before stay
// open and silent until the revision passes theirs, as etcd's do when they are
// taken up again.
func (f *Fake) Restore(s Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leases {
		l.expiry.Stop()
	}
	f.items, f.revision, f.compacted, f.history = maps.Clone(s.items), s.revision, s.revision, nil
	f.leases = make(map[kv.LeaseID]*fakeLease)
	for id, ttl := range s.leases {
		f.begin(id, ttl)
	}
	f.wake()
}

// Compact forgets the history.
func (f *Fake) Compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compacted, f.history = f.revision, nil
	f.wake()
}

// Expire ends all leases that match at once.
func (f *Fake) Expire(match func(kv.LeaseID) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(f.leases)) {
		if match == nil || match(id) {
			f.end(id)
		}
	}
}

func (f *Fake) begin(id kv.LeaseID, ttl time.Duration) {
	l := &fakeLease{ttl: ttl, until: time.Now().Add(ttl)}
	f.leases[id] = l
	l.expiry = time.AfterFunc(ttl, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.down && f.leases[id] == l && !time.Now().Before(l.until) {
			f.end(id)
		}
	})
	if f.down {
		l.expiry.Stop()
	}
}

func (f *Fake) renew(id kv.LeaseID) {
	l := f.leases[id]
	l.until = time.Now().Add(l.ttl)
	l.expiry.Reset(l.ttl)
}

func (f *Fake) end(id kv.LeaseID) {
	f.leases[id].expiry.Stop()
	delete(f.leases, id)
	var ops []kv.Op
	for _, key := range slices.Sorted(maps.Keys(f.items)) {
		if f.items[key].Lease == id {
			ops = append(ops, kv.Delete(key))
		}
	}
	f.apply(ops)
}

func (f *Fake) apply(ops []kv.Op) {
	if len(ops) == 0 {
		return
	}
	f.revision++
	changed := false
	for _, op := range ops {
		old, exists := f.items[op.Key]
		switch {
		case op.Delete && !exists:
			continue
		case op.Delete:
			delete(f.items, op.Key)
			f.history = append(f.history, kv.Event{Item: kv.Item{Key: op.Key, Mod: f.revision}, Deleted: true})
		default:
			it := kv.Item{Key: op.Key, Value: slices.Clone(op.Value), Create: f.revision, Mod: f.revision, Lease: op.Lease}
			if exists {
				it.Create = old.Create
			}
			f.items[op.Key] = it
			f.history = append(f.history, kv.Event{Item: it})
		}
		changed = true
	}
	if !changed {
		f.revision--
		return
	}
	f.wake()
}

func (f *Fake) holds(g kv.Guard) bool {
	it, exists := f.items[g.Key]
	switch g.Kind {
	case kv.GuardCreated:
		return it.Create == g.Revision
	case kv.GuardModified:
		return it.Mod == g.Revision
	default:
		return exists && string(it.Value) == string(g.Value)
	}
}

// Faults of one client. It is asked before a call reaches the server and
// before its answer reaches the client; it may wait, and an error loses what
// passes. Nil is a client without faults.
type Faults interface {
	Request(ctx context.Context, what string) error
	Answer(ctx context.Context, what string) error
}

// Client is one client's view of the store.
func (f *Fake) Client(faults Faults) kv.Store { return &client{f, faults} }

type client struct {
	f      *Fake
	faults Faults
}

// call runs do on the server, unless it is away.
func (c *client) call(ctx context.Context, what string, do func(f *Fake) error) error {
	if c.faults != nil {
		if err := c.faults.Request(ctx, what); err != nil {
			return err
		}
	}
	// A request that was sent is carried out, however late it comes and whoever
	// still waits for the answer.
	c.f.mu.Lock()
	err := ErrAway
	if !c.f.down {
		err = do(c.f)
	}
	c.f.mu.Unlock()
	if c.faults != nil && !errors.Is(err, ErrAway) {
		if lost := c.faults.Answer(ctx, what); lost != nil {
			return lost
		}
	}
	return err
}

func (c *client) List(ctx context.Context, prefix string) (items []kv.Item, revision int64, err error) {
	err = c.call(ctx, "list", func(f *Fake) error {
		revision = f.revision
		for _, key := range slices.Sorted(maps.Keys(f.items)) {
			if strings.HasPrefix(key, prefix) {
				items = append(items, f.items[key])
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return items, revision, nil
}

func (c *client) Txn(ctx context.Context, guards []kv.Guard, ops []kv.Op) (kv.Result, error) {
	var result kv.Result
	if len(guards) > kv.MaxOps || len(ops) > kv.MaxOps {
		return kv.Result{}, errors.New("too many operations")
	}
	err := c.call(ctx, "txn", func(f *Fake) error {
		seen := map[string]bool{}
		for _, op := range ops {
			if seen[op.Key] {
				return errors.New("a key is written twice")
			}
			seen[op.Key] = true
		}
		result.OK = !slices.ContainsFunc(guards, func(g kv.Guard) bool { return !f.holds(g) })
		if result.OK {
			for _, op := range ops {
				if _, lives := f.leases[op.Lease]; op.Lease != 0 && !lives {
					return kv.ErrNoLease
				}
			}
			if f.oracle != nil {
				f.oracle(c.faults, f.items, ops)
			}
			f.apply(ops)
		}
		result.Revision = f.revision
		return nil
	})
	if err != nil {
		return kv.Result{}, err
	}
	return result, nil
}

func (c *client) Grant(ctx context.Context, ttl time.Duration) (id kv.LeaseID, _ time.Duration, err error) {
	ttl = max(ttl, time.Second)
	err = c.call(ctx, "grant", func(f *Fake) error {
		f.lastLease++
		id = f.lastLease
		f.begin(id, ttl)
		return nil
	})
	return id, ttl, err
}

func (c *client) KeepAlive(ctx context.Context, id kv.LeaseID) (ttl time.Duration, err error) {
	err = c.call(ctx, "keepalive", func(f *Fake) error {
		l, lives := f.leases[id]
		if !lives {
			return kv.ErrNoLease
		}
		ttl = l.ttl
		f.renew(id)
		return nil
	})
	return ttl, err
}

func (c *client) Revoke(ctx context.Context, id kv.LeaseID) error {
	return c.call(ctx, "revoke", func(f *Fake) error {
		if _, lives := f.leases[id]; !lives {
			return kv.ErrNoLease
		}
		f.end(id)
		return nil
	})
}

func (c *client) Watch(ctx context.Context, prefix string, from int64) <-chan kv.Batch {
	out := make(chan kv.Batch)
	go func() {
		defer close(out)
		next := from
		for {
			batch, changed := c.f.since(prefix, next)
			if batch.Err == nil && len(batch.Events) == 0 {
				select {
				case <-changed:
					continue
				case <-ctx.Done():
					return
				}
			}
			if c.faults != nil {
				if err := c.faults.Answer(ctx, "watch"); err != nil {
					if ctx.Err() != nil {
						return
					}
					batch = kv.Batch{Err: err}
				}
			}
			select {
			case out <- batch:
			case <-ctx.Done():
				return
			}
			if batch.Err != nil {
				return
			}
			next = batch.Revision + 1
		}
	}()
	return out
}

// since gives the changes from a revision on; while the server is away or the
// revision is still to come there are none.
func (f *Fake) since(prefix string, from int64) (kv.Batch, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || from > f.revision {
		return kv.Batch{}, f.changed
	}
	if from <= f.compacted {
		return kv.Batch{Err: kv.ErrCompacted}, f.changed
	}
	var batch kv.Batch
	for _, e := range f.history {
		if e.Mod >= from && strings.HasPrefix(e.Key, prefix) {
			batch.Events = append(batch.Events, e)
			batch.Revision = e.Mod
		}
	}
	return batch, f.changed
}
