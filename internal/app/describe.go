package app

import (
	"context"

	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/upstream"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// describe asks a registered cluster for its workspace classes.
func describe(ctx context.Context, row store.Cluster) (*wsman.DescribeClusterResponse, error) {
	cluster, err := registeredCluster(row)
	if err != nil {
		return nil, err
	}
	client, err := upstream.New(upstream.Config{Cluster: cluster})
	if err != nil {
		return nil, err
	}
	return client.Describe(ctx)
}
