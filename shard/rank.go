package shard

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Ranked is one replica in a shard's order of preference.
type Ranked struct {
	// Replica is its ID.
	Replica string
	// Score is its weighted rendezvous score; the highest is preferred.
	Score float64
	// Load is the weight it carries or is about to, Fair what it would carry if
	// loads were even, Cap its limit (0 for none).
	Load, Fair, Cap float64
	Draining        bool
}

// Rank lists the living replicas in the order in which the shard prefers them.
// A plan departs from it where a replica is full, drains or is of the wrong
// revision, and where staying saves a move. The shard need not be in the state.
func (s State) Rank(id ID) []Ranked { return s.Ranks([]ID{id})[0] }

// Ranks is Rank for several shards, with one look at the fleet.
func (s State) Ranks(ids []ID) [][]Ranked {
	p := newPlanner(s)
	all := make([][]Ranked, len(ids))
	for i, id := range ids {
		all[i] = p.rank(id)
	}
	return all
}

func (p *planner) rank(id ID) []Ranked {
	ranked := make([]Ranked, len(p.seats))
	for i, seat := range p.seats {
		ranked[i] = Ranked{
			Replica: seat.ID, Score: score(hashID(id), seat), Load: seat.load,
			Fair: p.fair(seat), Cap: seat.Cap, Draining: seat.Draining,
		}
	}
	slices.SortStableFunc(ranked, func(a, b Ranked) int { return cmp.Compare(b.Score, a.Score) })
	return ranked
}

// score is the weighted rendezvous score of a seat for a shard. Of seats with
// equal capacity each is preferred by an equal share of the shards, and one
// that leaves or joins changes nobody else's order.
func score(shard uint64, s *seat) float64 {
	var both [16]byte
	binary.LittleEndian.PutUint64(both[:8], shard)
	binary.LittleEndian.PutUint64(both[8:], s.hash)
	// 53 bits are what a float64 holds; the half keeps it off 0 and 1.
	uniform := (float64(xxhash.Sum64(both[:])>>11) + 0.5) / (1 << 53)
	return s.Capacity / -math.Log(uniform)
}

func hashID(id ID) uint64 { return xxhash.Sum64String(id.String()) }
