package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// A case of the property: a row and what is heard of its instance.
type history struct {
	row   *statustest.Row
	heard []*wsman.WorkspaceStatus
}

// randomHistory gives statuses whose versions ascend, the first ones possibly
// without a version, and a row of a version below, among or above them. Where
// the row is swept, a first status repeats its version now and then.
func randomHistory(r statustest.Random) history {
	kind := []wsman.WorkspaceType{wsman.WorkspaceType_REGULAR, wsman.WorkspaceType_PREBUILD, wsman.WorkspaceType_PREBUILD}[r.IntN(3)]
	var h history
	version := uint64(0)
	for range 1 + r.IntN(6) {
		s := r.Status(kind)
		if version > 0 || r.IntN(4) > 0 {
			version += uint64(1 + r.IntN(3))
		}
		s.StatusVersion = version
		h.heard = append(h.heard, s)
	}
	h.row = r.Row(version + 2)
	return h
}

func (h history) String() string {
	text := ""
	for _, s := range h.heard {
		text += fmt.Sprintf("  %v\n", s)
	}
	return text
}

// TestWritingInTurnIsFoldingIsTheModel writes each history three times: update
// after update, folded into one change, and in random parts, each into rows of
// its own. All must become what the model says, in every column.
func TestWritingInTurnIsFoldingIsTheModel(t *testing.T) {
	b := newBench(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const ways = 3
	cases := 3000
	if testing.Short() {
		cases = 500
	}
	for _, rules := range []status.Rules{{}, {DecidedWhenStopped: true}} {
		histories := make([]history, cases/2)
		var rows []*statustest.Row
		offset := 0
		if rules.DecidedWhenStopped {
			offset = 1_000_000
		}
		for i := range histories {
			histories[i] = randomHistory(statustest.Random{Rand: random, ID: testID(0)})
			for way := range ways {
				rows = append(rows, histories[i].rowOf(offset+ways*i+way))
			}
		}
		b.insert(rows...)

		// Step k of every way is written in one batch, since an instance may
		// be in a batch once only.
		for step, more := 0, true; more; step++ {
			more = false
			var batch []*status.Change
			for i, h := range histories {
				for way := range ways {
					parts := h.parts(way, i)
					if step < len(parts) {
						more = true
						batch = append(batch, h.change(t, rows[ways*i+way], parts[step][0], parts[step][1], rules))
					}
				}
			}
			for part := range slices.Chunk(batch, 700) {
				b.apply(part...)
			}
		}

		failed := 0
		for chunk := range slices.Chunk(rows, 3000) {
			ids := make([]status.InstanceID, len(chunk))
			for i := range chunk {
				ids[i] = chunk[i].ID
			}
			for id, got := range b.rows(ids...) {
				i := slices.IndexFunc(rows, func(r *statustest.Row) bool { return r.ID == id })
				h := histories[i/ways]
				want := rows[i].Clone()
				for at, s := range h.heard {
					statustest.InTurn(want, of(s, id), heardAt(at), rules)
				}
				if diff := diffOf(t, got, want); diff != "" {
					t.Errorf("%+v, way %d, from\n%+v (prebuild %+v), heard\n%s%s", rules, i%ways, rows[i], rows[i].Prebuild, h, diff)
					if failed++; failed > 3 {
						t.FailNow()
					}
				}
			}
		}
	}
}

func heardAt(i int) time.Time { return statustest.Epoch.Add(time.Duration(i) * time.Second) }

// rowOf is the history's row under an id of its own.
func (h history) rowOf(i int) *statustest.Row {
	old := h.row.ID
	row := h.row.Clone()
	row.ID = testID(i)
	row.Tokens = []string{row.ID.String() + "-default", row.ID.String() + "-", row.ID.String() + ".x", row.ID.String(), "another"}
	slices.Sort(row.Tokens)
	if p := row.Prebuild; p != nil {
		if p.Instance == old {
			p.Instance = row.ID
		} else if p.Instance != (status.InstanceID{}) {
			p.Instance = row.ID
			p.Instance[15] ^= 0xff
		}
	}
	return row
}

// parts says which of the statuses, from and to, are folded together.
func (h history) parts(way, seed int) (parts [][2]int) {
	n := len(h.heard)
	switch way {
	case 0:
		for i := range n {
			parts = append(parts, [2]int{i, i + 1})
		}
	case 1:
		parts = [][2]int{{0, n}}
	default:
		cut := 1 + seed%n
		parts = [][2]int{{0, cut}}
		if cut < n {
			parts = append(parts, [2]int{cut, n})
		}
	}
	return parts
}

func of(s *wsman.WorkspaceStatus, id status.InstanceID) *wsman.WorkspaceStatus {
	s.Id = id.String()
	return s
}

func (h history) change(t *testing.T, row *statustest.Row, from, to int, rules status.Rules) *status.Change {
	t.Helper()
	var changes []*status.Change
	for i := from; i < to; i++ {
		changes = append(changes, change(t, of(h.heard[i], row.ID), heardAt(i), rules))
	}
	return fold(changes...)
}
