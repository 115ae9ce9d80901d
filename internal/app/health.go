package app

import (
	"context"
	"errors"

	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/internal/publish"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/pipeline"
)

// health answers for the service.
type health struct {
	pipeline *pipeline.Pipeline
	store    *store.Store
	redis    *publish.Publisher
	clusters *fleet
}

// live says whether the loops turn. An outage of a server is no reason to be
// restarted: what was heard would be lost with the process.
func (h health) live(context.Context) []observe.Check {
	return []observe.Check{{Name: "pipeline", Err: h.pipeline.Healthy()}}
}

// ready says whether this replica can take shards: it has read which clusters
// there are, and reaches what it writes to.
func (h health) ready(ctx context.Context) []observe.Check {
	var clusters error
	if !h.clusters.isKnown() {
		clusters = errors.New("the workspace clusters have not been read yet")
	}
	return append(h.live(ctx),
		observe.Check{Name: "clusters", Err: clusters},
		observe.Check{Name: "postgres", Err: h.store.Ping(ctx)},
		observe.Check{Name: "redis", Err: h.redis.Ping(ctx)},
	)
}
