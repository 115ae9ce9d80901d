package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/store"
)

// TestWarm: what batches may need is planned on all connections that they have, and
// they have them to themselves.
func TestWarm(t *testing.T) {
	for name, test := range map[string]struct {
		lifecycle    bool
		max, writers int32
		want         []int
	}{
		"with lifecycle": {true, 4, 2, []int{5, 5, 0, 0}},
		"without":        {false, 3, 1, []int{5, 0, 0}},
		"all shared":     {false, 2, 2, []int{5, 5}},
		"unset":          {false, 3, 0, []int{5, 5, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newBench(t, func(c *store.Config) {
				c.Lifecycle, c.MaxConnections, c.Writers = test.lifecycle, test.max, test.writers
			})
			if err := s.Warm(context.Background(), time.Hour); err != nil {
				t.Fatal(err)
			}
			planned, err := s.Planned(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(planned, test.want) {
				t.Errorf("statements planned on each connection: %v, want %v", planned, test.want)
			}
		})
	}
}
