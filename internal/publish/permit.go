package publish

import (
	"context"
	"fmt"
	"time"
)

// Trust is how long after a fence was held its holder may publish without asking
// whether it still is. A process that was held up for longer may have been
// replaced, and what it has to tell may have been told, with something newer after
// it. It is shorter than a replica can be replaced in.
const Trust = time.Second

// Permit is what a Publisher asks right before it sends anything, with an error
// for an answer if nothing may be sent.
type Permit func(context.Context) error

// While returns the permit of one who held a fence at a moment since, and whose
// check gives an error if it is not held. It is for one call of Publish.
func While(since time.Time, check func(context.Context) error) Permit {
	return func(ctx context.Context) error {
		if time.Since(since) <= Trust {
			return nil
		}
		asked := time.Now()
		if err := check(ctx); err != nil {
			return err
		}
		if ago := time.Since(asked); ago > Trust {
			return fmt.Errorf("the fence was held %s ago, which is too long to rely on", ago.Round(time.Millisecond))
		}
		since = asked
		return nil
	}
}
