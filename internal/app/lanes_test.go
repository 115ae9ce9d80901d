package app

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
)

// TestAllotLanes: each replica has its share of the large batches, and another one as
// others come and go. Before the fleet is known it is alone.
func TestAllotLanes(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		living := []int{0, 1, 2, 3, 4, 5, 2}
		look := 0
		members := func() map[string]string {
			m := make(map[string]string)
			for n := range living[look] {
				m[fmt.Sprint("replica", n)] = ""
			}
			if look++; look == len(living) {
				cancel()
			}
			return m
		}
		var allotted []int
		allotLanes(ctx, 4, members, func(lanes int) { allotted = append(allotted, lanes) })
		// The pipeline takes 0 for 1, as the least, and no more than it has lanes.
		if want := []int{4, 4, 2, 1, 1, 0, 2}; !slices.Equal(allotted, want) {
			t.Errorf("allotted %v, want %v", allotted, want)
		}
	})
}
