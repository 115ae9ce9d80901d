package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trestle-bridge/trestle/internal/event"
)

// LifecycleRow is an event for analytics that waits to be sent.
type LifecycleRow struct {
	ID int64
	event.Lifecycle
}

// Leased rows are left to their sender this long. It bounds how late the
// events of a sender that died are sent, and how long a slow one may take
// before another sends the same again.
const leaseSQL = `
UPDATE trestle_lifecycle l
SET leased_by = $1, leased_until = now() + interval '1 minute'
WHERE l.id = ANY (ARRAY (
    SELECT id
    FROM trestle_lifecycle
    WHERE leased_until < now() OR leased_by = $1
    ORDER BY id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING l.id, l.event`

// PendingLifecycle gives the oldest events that nobody else is sending, and
// leases them for a minute: asked again by the same Store, it gives them again
// until they are deleted. Addresses and tokens are scrubbed from their
// properties.
func (s *Store) PendingLifecycle(ctx context.Context, limit int) (events []LifecycleRow, err error) {
	defer s.metrics.done("pending lifecycle", time.Now(), &err)
	rows, err := s.pool.Query(ctx, leaseSQL, s.name, limit)
	if err == nil {
		events, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (LifecycleRow, error) {
			var out LifecycleRow
			var encoded []byte
			if err := row.Scan(&out.ID, &encoded); err != nil {
				return LifecycleRow{}, err
			}
			if err := json.Unmarshal(encoded, &out.Lifecycle); err != nil {
				return LifecycleRow{}, fmt.Errorf("decode lifecycle event %d: %w", out.ID, err)
			}
			scrubProperties(out.Properties)
			return out, nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("lease lifecycle events: %w", err)
	}
	slices.SortFunc(events, func(a, b LifecycleRow) int { return int(a.ID - b.ID) })
	return events, nil
}

// DeleteLifecycle deletes events that have been sent.
func (s *Store) DeleteLifecycle(ctx context.Context, ids []int64) (err error) {
	if len(ids) == 0 {
		return nil
	}
	defer s.metrics.done("delete lifecycle", time.Now(), &err)
	if _, err := s.pool.Exec(ctx, `DELETE FROM trestle_lifecycle WHERE id = ANY ($1)`, ids); err != nil {
		return fmt.Errorf("delete %d lifecycle events: %w", len(ids), err)
	}
	return nil
}

// scrubProperties scrubs every text in the conditions and the timeout. The ids
// are what the event is about.
func scrubProperties(properties map[string]any) {
	for _, key := range []string{"conditions", "timeout"} {
		if value, is := properties[key]; is {
			properties[key] = scrubbed(value)
		}
	}
}

func scrubbed(value any) any {
	switch value := value.(type) {
	case string:
		return scrub(value)
	case []any:
		for i := range value {
			value[i] = scrubbed(value[i])
		}
	case map[string]any:
		for key := range value {
			value[key] = scrubbed(value[key])
		}
	}
	return value
}
