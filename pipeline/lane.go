package pipeline

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	"github.com/trestle-bridge/trestle/shard"
)

// ignorance is for how long an instance that no row knows is not asked for
// again: its row may be about to be created.
const ignorance = 30 * time.Second

// key names an instance as one intake hears of it. A cluster that speaks of
// another's instances shares nothing with that other.
type key struct {
	instance status.InstanceID
	tag      uint32
}

// memory is what is remembered of an instance of which nothing waits. There are
// very many of them.
type memory struct {
	version    uint64    // the highest heard or stored
	hash       uint64    // of the last one heard; 0 if the row has another, whose version that is
	generation uint32    // the subscription on which the stream spoke of it
	noted      trace.Ref // where in the trace
	kind       kind
	// recalled says that the version is that of the row, and that nothing was
	// heard of the instance yet.
	recalled bool
}

// stranger is what is remembered of an instance that no row knows, or that is
// foreign.
type stranger struct {
	until int64 // that is not asked again, in Unix nanoseconds
	noted trace.Ref
}

// entry is an instance of which something waits or is in flight.
type entry struct {
	key
	in     *Intake
	memory // of what was heard last, written or not

	// waiting is what the next batch takes, inFlight what the current one
	// carries. An entry has at least one of them.
	waiting, inFlight *status.Change
	queued            bool
	// listed says that it began with an entry of a snapshot.
	listed bool
	// doubt says that an attempt to write it has failed in a way that leaves
	// open whether it was committed.
	doubt bool

	next *entry // in its queue
}

// queue is a first-in, first-out list of the entries of one intake in one
// lane.
type queue struct {
	head, tail *entry
	inRing     bool
}

func (q *queue) push(e *entry) {
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.next = e
	}
	q.tail = e
}

func (q *queue) pushFront(e *entry) {
	e.next = q.head
	q.head = e
	if q.tail == nil {
		q.tail = e
	}
}

func (q *queue) pop() *entry {
	e := q.head
	if e == nil {
		return nil
	}
	q.head, e.next = e.next, nil
	if q.head == nil {
		q.tail = nil
	}
	return e
}

// lane writes the changes of its instances, one batch at a time.
type lane struct {
	p     *Pipeline
	index int

	// wake tells the writer that something waits; size 1, so that wake-ups
	// coalesce and nobody blocks.
	wake chan struct{}

	// mu guards what follows and the lane's queue in every intake. No I/O
	// and no decoding under it.
	mu      sync.Mutex
	entries map[key]*entry
	// known remembers instances that were written, ignored those that no row
	// knows: apart, so that a flood of the latter does not push out the
	// former.
	known   *simplelru.LRU[key, memory]
	ignored *simplelru.LRU[key, stranger]
	// ring holds the intakes that have something queued here. A batch takes
	// from them in turn, so that none waits for another's flood.
	ring []*Intake
	// busy is when the attempt under way began; zero if there is none.
	busy time.Time
	// decided is what is remembered for whoever wonders why.
	decided books

	publications
}

func newLane(p *Pipeline, index int) (*lane, error) {
	size := max(p.cfg.DedupEntries/p.cfg.Lanes, 1)
	known, err := simplelru.NewLRU[key, memory](size, nil)
	if err != nil {
		return nil, fmt.Errorf("make room to remember %d instances: %w", size, err)
	}
	ignored, err := simplelru.NewLRU[key, stranger](max(size/8, 1), nil)
	if err != nil {
		return nil, fmt.Errorf("make room to remember %d unknown instances: %w", size/8, err)
	}
	decided, err := newBooks(p.cfg.TraceBytes / p.cfg.Lanes)
	if err != nil {
		return nil, err
	}
	return &lane{
		p:            p,
		index:        index,
		decided:      decided,
		wake:         make(chan struct{}, 1),
		entries:      make(map[key]*entry),
		known:        known,
		ignored:      ignored,
		publications: publications{wakePublisher: make(chan struct{}, 1)},
	}, nil
}

// verdict is what becomes of a status before it is decoded.
type verdict uint8

const (
	verdictFresh verdict = iota
	verdictFull
	verdictRepeat
	verdictStale
	verdictUnknown
)

// judge compares a status with what was last heard of its instance.
func (l *lane) judge(in *Intake, h status.Heard) (verdict, kind) {
	k := key{h.ID, in.tag}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entries[k]; e != nil {
		v := e.judge(h, in.generation.Load())
		l.decided.skip(k, &e.noted, v, h)
		return v, e.kind
	}
	if m, ok := l.known.Get(k); ok {
		before := m
		v := m.judge(h, in.generation.Load())
		if v == verdictFresh && l.full(in, h) {
			v = verdictFull
		}
		l.decided.skip(k, &m.noted, v, h)
		if m != before {
			l.known.Add(k, m)
		}
		return v, m.kind
	}
	if s, ok := l.ignored.Get(k); ok && h.At.UnixNano() < s.until {
		l.decided.skip(k, &s.noted, verdictUnknown, h)
		l.ignored.Add(k, s)
		return verdictUnknown, 0
	}
	if l.full(in, h) {
		return verdictFull, 0
	}
	return verdictFresh, 0
}

// full says whether an instance of which nothing waits has to stay outside.
func (l *lane) full(in *Intake, h status.Heard) bool {
	if h.Snapshot && in.crowded(in.p.cfg.snapshotLimit()) {
		return true
	}
	return in.Waiting() >= l.p.cfg.MaxWaiting || l.p.Waiting() >= l.p.cfg.MaxWaitingTotal && in.Waiting() > 0
}

// judge compares a status with this memory, and notes a repeat's version.
func (m *memory) judge(h status.Heard, generation uint32) verdict {
	spoken := m.generation == generation && generation != 0
	if !h.Snapshot {
		m.generation = generation
	}
	switch {
	case h.Hash == m.hash:
		// The row keeps the older version, but what is heard from now on
		// has to be above this one.
		m.version = max(m.version, h.Version)
		return verdictRepeat
	case h.Version == 0 && (m.version > 0 || h.Snapshot && spoken):
		return verdictStale
	case h.Version != 0 && h.Version <= m.version:
		if h.Version == m.version && m.hash == 0 {
			// This is what the row says, so what comes next may repeat it.
			m.hash, m.recalled = h.Hash, false
		}
		return verdictStale
	}
	return verdictFresh
}

// add joins a decoded change to what waits of its instance. It reports false
// if the change has become superfluous since it was judged.
func (l *lane) add(in *Intake, h status.Heard, change *status.Change) bool {
	k := key{h.ID, in.tag}
	l.mu.Lock()
	defer l.mu.Unlock()
	if in.stopped.Load() {
		return false
	}
	e := l.entries[k]
	if e == nil {
		e = &entry{key: k, in: in, listed: h.Snapshot}
		if m, ok := l.known.Peek(k); ok {
			e.memory = m
		} else if s, ok := l.ignored.Peek(k); ok {
			e.noted = s.noted
		}
	}
	unheard := e.inFlight == nil && e.waiting == nil && e.hash == 0 && (e.version == 0 || e.recalled)
	if v := e.judge(h, in.generation.Load()); v != verdictFresh && (!unheard || e.recalled) {
		l.decided.skip(k, &e.noted, v, h)
		return false
	}
	change.First = unheard
	switch {
	case e.waiting == nil:
		e.waiting = change
		if e.inFlight == nil {
			l.entries[k] = e
			in.begins(e)
		}
	case !e.waiting.Fold(change):
		l.decided.skip(k, &e.noted, verdictStale, h)
		return false
	}
	e.version = max(e.version, h.Version)
	e.hash, e.kind, e.recalled = h.Hash, kindOf(change.Kind), false
	if !h.Snapshot {
		e.generation = in.generation.Load()
	}
	if !e.queued && e.inFlight == nil {
		l.enqueue(e, false)
	}
	return true
}

// enqueue puts an entry into its intake's queue. The caller holds mu.
func (l *lane) enqueue(e *entry, front bool) {
	q := &e.in.queues[l.index]
	e.queued = true
	if front {
		q.pushFront(e)
	} else {
		q.push(e)
	}
	if e.in.fence.Load() != nil {
		l.join(e.in)
	}
}

// join puts an intake with something queued into the ring. The caller holds
// mu.
func (l *lane) join(in *Intake) {
	q := &in.queues[l.index]
	if !q.inRing && q.head != nil {
		q.inRing = true
		l.ring = append(l.ring, in)
	}
	wakeUp(l.wake)
}

// enqueueAll lets an intake that has got its fence take part.
func (l *lane) enqueueAll(in *Intake) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.join(in)
}

// take gives the next batch's entries, at most limit, from all intakes in
// turn.
func (l *lane) take(limit int) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var batch []*entry
	for len(l.ring) > 0 && len(batch) < limit {
		share := max((limit-len(batch))/len(l.ring), 1)
		in := l.ring[0]
		l.ring = l.ring[1:]
		q := &in.queues[l.index]
		for range share {
			e := q.pop()
			if e == nil {
				break
			}
			e.queued = false
			e.inFlight, e.waiting = e.waiting, nil
			batch = append(batch, e)
			if len(batch) == limit {
				break
			}
		}
		if q.head != nil {
			l.ring = append(l.ring, in)
		} else {
			q.inRing = false
		}
	}
	if len(batch) > 0 {
		l.busy = time.Now()
	}
	return batch
}

// release ends the flight of entries. Each is remembered as its outcome says, as
// a stranger if until is not zero, or waits on if more was heard meanwhile.
func (l *lane) release(entries []*entry, outcome func(i int, e *entry) (after memory, until int64)) {
	l.mu.Lock()
	settled := make(map[*Intake]settlement)
	for i, e := range entries {
		if l.entries[e.key] != e {
			continue // dropped with its intake
		}
		after, until := outcome(i, e)
		e.inFlight, e.doubt = nil, false
		if e.waiting != nil {
			// The last one heard is the one that waits.
			l.enqueue(e, false)
			continue
		}
		delete(l.entries, e.key)
		settled[e.in] = settled[e.in].with(e)
		if until != 0 {
			l.known.Remove(e.key)
			l.ignored.Add(e.key, stranger{until: until, noted: e.noted})
			continue
		}
		after.generation, after.kind, after.noted = e.generation, e.kind, e.noted
		if after.hash != 0 {
			after.version = max(after.version, e.version) // of a repeat
		}
		l.ignored.Remove(e.key)
		l.known.Add(e.key, after)
	}
	l.busy = time.Time{}
	l.mu.Unlock()
	for in, n := range settled {
		in.settled(n)
	}
}

// putBack ends the flight of entries that were not written, or of which that
// is not known: they wait again, before all others, folded with what was
// heard meanwhile.
func (l *lane) putBack(entries []*entry, doubt bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if l.entries[e.key] != e {
			continue
		}
		if e.waiting != nil {
			e.inFlight.Fold(e.waiting)
		}
		e.waiting, e.inFlight = e.inFlight, nil
		e.doubt = e.doubt || doubt
		l.enqueue(e, true)
	}
	l.busy = time.Time{}
}

// remember notes a status that the database refuses.
func (l *lane) remember(in *Intake, row store.Poison) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known.Add(key{row.Instance, in.tag}, memory{version: row.Version, hash: row.Hash, kind: kindOf(row.Kind)})
}

// recall notes what the rows are known to have, of instances of which nothing else
// is remembered.
func (l *lane) recall(in *Intake, rows []store.InstanceVersion) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, row := range rows {
		k := key{row.ID, in.tag}
		if _, heard := l.entries[k]; !heard && !l.known.Contains(k) {
			l.known.Add(k, memory{version: row.Version, recalled: true})
		}
	}
}

// forget drops what is remembered of an instance, not what waits. The trace
// remembers it.
func (l *lane) forget(in *Intake, id status.InstanceID) {
	k := key{id, in.tag}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ignored.Remove(k)
	if m, ok := l.known.Peek(k); ok {
		l.decided.forget(k, &m)
		l.known.Add(k, m)
	}
	if e := l.entries[k]; e != nil && e.waiting == nil {
		l.decided.forget(k, &e.memory)
	}
}

// drop forgets all that waits in an intake.
func (l *lane) drop(in *Intake) {
	l.mu.Lock()
	var dropped settlement
	for k, e := range l.entries {
		if k.tag == in.tag {
			delete(l.entries, k)
			e.waiting = nil
			dropped = dropped.with(e)
		}
	}
	in.queues[l.index] = queue{}
	for i, other := range l.ring {
		if other == in {
			l.ring = append(l.ring[:i:i], l.ring[i+1:]...)
			break
		}
	}
	l.mu.Unlock()
	in.settled(dropped)
}

// unwritten counts the instances of which something waits; those of shards without
// a fence as well.
func (l *lane) unwritten() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// busySince says since when an attempt has been under way.
func (l *lane) busySince() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy, !l.busy.IsZero()
}

// turn says that an attempt begins.
func (l *lane) turn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = time.Now()
}

// oldest gives when the update was heard that has waited longest in this lane
// for an intake; zero if none waits. It looks at the head of the queue, which
// was the first to be queued.
func (l *lane) oldest(in *Intake) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if head := in.queues[l.index].head; head != nil && head.waiting != nil {
		return head.waiting.FirstAt
	}
	return time.Time{}
}

// takesPart says whether a shard's entry may still be written.
func (e *entry) fence() (shard.Fence, bool) {
	fence := e.in.fence.Load()
	if fence == nil {
		return shard.Fence{}, false
	}
	return *fence, true
}

// wakeUp tells the owner of a wake channel; it never blocks.
func wakeUp(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
