// Package kv is what the coordinator needs of etcd: keys with revisions and
// leases, guarded writes and watches. Everything that the control plane stores
// passes through Store, so that it can run on a store that lives in memory and
// fails at will (kvtest); one conformance suite holds both to the same habits.
//
// Invariants:
//   - A write happens as a whole or not at all, and only if all its guards hold.
//   - A watch delivers every change after the revision that it began at, in
//     order, or ends with an error.
//   - After an error of a write, whether it happened is not known.
//
// Owner: the coordinator.
package kv

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrCompacted ends a watch whose next changes the store has forgotten.
	ErrCompacted = errors.New("the history asked for has been compacted")
	// ErrNoLease is the error of a lease that has expired or never was.
	ErrNoLease = errors.New("the lease does not exist")
)

// MaxOps is how many guards and how many operations one Txn may have: etcd's
// default limit.
const MaxOps = 128

// LeaseID names a lease; 0 is none.
type LeaseID int64

// Item is one key.
type Item struct {
	Key   string
	Value []byte
	// Create is the revision at which the key came into being, Mod that of its
	// last change.
	Create, Mod int64
	// Lease is that of the key, 0 for none.
	Lease LeaseID
}

// Event is one change of a key; of a deleted one only Key and Mod are set.
type Event struct {
	Item
	Deleted bool
}

// Batch is what a watch delivers. Its last one has Err, or ends with its
// context.
type Batch struct {
	Events []Event
	// Revision is the one up to which the watch has told everything.
	Revision int64
	Err      error
}

// GuardKind says what a Guard compares.
type GuardKind int

const (
	// GuardCreated compares the revision of creation; 0 = the key is absent.
	GuardCreated GuardKind = iota
	// GuardModified compares the revision of the last change; 0 = absent.
	GuardModified
	// GuardValue compares the value; an absent key never equals.
	GuardValue
)

// Guard is a condition of a write.
type Guard struct {
	Kind     GuardKind
	Key      string
	Revision int64
	Value    []byte
}

// Created holds while the key's revision of creation is the given one.
func Created(key string, revision int64) Guard {
	return Guard{Kind: GuardCreated, Key: key, Revision: revision}
}

// Modified holds while nobody has changed the key since the given revision.
func Modified(key string, revision int64) Guard {
	return Guard{Kind: GuardModified, Key: key, Revision: revision}
}

// Equal holds while the key has this value.
func Equal(key string, value []byte) Guard {
	return Guard{Kind: GuardValue, Key: key, Value: value}
}

// Op is one write of a Txn: a put, or a deletion. A key may be written once.
type Op struct {
	Key    string
	Value  []byte
	Lease  LeaseID
	Delete bool
}

// Put writes a key; a lease of 0 takes it off the lease that it had.
func Put(key string, value []byte, lease LeaseID) Op {
	return Op{Key: key, Value: value, Lease: lease}
}

// Delete removes a key if it exists.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// Result of a Txn.
type Result struct {
	// OK says that all guards held and the operations were carried out.
	OK bool
	// Revision of the store after it; if OK, the Mod of everything written.
	Revision int64
}

// Keys are the keys of a store. All methods may be called at once; each call
// ends with its context.
type Keys interface {
	// List reads all keys with a prefix, by name, as of the revision returned.
	// It never reads from a member that lags behind.
	List(ctx context.Context, prefix string) ([]Item, int64, error)
	// Txn carries the operations out if all guards hold. Errors: ErrNoLease.
	Txn(ctx context.Context, guards []Guard, ops []Op) (Result, error)
	// Watch delivers the changes of keys with a prefix from a revision on
	// (inclusive). The channel is closed when ctx ends or after a Batch with
	// Err, such as ErrCompacted. Whoever watches must read on or end ctx.
	Watch(ctx context.Context, prefix string, from int64) <-chan Batch
}

// Leases let keys go away by themselves.
type Leases interface {
	// Grant begins a lease of about ttl; the store may make it longer.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, time.Duration, error)
	// KeepAlive renews a lease and returns its time to live. Errors: ErrNoLease.
	KeepAlive(ctx context.Context, id LeaseID) (time.Duration, error)
	// Revoke ends a lease and removes its keys. Errors: ErrNoLease.
	Revoke(ctx context.Context, id LeaseID) error
}

// Store is all of it.
type Store interface {
	Keys
	Leases
}
