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
	fleet    *fleet
}

// live says whether the loops turn. An outage of a server is no reason to be
// restarted: what was heard would be lost with the process.
func (h health) live(context.Context) []observe.Check {
	return []observe.Check{{Name: "pipeline", Err: h.pipeline.Healthy()}}
}

// ready says whether this replica may receive shards: it has read which clusters
// there are, takes part in the fleet, and reaches what it writes to.
func (h health) ready(ctx context.Context) []observe.Check {
	var clusters, etcd error
	if _, known := h.fleet.registry.clusters(); !known {
		clusters = errors.New("the workspace clusters have not been read yet")
	}
	if h.fleet.coordinator.Detached() {
		etcd = errors.New("this replica has no lease in etcd; it goes on with the shards that it has")
	}
	return append(h.live(ctx),
		observe.Check{Name: "clusters", Err: clusters},
		observe.Check{Name: "etcd", Err: etcd},
		observe.Check{Name: "postgres", Err: h.store.Ping(ctx)},
		observe.Check{Name: "redis", Err: h.redis.Ping(ctx)},
	)
}
