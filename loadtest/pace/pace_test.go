package pace

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestUntilIsNeverEarly(t *testing.T) {
	for _, wait := range []time.Duration{-time.Second, 0, 100 * time.Microsecond, 5 * time.Millisecond} {
		at := time.Now().Add(wait)
		if err := Until(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		if early := time.Until(at); early > 0 {
			t.Errorf("early by %s", early)
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
