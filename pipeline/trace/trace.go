// Package trace remembers what was decided of the last updates of each
// instance, in memory that is bounded in bytes, so that an operator can be told
// why a row is as it is.
//
// A Book has a fixed number of pages, one an instance and term of ownership. A
// page holds the last few decisions; the same decision again, on updates that
// change nothing, is counted and takes no room. When no page is left, one that
// has not been written on for long is taken: of a few all over the book, the
// oldest.
//
// Invariants:
//   - To note a decision allocates nothing, searches nothing and touches one
//     cache line, a second one now and then. Who notes keeps the Ref for the
//     next time; it may be out of date, and is then given anew.
//   - Pages lie outside of the garbage collector's heap: they hold no pointers,
//     and counted as live heap they would cost twice their size. They become
//     resident as they are used.
//
// A Book is not safe for concurrent use. Owner: the pipeline.
package trace

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/trestle-bridge/trestle/internal/status"
)

// Decision is what became of an update.
type Decision uint8

// The decisions.
const (
	// Applied: it was written; updates may have been folded into it.
	Applied Decision = iota + 1
	// Unchanged: the database found that it says what the row says.
	Unchanged
	// Repeat: it differs from the one before in its version alone.
	Repeat
	// Stale: it is not above what is stored, or was heard.
	Stale
	// Unknown: no row has this instance, or had within the last moments.
	Unknown
	// Foreign: the row belongs to another cluster.
	Foreign
	// Fenced: the database refused it, or it still waited when that happened,
	// since another owner has raised the fence.
	Fenced
	// Quarantined: the database refused it for its own sake.
	Quarantined
	// Invalid: it could not be decoded.
	Invalid
	// Forgotten: no update, but the word that what was heard does not count any
	// more, since a sweep has stopped the row or an operator wants a retry.
	Forgotten

	// found: no update either, but the version that the row was found to have.
	found
)

// counted says whether the decision leaves all as it was, so that the next one
// like it needs no entry of its own.
func (d Decision) counted() bool {
	switch d {
	case Unchanged, Repeat, Stale, Unknown, Foreign, Invalid, Forgotten:
		return true
	}
	return false
}

// Ref says where an instance was noted last; 0 is nowhere. It is below 1<<30.
type Ref uint32

// Key names an instance as it is heard in one term of ownership.
type Key struct {
	Instance status.InstanceID
	Term     uint32
}

// Note is one decision.
type Note struct {
	Decision Decision
	// Version is that of the update; for Applied that of the last of them.
	Version uint64
	// Updates is how many it was made of; 0 counts as 1.
	Updates int
	// Stored is the version that the row was found to have; KnowsStored says
	// that it was looked at.
	Stored      uint64
	KnowsStored bool
	Phase       status.Phase
	At          time.Time
}

// Entry is what is remembered of a decision, or of several alike in a row.
type Entry struct {
	Term     uint32
	Decision Decision
	// At is when the last of them was made, to a hundredth of a second.
	At time.Time
	// Updates is how many updates, of which Version is the last one's.
	Updates int
	Version uint64
	// Stored is the version that the row had before; KnowsStored is false for
	// the first that was written in a term.
	Stored      uint64
	KnowsStored bool
	Phase       status.Phase
}

const (
	recent = 2 // entries in a page itself
	older  = 2 // and in what lies apart
	// Kept is how many entries a page has.
	Kept = recent + older

	// tick is the unit of time of an entry: it lasts for 497 days.
	tick = 10 * time.Millisecond
	// maxPages leaves the upper bits of a Ref to whoever keeps it.
	maxPages = 1<<30 - 1
	// choice is of how many pages the oldest is taken.
	choice = 8

	pageBytes = int(unsafe.Sizeof(page{}) + older*unsafe.Sizeof(entry{}))
)

// page is what is written on at each decision: one cache line.
type page struct {
	instance status.InstanceID
	term     uint32
	used     uint8 // entries
	next     uint8 // of those that lie apart, the one to go
	knows    bool  // base is known
	_        byte
	// base is the version that the row had before the oldest entry.
	base   uint64
	recent [recent]entry // newest first
}

type entry struct {
	version  uint64
	at       uint32 // ticks since the book was begun
	updates  uint16
	decision Decision
	phase    uint8
}

// Book is described in the package comment.
type Book struct {
	begun time.Time
	pages []page
	older []entry // so many a page
	taken int     // pages that were ever used
	hand  int     // where to look for one that can go
}

// New makes a book that takes so many bytes at most.
func New(bytes int) (*Book, error) {
	n := bytes / pageBytes
	if n < 1 {
		return nil, fmt.Errorf("a trace of %d bytes has no room for an instance: give it at least %d", bytes, pageBytes)
	}
	if n > maxPages {
		return nil, fmt.Errorf("a trace of %d bytes is larger than it can be: give it at most %d", bytes, maxPages*pageBytes)
	}
	b := &Book{begun: time.Now()}
	memory, err := reserve(b, n*pageBytes)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes for the trace of updates: %w", n*pageBytes, err)
	}
	split := n * int(unsafe.Sizeof(page{}))
	b.pages = unsafe.Slice((*page)(unsafe.Pointer(&memory[0])), n)
	b.older = unsafe.Slice((*entry)(unsafe.Pointer(&memory[split])), n*older)
	return b, nil
}

// Size is for how many instances there is room.
func (b *Book) Size() int { return len(b.pages) }

// Skip notes a decision on an update that changes nothing, as Put does, with
// less to say and in less time.
func (b *Book) Skip(ref Ref, k Key, d Decision, version uint64, at time.Time) Ref {
	now := b.ticks(at)
	p := b.page(ref, k)
	if p == nil {
		ref = b.take(k)
		p = &b.pages[ref-1]
	}
	if newest := &p.recent[0]; p.used > 0 && newest.decision == d {
		newest.version, newest.at = version, now
		if newest.updates < math.MaxUint16 {
			newest.updates++
		}
		runtime.KeepAlive(b)
		return ref
	}
	b.push(ref, entry{version: version, at: now, updates: 1, decision: d})
	return ref
}

// Put notes a decision, and says where to look for this instance the next time.
func (b *Book) Put(ref Ref, k Key, n Note) Ref {
	if b.page(ref, k) == nil {
		ref = b.take(k)
	}
	p := &b.pages[ref-1]
	now := b.ticks(n.At)
	if n.KnowsStored && n.Decision != Applied {
		switch stored, knows := b.stored(ref); {
		case p.used == 0:
			p.base, p.knows = n.Stored, true
		case !knows || stored != n.Stored:
			// Somebody else has written the row, or it was written before.
			b.push(ref, entry{version: n.Stored, at: now, decision: found})
		}
	}
	updates := uint16(min(max(n.Updates, 1), math.MaxUint16))
	if newest := &p.recent[0]; p.used > 0 && newest.decision == n.Decision && n.Decision.counted() {
		newest.version, newest.at = n.Version, now
		newest.updates += min(updates, math.MaxUint16-newest.updates)
		runtime.KeepAlive(b)
		return ref
	}
	b.push(ref, entry{version: n.Version, at: now, updates: updates, decision: n.Decision, phase: phaseNumber(n.Phase)})
	return ref
}

// page is that of a reference, unless another instance has it now.
func (b *Book) page(ref Ref, k Key) *page {
	if ref == 0 || int(ref) > len(b.pages) {
		return nil
	}
	p := &b.pages[ref-1]
	if p.term != k.Term || p.instance != k.Instance {
		return nil
	}
	return p
}

// take gives a page to an instance.
func (b *Book) take(k Key) Ref {
	var at int
	if b.taken < len(b.pages) {
		at = b.taken
		b.taken++
	} else {
		at = b.hand
		for i := range choice {
			// Spread over the book, as neighbours came at the same time.
			other := (b.hand + i*len(b.pages)/choice) % len(b.pages)
			if b.pages[other].recent[0].at < b.pages[at].recent[0].at {
				at = other
			}
		}
		b.hand = (b.hand + 1) % len(b.pages)
	}
	b.pages[at] = page{instance: k.Instance, term: k.Term}
	return Ref(at + 1)
}

// push puts an entry in front, and the oldest goes if there are too many.
func (b *Book) push(ref Ref, e entry) {
	p := &b.pages[ref-1]
	if p.used >= recent {
		apart := &b.older[int(ref-1)*older+int(p.next)]
		if p.used == Kept {
			switch apart.decision {
			case Applied, found:
				p.base, p.knows = apart.version, true
			}
		} else {
			p.used++
		}
		*apart = p.recent[recent-1]
		p.next = (p.next + 1) % older
	} else {
		p.used++
	}
	copy(p.recent[1:], p.recent[:recent-1])
	p.recent[0] = e
	runtime.KeepAlive(b) // what the pages lie in goes with it
}

// entries gives those of a page, oldest first.
func (b *Book) entries(ref Ref) []entry {
	p := &b.pages[ref-1]
	all := make([]entry, 0, Kept)
	for i := range max(int(p.used)-recent, 0) {
		at := i
		if p.used == Kept {
			at = (int(p.next) + i) % older
		}
		all = append(all, b.older[int(ref-1)*older+at])
	}
	for i := min(int(p.used), recent) - 1; i >= 0; i-- {
		all = append(all, p.recent[i])
	}
	return all
}

// stored is the version that the row is known to have.
func (b *Book) stored(ref Ref) (version uint64, known bool) {
	p := &b.pages[ref-1]
	for _, e := range p.recent[:min(int(p.used), recent)] {
		if e.decision == Applied || e.decision == found {
			return e.version, true
		}
	}
	version, known = p.base, p.knows
	if p.used > recent {
		for _, e := range b.entries(ref) {
			if e.decision == Applied || e.decision == found {
				version, known = e.version, true
			}
		}
	}
	return version, known
}

// Read gives what is remembered of an instance on the pages from this one on,
// at most limit of them, and where to go on; 0 when that was all. Of one term
// the entries are in order.
func (b *Book) Read(id status.InstanceID, from, limit int) (entries []Entry, next int) {
	to := min(from+limit, b.taken)
	for at := from; at < to; at++ {
		p := &b.pages[at]
		if p.instance != id {
			continue
		}
		stored, knows := p.base, p.knows
		for _, e := range b.entries(Ref(at + 1)) {
			if e.decision != found {
				entries = append(entries, Entry{
					Term: p.term, Decision: e.decision, At: b.begun.Add(time.Duration(e.at) * tick).UTC(),
					Updates: int(e.updates), Version: e.version, Stored: stored, KnowsStored: knows, Phase: phases[e.phase],
				})
			}
			if e.decision == found || e.decision == Applied {
				stored, knows = e.version, true
			}
		}
	}
	if to == b.taken {
		return entries, 0
	}
	return entries, to
}

// Sort puts entries of several books in the order in which they were decided.
func Sort(entries []Entry) {
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Term, b.Term))
	})
}

func (b *Book) ticks(at time.Time) uint32 {
	return uint32(min(max(at.Sub(b.begun)/tick, 0), math.MaxUint32))
}

// phases has a number for each phase that an update can bring.
var phases = [...]status.Phase{
	"", status.PhasePending, status.PhaseCreating, status.PhaseInitializing, status.PhaseRunning,
	status.PhaseInterrupted, status.PhaseStopping, status.PhaseStopped,
}

func phaseNumber(p status.Phase) uint8 {
	return uint8(max(slices.Index(phases[:], p), 0))
}
