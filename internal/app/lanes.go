package app

import (
	"context"
	"time"
)

// allotEvery is how often is looked how many replicas share the database.
const allotEvery = time.Second

// allotLanes gives this replica its share of the large batches that all replicas may
// write at once, until ctx ends: the database is the same for all.
func allotLanes(ctx context.Context, lanes int, members func() map[string]string, allot func(lanes int)) {
	for tick := time.NewTicker(allotEvery); ; {
		allot(lanes / max(len(members()), 1))
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}
