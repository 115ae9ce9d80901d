package worker

import (
	"context"
	"fmt"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/shard"
)

// Why tells what was decided of an instance's last updates here, oldest first,
// and what waits of it.
func (w *Worker) Why(id status.InstanceID) ([]pipeline.Decided, []pipeline.Undecided) {
	return w.cfg.Pipeline.Why(id)
}

// Retry forgets what was heard of an instance, takes a snapshot of its cluster
// and waits until what that says of the instance is decided. It reports false if
// the snapshot says nothing of it. The error wraps pipeline.ErrCannotRetry when
// nothing was changed.
func (w *Worker) Retry(ctx context.Context, id shard.ID, instance status.InstanceID) (pipeline.Decided, bool, error) {
	m := w.member(id)
	if m == nil || !m.intake.Owns() {
		return pipeline.Decided{}, false, fmt.Errorf("%w: shard %s is not owned by this replica", pipeline.ErrCannotRetry, id)
	}
	m.mu.Lock()
	client := m.client
	m.mu.Unlock()
	if client == nil || !client.State().Connected {
		return pipeline.Decided{}, false, fmt.Errorf("%w: the owner of %s cannot hear the cluster now", pipeline.ErrCannotRetry, id)
	}
	m.intake.Retry(instance)
	if err := client.Refresh(ctx); err != nil {
		return pipeline.Decided{}, false, fmt.Errorf("retry instance %s: %w", instance, err)
	}
	decided, heard, err := m.intake.Retried(ctx, instance)
	if err != nil {
		return pipeline.Decided{}, false, fmt.Errorf("retry instance %s: wait until it is decided: %w", instance, err)
	}
	return decided, heard, nil
}
