package store_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
)

// What a large batch is put together in is kept for the next one: its arrays, and
// the room in its connection.
func TestLargeBatchesUseTheirMemoryAgain(t *testing.T) {
	b := newBench(t)
	l := lives{group: 62, batches: 5}
	l.insert(b)
	var first uint64
	for k := range l.batches {
		var changes []*status.Change
		for _, said := range l.batch(k) {
			changes = append(changes, change(t, said, statustest.Epoch.Add(time.Duration(k)*time.Second)))
		}
		batch := b.batch(changes...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := b.Apply(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if k == 0 {
			first = allocated
		} else if allocated > first/3 {
			t.Errorf("batch %d took %d bytes of memory, the first one %d", k+1, allocated, first)
		}
	}
}
