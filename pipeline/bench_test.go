package pipeline

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

// BenchmarkSkip is what a message costs that says nothing new, of a hundred
// thousand instances in turn, which is more than any cache of the processor
// holds.
func BenchmarkSkip(b *testing.B) {
	const instances = 100_000
	// With both in turn, none is counted together with the one before.
	for _, name := range []string{"repeat", "stale", "both"} {
		b.Run(name, func(b *testing.B) {
			db := newFakeStore()
			bench := newBench(b, db, &fakePublisher{}, Config{MaxWaiting: 2 * instances})
			in := bench.own(b, "eu01")
			all := make([]status.Heard, instances)
			for n := range all {
				db.insert(instance(n))
				all[n] = heard(b, instance(n), 100, "text")
				offer(b, in, all[n])
			}
			awaitIdle(b, in)
			b.ReportAllocs()
			at, n, round := time.Now(), 0, uint64(0)
			for b.Loop() {
				h := all[n]
				h.At = at
				if name == "repeat" || name == "both" && round%2 == 0 {
					h.Version = 100 + round
				} else {
					h.Version, h.Hash = 99, h.Hash+1
				}
				if err := in.Offer(h); err != nil {
					b.Fatal(err)
				}
				if n++; n == instances {
					n, at = 0, time.Now()
					round++
				}
			}
		})
	}
}
