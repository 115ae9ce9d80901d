package store_test

import (
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/internal/store"
)

func plainRow(i int) *statustest.Row {
	return &statustest.Row{ID: testID(i), Created: statustest.Epoch.Add(-time.Hour), Phase: "preparing", Status: map[string]any{}}
}

func TestSmoke(t *testing.T) {
	b := newBench(t)
	b.insert(plainRow(1))
	c := b.apply(change(t, statusOf(testID(1), 5), statustest.Epoch))
	if c.Results[0].Outcome != store.Applied {
		t.Fatal(c.Results[0])
	}
	t.Log(b.row(testID(1)))
}
