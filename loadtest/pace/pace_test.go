package pace

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestUntilIsNeverEarlyByMuch(t *testing.T) {
	for _, wait := range []time.Duration{-time.Second, 0, 100 * time.Microsecond, 5 * time.Millisecond} {
		at := time.Now().Add(wait)
		for time.Now().Before(at) {
			if err := Until(t.Context(), at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestUntilEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Until(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
