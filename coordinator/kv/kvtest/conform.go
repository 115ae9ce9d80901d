package kvtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
)

// Server is what the suite needs of a store beside its clients.
type Server struct {
	Store kv.Store
	// Compact forgets the history up to now.
	Compact func(t *testing.T)
}

// Conform holds a store to the habits that the coordinator relies on. start is
// called once a test, and gives a store whose keys below prefix are free.
func Conform(t *testing.T, start func(t *testing.T) (s Server, prefix string)) {
	for name, test := range map[string]func(*testing.T, Server, string){
		"write and list":        conformList,
		"guards":                conformGuards,
		"all or nothing":        conformAtomic,
		"limits":                conformLimits,
		"leases":                conformLeases,
		"lease changes hands":   conformLeaseChange,
		"lease expires":         conformExpiry,
		"watch":                 conformWatch,
		"watch of the past":     conformPast,
		"watch after compacted": conformCompacted,
		"watch ends":            conformWatchEnds,
	} {
		t.Run(name, func(t *testing.T) {
			s, prefix := start(t)
			test(t, s, prefix)
		})
	}
}

func write(t *testing.T, s kv.Store, ops ...kv.Op) int64 {
	t.Helper()
	result, err := s.Txn(t.Context(), nil, ops)
	if err != nil || !result.OK {
		t.Fatalf("write: %+v, %v", result, err)
	}
	return result.Revision
}

func conformList(t *testing.T, s Server, p string) {
	first := write(t, s.Store, kv.Put(p+"b", []byte("1"), 0), kv.Put(p+"a", []byte("2"), 0))
	second := write(t, s.Store, kv.Put(p+"b", []byte("3"), 0))
	items, revision, err := s.Store.List(t.Context(), p)
	if err != nil || revision < second || len(items) != 2 {
		t.Fatalf("list: %v, %d, %v", items, revision, err)
	}
	a, b := items[0], items[1]
	if a.Key != p+"a" || string(a.Value) != "2" || a.Create != first || a.Mod != first {
		t.Errorf("a is %+v, written at %d", a, first)
	}
	if b.Key != p+"b" || string(b.Value) != "3" || b.Create != first || b.Mod != second {
		t.Errorf("b is %+v, written at %d and %d", b, first, second)
	}
	write(t, s.Store, kv.Delete(p+"a"), kv.Delete(p+"never"))
	third := write(t, s.Store, kv.Put(p+"a", nil, 0))
	items, _, err = s.Store.List(t.Context(), p+"a")
	if err != nil || len(items) != 1 || items[0].Create != third {
		t.Errorf("written anew at %d: %+v, %v", third, items, err)
	}
}

func conformGuards(t *testing.T, s Server, p string) {
	created := write(t, s.Store, kv.Put(p+"a", []byte("x"), 0))
	modified := write(t, s.Store, kv.Put(p+"a", []byte("y"), 0))
	for _, c := range []struct {
		guard kv.Guard
		holds bool
	}{
		{kv.Created(p+"a", created), true},
		{kv.Created(p+"a", modified), false},
		{kv.Created(p+"a", 0), false},
		{kv.Created(p+"none", 0), true},
		{kv.Created(p+"none", created), false},
		{kv.Modified(p+"a", modified), true},
		{kv.Modified(p+"a", created), false},
		{kv.Modified(p+"none", 0), true},
		{kv.Equal(p+"a", []byte("y")), true},
		{kv.Equal(p+"a", []byte("x")), false},
		{kv.Equal(p+"none", nil), false},
	} {
		result, err := s.Store.Txn(t.Context(), []kv.Guard{c.guard}, []kv.Op{kv.Put(p+"other", nil, 0)})
		if err != nil || result.OK != c.holds || result.Revision < modified {
			t.Errorf("%+v: %+v, %v", c.guard, result, err)
		}
	}
}

func conformAtomic(t *testing.T, s Server, p string) {
	guards := []kv.Guard{kv.Created(p+"a", 0), kv.Created(p+"b", 99)}
	result, err := s.Store.Txn(t.Context(), guards, []kv.Op{kv.Put(p+"a", nil, 0), kv.Put(p+"b", nil, 0)})
	if err != nil || result.OK {
		t.Fatalf("one guard of two holds: %+v, %v", result, err)
	}
	_, err = s.Store.Txn(t.Context(), nil, []kv.Op{kv.Put(p+"a", nil, 0), kv.Put(p+"b", nil, 1<<40)})
	if !errors.Is(err, kv.ErrNoLease) {
		t.Fatalf("a put under a lease that never was: %v", err)
	}
	if items, _, err := s.Store.List(t.Context(), p); err != nil || len(items) != 0 {
		t.Errorf("half of it was written: %v, %v", items, err)
	}
}

func conformLimits(t *testing.T, s Server, p string) {
	var ops []kv.Op
	var guards []kv.Guard
	for i := range kv.MaxOps {
		key := fmt.Sprint(p, i)
		ops, guards = append(ops, kv.Put(key, nil, 0)), append(guards, kv.Created(key, 0))
	}
	if result, err := s.Store.Txn(t.Context(), guards, ops); err != nil || !result.OK {
		t.Errorf("%d operations: %+v, %v", len(ops), result, err)
	}
	ops = append(ops, kv.Put(p+"more", nil, 0))
	if _, err := s.Store.Txn(t.Context(), nil, ops); err == nil {
		t.Errorf("%d operations were taken", len(ops))
	}
	if _, err := s.Store.Txn(t.Context(), nil, []kv.Op{kv.Put(p+"a", nil, 0), kv.Put(p+"a", nil, 0)}); err == nil {
		t.Errorf("a key was written twice")
	}
}

func conformLeases(t *testing.T, s Server, p string) {
	lease, ttl, err := s.Store.Grant(t.Context(), time.Minute)
	if err != nil || lease == 0 || ttl < time.Minute {
		t.Fatalf("grant: %d, %v, %v", lease, ttl, err)
	}
	write(t, s.Store, kv.Put(p+"a", nil, lease), kv.Put(p+"b", nil, 0))
	items, _, err := s.Store.List(t.Context(), p)
	if err != nil || len(items) != 2 || items[0].Lease != lease || items[1].Lease != 0 {
		t.Errorf("leases of %+v, %v", items, err)
	}
	if ttl, err := s.Store.KeepAlive(t.Context(), lease); err != nil || ttl < time.Minute {
		t.Errorf("keep alive: %v, %v", ttl, err)
	}
	if err := s.Store.Revoke(t.Context(), lease); err != nil {
		t.Errorf("revoke: %v", err)
	}
	if items, _, err := s.Store.List(t.Context(), p); err != nil || len(items) != 1 {
		t.Errorf("after the lease: %v, %v", items, err)
	}
	if _, err := s.Store.KeepAlive(t.Context(), lease); !errors.Is(err, kv.ErrNoLease) {
		t.Errorf("keep a dead lease alive: %v", err)
	}
	if err := s.Store.Revoke(t.Context(), lease); !errors.Is(err, kv.ErrNoLease) {
		t.Errorf("revoke a dead lease: %v", err)
	}
}

func conformLeaseChange(t *testing.T, s Server, p string) {
	old, _, err := s.Store.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	lease, _, err := s.Store.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.Store, kv.Put(p+"a", nil, old), kv.Put(p+"b", nil, old), kv.Put(p+"c", nil, old))
	write(t, s.Store, kv.Put(p+"a", nil, lease), kv.Put(p+"b", nil, 0))
	if err := s.Store.Revoke(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	items, _, err := s.Store.List(t.Context(), p)
	if err != nil || len(items) != 2 {
		t.Errorf("keys that were taken off the lease are %v, %v", items, err)
	}
	if err := s.Store.Revoke(t.Context(), lease); err != nil {
		t.Error(err)
	}
}

func conformExpiry(t *testing.T, s Server, p string) {
	lease, _, err := s.Store.Grant(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	at := write(t, s.Store, kv.Put(p+"a", nil, lease))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for batch := range s.Store.Watch(ctx, p, at+1) {
		for _, e := range batch.Events {
			if e.Deleted && e.Key == p+"a" && e.Mod > at {
				return
			}
			t.Errorf("%+v", e)
		}
	}
	t.Error("the lease did not expire")
}

// collect reads events until there are n of them.
func collect(t *testing.T, changes <-chan kv.Batch, n int) []kv.Event {
	t.Helper()
	var events []kv.Event
	for len(events) < n {
		batch, open := <-changes
		if !open || batch.Err != nil {
			t.Fatalf("the watch ended: %v, after %v", batch.Err, events)
		}
		events = append(events, batch.Events...)
		if len(batch.Events) > 0 && batch.Revision != events[len(events)-1].Mod {
			t.Errorf("revision %d after %+v", batch.Revision, events[len(events)-1])
		}
	}
	return events
}

func conformWatch(t *testing.T, s Server, p string) {
	_, revision, err := s.Store.List(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	changes := s.Store.Watch(ctx, p, revision+1)
	write(t, s.Store, kv.Put(p+"a", []byte("1"), 0))
	write(t, s.Store, kv.Put(p+"b", []byte("2"), 0), kv.Delete(p+"a"))
	events := collect(t, changes, 3)
	if e := events[0]; e.Key != p+"a" || string(e.Value) != "1" || e.Create != e.Mod || e.Deleted {
		t.Errorf("first %+v", e)
	}
	byKey := map[string]kv.Event{events[1].Key: events[1], events[2].Key: events[2]}
	if e := byKey[p+"b"]; string(e.Value) != "2" || e.Deleted || e.Mod != events[0].Mod+1 {
		t.Errorf("b %+v", e)
	}
	if e := byKey[p+"a"]; !e.Deleted || e.Mod != events[0].Mod+1 {
		t.Errorf("a %+v", e)
	}
}

func conformPast(t *testing.T, s Server, p string) {
	at := write(t, s.Store, kv.Put(p+"a", []byte("1"), 0))
	write(t, s.Store, kv.Put(p+"a", []byte("2"), 0))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events := collect(t, s.Store.Watch(ctx, p, at), 2)
	if string(events[0].Value) != "1" || string(events[1].Value) != "2" {
		t.Errorf("%+v", events)
	}
}

func conformCompacted(t *testing.T, s Server, p string) {
	at := write(t, s.Store, kv.Put(p+"a", []byte("1"), 0))
	write(t, s.Store, kv.Put(p+"a", []byte("2"), 0))
	s.Compact(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	changes := s.Store.Watch(ctx, p, at)
	batch := <-changes
	if !errors.Is(batch.Err, kv.ErrCompacted) {
		t.Errorf("watch of what was compacted: %+v", batch)
	}
	if batch, open := <-changes; open {
		t.Errorf("and then %+v", batch)
	}
	items, revision, err := s.Store.List(ctx, p)
	if err != nil || len(items) != 1 || string(items[0].Value) != "2" {
		t.Fatalf("what stands after it was compacted: %v, %v", items, err)
	}
	changes = s.Store.Watch(ctx, p, revision+1)
	write(t, s.Store, kv.Put(p+"a", []byte("3"), 0))
	if e := collect(t, changes, 1)[0]; string(e.Value) != "3" {
		t.Errorf("%+v", e)
	}
}

func conformWatchEnds(t *testing.T, s Server, p string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// From now on: what was before may have been compacted.
	_, revision, err := s.Store.List(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	changes := s.Store.Watch(ctx, p, revision+1)
	cancel()
	for batch := range changes {
		if batch.Err != nil {
			t.Errorf("%+v", batch)
		}
	}
}
