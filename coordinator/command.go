package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/coordinator/term"
	"github.com/trestle-bridge/trestle/shard"
)

// Command is an operator's wish; its Reason and Author are required, Until is
// when it lapses, At and what follows are filled in here and by the leader.
type Command = table.Command

// What an operator may wish.
const (
	CommandPin          = table.Pin
	CommandUnpin        = table.Unpin
	CommandDrain        = table.DrainReplica
	CommandUndrain      = table.Undrain
	CommandFreeze       = table.Freeze
	CommandUnfreeze     = table.Unfreeze
	CommandSlices       = table.Slices
	CommandBrakeRelease = table.BrakeRelease
)

var (
	// ErrCommand is wrapped by the errors of commands that make no sense.
	ErrCommand = errors.New("the command cannot be carried out")
	// ErrUnanswered means that no leader has acted on the command within its
	// context. It stands, and the next leader acts on it.
	ErrUnanswered = errors.New("no leader has acted on the command yet")
)

// Do has the leader carry out a command, and waits until it has acted on it,
// which is not until what follows from it (a hand-over, say) has happened. It
// works on any replica. Errors: ErrCommand, ErrUnanswered.
func (c *Coordinator) Do(ctx context.Context, command Command) error {
	if command.Reason == "" || command.Author == "" {
		return fmt.Errorf("%w: it needs a reason and an author", ErrCommand)
	}
	now := time.Now().UTC()
	command.At, command.Done, command.Refused = now, time.Time{}, ""
	name := fmt.Sprintf("%d-%s", now.UnixMilli(), rand.Text())
	key := c.layout.Command(name)
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
	defer cancel()
	_, err := c.link.Txn(limited, []kv.Guard{kv.Created(key, 0)}, []kv.Op{kv.Put(key, table.Encode(command), 0)})
	if err != nil {
		return fmt.Errorf("write the command %s: %w", command.Kind, err)
	}
	for {
		changed := c.link.Changed()
		var stored table.Entry[Command]
		c.link.Look(func(v *table.View) { stored = v.Commands[name] })
		switch done := stored.Value; {
		case done.Done.IsZero():
		case done.Refused != "":
			return fmt.Errorf("%w: %s", ErrCommand, done.Refused)
		default:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnanswered, ctx.Err())
		}
	}
}

// Plan is what the planner would do now if it were asked, as far as the table
// tells; nothing is done. A freeze is left out of it, so that one can see what
// it holds back.
func (c *Coordinator) Plan() shard.Plan {
	s := c.plannerState()
	s.Freeze, s.Levelled = shard.Freeze{}, time.Time{}
	return s.Plan(time.Now())
}

// Ranks gives, for each of these shards, the order in which it prefers the living
// replicas.
func (c *Coordinator) Ranks(ids []shard.ID) [][]shard.Ranked { return c.plannerState().Ranks(ids) }

func (c *Coordinator) plannerState() (s shard.State) {
	c.link.Look(func(v *table.View) { s = term.PlannerState(v, c.cfg.Timing.Planner, time.Now()) })
	return s
}
