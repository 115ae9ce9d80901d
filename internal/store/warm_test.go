package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/store"
)

// TestWarm: what batches may need is planned on as many
// connections as were asked for, no more than there may be.
func TestWarm(t *testing.T) {
	for name, test := range map[string]struct {
		lifecycle   bool
		max         int32
		connections int
		want        []int
	}{
		"with lifecycle":    {true, 4, 3, []int{0, 17, 17, 17}},
		"without":           {false, 2, 1, []int{0, 17}},
		"more than allowed": {false, 2, 5, []int{17, 17}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newBench(t, func(c *store.Config) { c.Lifecycle, c.MaxConnections = test.lifecycle, test.max })
			if err := s.Warm(context.Background(), test.connections, time.Hour); err != nil {
				t.Fatal(err)
			}
			planned, err := s.Planned(context.Background(), len(test.want))
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(planned)
			if !slices.Equal(planned, test.want) {
				t.Errorf("statements planned on each connection: %v, want %v", planned, test.want)
			}
		})
	}
}
