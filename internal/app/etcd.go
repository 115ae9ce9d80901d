package app

import (
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trestle-bridge/trestle/internal/config"
)

// newEtcd makes a client. It does not connect, so it succeeds while etcd is
// away; its errors are those of the configuration.
func newEtcd(cfg config.Etcd) (*clientv3.Client, error) {
	secured, err := clientTLS("etcd.tls", cfg.TLS, cfg.Material)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints,
		TLS:       secured,
		// A connection that died in silence is noticed within a lease.
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    max(cfg.Lease/2, 2*time.Second),
		DialKeepAliveTimeout: max(cfg.Lease/4, time.Second),
		// Whoever calls says what failed, and knows whether it matters.
		Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	return client, nil
}
