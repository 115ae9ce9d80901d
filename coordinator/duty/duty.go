// Package duty does on one replica what the assignment asks of it: it gets
// shards ready, takes them over, releases and drops them, and says where it
// stands with each.
//
// Invariants:
//   - A shard is written under a fence that the database has granted, never
//     under what the assignment says alone.
//   - What is held is held until the assignment names another owner at this
//     epoch or above, or the database refuses it: an assignment that is missing
//     or older than what is held proves nothing.
//   - One action at a time a shard; what is wanted last is done, what was
//     wanted in between need not be.
//
// Owner: the coordinator.
package duty

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// Worker is what does the work of shards on this replica. Calls for one shard
// never overlap, save Drop, which ends whatever is under way; calls for
// different shards do. A call whose context ends returns soon with an error.
type Worker interface {
	// Prepare subscribes, snapshots and buffers, and returns when the shard is
	// ready to be written (READY). When its context ends it stops to wait and
	// goes on preparing; Own and Drop end that.
	Prepare(ctx context.Context, id shard.ID) error
	// Own writes the shard under this fence from now on, what was buffered
	// first. A shard that was not prepared, or was released, is subscribed to;
	// Own does not wait until it is ready. To own again under the same or a
	// higher fence is fine.
	Own(ctx context.Context, fence shard.Fence) error
	// Release stops the intake, writes out and publishes what is held and
	// returns when the shard's outbox is empty (RELEASED). After an error some
	// of it may be left; Own takes the shard up again, Drop gives it up.
	Release(ctx context.Context, id shard.ID) error
	// Drop forgets the shard and what it holds of it. Unknown shards are fine.
	Drop(id shard.ID)
	// Signals tells what happens to shards by itself. Whoever sends must not
	// wait for ever: nobody reads before Run and after it.
	Signals() <-chan Signal
}

// Signal is what happened to a shard by itself.
type Signal struct {
	Shard shard.ID
	// Fenced: the database refused the fence of this epoch. Otherwise the shard
	// is ready no more.
	Fenced bool
	Epoch  shard.Epoch
}

// Fences are kept by the database.
type Fences interface {
	// Raise makes the fence the one that holds, if its epoch is above the
	// stored one, or is the stored one and its owner's already, and its
	// generation is not below the cluster's. It waits for writers that hold the
	// one before. It returns the fence that holds then, with the generation of
	// the cluster if that is higher: another than the given one means that this
	// one was refused. After an error it may have been raised; to raise again is
	// safe.
	Raise(ctx context.Context, fence shard.Fence) (shard.Fence, error)
	// Known returns what the database knows of clusters; those that it knows
	// nothing of are missing.
	Known(ctx context.Context, clusters []string) (map[string]Known, error)
	// Cut notes that the cluster has so many slices from this generation on, and
	// refuses all its fences of lower ones. A generation that is not above the
	// cluster's changes nothing.
	Cut(ctx context.Context, cluster string, generation int64, slices int) error
}

// Known is what the database knows of a cluster. After a loss of the store it is
// all that is left.
type Known struct {
	// Slices and Generation are those of the last Cut; 1 and 0 if there was none.
	Slices     int
	Generation int64
	// Fences are the last ones of its shards, those of former cuts included.
	Fences []shard.Fence
}

// Config of Duties.
type Config struct {
	// Incarnation of this replica.
	Incarnation string
	Worker      Worker
	Fences      Fences
	Logger      *slog.Logger
	// Answered is called, from any goroutine, when an answer has changed. It
	// must not wait.
	Answered func()
	// Raised is told how long it took to raise a fence and own the shard.
	Raised func(time.Duration)
	// Retry is the pause after a failed action; 0 means 200 ms. It doubles up
	// to ten times that.
	Retry time.Duration
}

// Duties of a replica. All methods may be called at once.
type Duties struct {
	cfg Config

	// mu guards what follows. Workers are called without it.
	mu     sync.Mutex
	actors map[shard.ID]*actor
	// ending says that what is held is to be released, and nothing taken.
	ending bool
	// fresh are the answers that were not taken yet.
	fresh map[shard.ID]table.Answer
	// changed is closed and replaced when an answer has changed.
	changed chan struct{}

	// begin hands actors to Run, which owns their goroutines.
	begin chan *actor
}

// New starts nothing; Run does.
func New(cfg Config) (*Duties, error) {
	if cfg.Incarnation == "" || cfg.Worker == nil || cfg.Fences == nil || cfg.Logger == nil {
		return nil, errors.New("duty: incarnation, worker, fences and logger are required")
	}
	if cfg.Retry <= 0 {
		cfg.Retry = 200 * time.Millisecond
	}
	if cfg.Answered == nil {
		cfg.Answered = func() {}
	}
	if cfg.Raised == nil {
		cfg.Raised = func(time.Duration) {}
	}
	return &Duties{
		cfg: cfg, actors: make(map[shard.ID]*actor), fresh: make(map[shard.ID]table.Answer), changed: make(chan struct{}), begin: make(chan *actor),
	}, nil
}

// Run carries out what Assign asks for until ctx ends. Shards are not dropped
// then: what stops the process decides what becomes of them.
func (d *Duties) Run(ctx context.Context) error {
	var actors sync.WaitGroup
	defer actors.Wait()
	for {
		select {
		case a := <-d.begin:
			actors.Go(func() { a.run(ctx) })
		case s := <-d.cfg.Worker.Signals():
			d.mu.Lock()
			if a := d.actors[s.Shard]; a != nil {
				a.signal(s)
			}
			d.mu.Unlock()
		case <-ctx.Done():
			return nil
		}
	}
}

// Assign tells what the table says. assigned gives all shards that concern this
// replica, and those that Concerned names in any case. It returns when all new
// shards have begun, or ctx ends.
func (d *Duties) Assign(ctx context.Context, assigned map[shard.ID]Assigned) {
	var fresh []*actor
	d.mu.Lock()
	for id, as := range assigned {
		a := d.actors[id]
		w := want(d.cfg.Incarnation, id, as, d.held(a))
		if d.ending {
			w = ending(w, a)
		}
		if a == nil {
			if w.kind == wantNothing || w.kind == wantKeep {
				continue
			}
			a = newActor(d, id)
			d.actors[id] = a
			fresh = append(fresh, a)
		}
		a.set(w)
	}
	d.mu.Unlock()
	for _, a := range fresh {
		select {
		case d.begin <- a:
		case <-ctx.Done():
			return
		}
	}
}

func (d *Duties) held(a *actor) held {
	if a == nil {
		return held{}
	}
	return a.have
}

// Held lists the fences under which this replica writes.
func (d *Duties) Held() map[shard.ID]shard.Fence {
	d.mu.Lock()
	defer d.mu.Unlock()
	fences := make(map[shard.ID]shard.Fence)
	for id, a := range d.actors {
		if a.have.writes() {
			fences[id] = a.have.fence
		}
	}
	return fences
}

// Fresh takes the answers that have changed since it was called last; an empty
// one takes an answer back.
func (d *Duties) Fresh() map[shard.ID]table.Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := d.fresh
	d.fresh = make(map[shard.ID]table.Answer)
	return fresh
}

// End releases everything that is held and takes nothing more, whatever the
// table says. It returns the shards that were not released when ctx ended.
func (d *Duties) End(ctx context.Context) []shard.ID {
	d.mu.Lock()
	d.ending = true
	for _, a := range d.actors {
		a.set(ending(a.want, a))
	}
	d.mu.Unlock()
	for {
		d.mu.Lock()
		var left []shard.ID
		for id, a := range d.actors {
			if a.have.writes() {
				left = append(left, id)
			}
		}
		changed := d.changed
		d.mu.Unlock()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return left
		}
	}
}

func ending(w wanted, a *actor) wanted {
	if a != nil && a.have.writes() {
		if w.kind == wantReleased {
			return w
		}
		return wanted{kind: wantReleased}
	}
	if w.kind == wantReleased || w.kind == wantKeep {
		return w
	}
	return wanted{kind: wantNothing}
}

// noted is called with mu held after an actor's answer or state has changed.
func (d *Duties) noted() {
	close(d.changed)
	d.changed = make(chan struct{})
	d.cfg.Answered()
}

// Concerned says with which shards this replica has anything to do.
func (d *Duties) Concerned() map[shard.ID]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := make(map[shard.ID]bool, len(d.actors))
	for id := range d.actors {
		known[id] = true
	}
	return known
}

func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }
