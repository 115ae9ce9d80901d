package publish

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
)

func TestWhile(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		var checks int
		var takes time.Duration
		var lost error
		may := While(time.Now(), func(context.Context) error {
			checks++
			time.Sleep(takes)
			return lost
		})
		ask := func(after time.Duration, want error, wantChecks int) {
			t.Helper()
			time.Sleep(after)
			if err := may(t.Context()); !errors.Is(err, want) || checks != wantChecks {
				t.Errorf("%v later: %v after %d checks, want %v after %d", after, err, checks, want, wantChecks)
			}
		}
		ask(Trust, nil, 0)
		ask(time.Millisecond, nil, 1)
		ask(Trust, nil, 1)

		// A check is as old as its question.
		takes = Trust / 2
		ask(time.Millisecond, nil, 2)
		takes = 0
		ask(Trust/2+time.Millisecond, nil, 3)

		takes = Trust + time.Millisecond
		time.Sleep(Trust + time.Millisecond)
		if err := may(t.Context()); err == nil {
			t.Error("an answer that is too old was relied on")
		}
		takes, lost = 0, errors.New("lost")
		ask(0, lost, 5)
	})
}
