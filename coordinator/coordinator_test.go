package coordinator

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// calm fails the test if a shard is not written all along.
func (w *world) calm(within time.Duration) {
	w.t.Helper()
	if stalled := w.db.stalled(w.shards(), within); len(stalled) > 0 {
		w.t.Fatalf("not written: %v", stalled)
	}
}

func (w *world) gap() time.Duration {
	w.db.mu.Lock()
	defer w.db.mu.Unlock()
	gap := w.db.gap
	w.db.gap = 0
	return gap
}

func TestFleetStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 12)
		defer w.end()
		for _, name := range []string{"a", "b", "c"} {
			w.start(name, "1")
		}
		time.Sleep(3 * time.Second)
		w.calm(100 * time.Millisecond)
	})
}
