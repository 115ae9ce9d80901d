package sweep

import (
	"bytes"
	"slices"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/store"
)

// A cluster is held back if it misses more than this many rows at once, and
// more than this share of its rows: it is likelier that it answers with half
// its list than that half its instances are dead.
const (
	holdRows    = 20
	holdPercent = 20
)

// look is what one look at a cluster has found.
type look struct {
	// began is before the rows were read, ended after the cluster answered.
	began, ended time.Time
	// missing are the rows that the cluster does not know and should.
	missing []store.OpenInstance
	// total is the number of the cluster's rows. It counts only if more than
	// holdRows are missing.
	total int
}

// missed is a row that the looks have missed, as they found it.
type missed struct {
	row store.OpenInstance
	// since is the end of the first look that missed it like this.
	since time.Time
	// confirmed: an operator says that it is to be stopped.
	confirmed bool
}

// looks is what is remembered of the looks at one cluster.
type looks map[status.InstanceID]missed

// verdict is what follows from a look.
type verdict struct {
	// stop are the rows to be stopped, in the order of look.missing.
	stop []store.OpenInstance
	// held is how many rows are held back because too many are missing.
	held int
	// again says that rows wait for a second look.
	again bool
	// after is what to remember of this look and those before.
	after looks
}

// judge decides what becomes of the rows that a look has missed. A row has to
// have been missed, unchanged, by every look since one that ended secondLook
// before this one began. Rows beyond the share that may be missing are held
// back until they have been missed for as long as hold, or are confirmed.
func judge(l look, before looks, secondLook, hold time.Duration) verdict {
	v := verdict{after: make(looks, len(l.missing))}
	fresh := 0
	for _, row := range l.missing {
		m, seen := before[row.ID]
		if !seen || m.row != row {
			m = missed{row: row, since: l.ended}
		}
		v.after[row.ID] = m
		if m.fresh(l.began, hold) {
			fresh++
		}
	}
	if fresh > holdRows && fresh*100 > l.total*holdPercent {
		v.held = fresh
	}
	for _, row := range l.missing {
		m := v.after[row.ID]
		switch {
		case v.held > 0 && m.fresh(l.began, hold):
		case l.began.Sub(m.since) < secondLook:
			v.again = true
		default:
			v.stop = append(v.stop, row)
		}
	}
	return v
}

// fresh says whether the row counts among those that are missing at once.
func (m missed) fresh(now time.Time, hold time.Duration) bool {
	return !m.confirmed && now.Sub(m.since) < hold
}

// missing gives the rows whose ids are not among the known ones, which it
// sorts. The rows are sorted by their ids.
func missing(rows []store.OpenInstance, known []status.InstanceID) (out []store.OpenInstance) {
	slices.SortFunc(known, func(a, b status.InstanceID) int { return bytes.Compare(a[:], b[:]) })
	i := 0
	for _, row := range rows {
		for i < len(known) && bytes.Compare(known[i][:], row.ID[:]) < 0 {
			i++
		}
		if i == len(known) || known[i] != row.ID {
			out = append(out, row)
		}
	}
	return out
}

// split parts the rows that are to be stopped whatever their cluster says from
// those for which it is asked.
func split(rows []store.OpenInstance) (expired, doubtful []store.OpenInstance) {
	for _, row := range rows {
		switch row.Phase {
		case store.PhasePreparing, store.PhaseBuilding, store.PhaseUnknown:
			expired = append(expired, row)
		default:
			doubtful = append(doubtful, row)
		}
	}
	return expired, doubtful
}
