package store_test

import (
	"context"
	"testing"

	"github.com/trestle-bridge/trestle/internal/store"
)

// TestBatchesKeepTheirMemory: a connection for batches takes what a large statement
// needs from the system once, and not for each.
func TestBatchesKeepTheirMemory(t *testing.T) {
	for name, writers := range map[string]int32{"of their own": 1, "shared": 0} {
		t.Run(name, func(t *testing.T) {
			s := newBench(t, func(c *store.Config) { c.MaxConnections, c.Writers = 2, writers })
			const (
				statements = 10
				pages      = 4 << 20 / 4096 // that each takes
			)
			faults, err := s.Faults(context.Background(), `SELECT length(repeat('x', 4194304))`, statements)
			if err != nil {
				t.Fatal(err)
			}
			if most := int64(2 * pages); faults > most {
				t.Errorf("%d statements took %d pages from the system, want at most %d", statements, faults, most)
			}
		})
	}
}
