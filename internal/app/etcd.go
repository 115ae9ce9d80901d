package app

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/tlsfile"
)

// etcdFiles are our certificate for etcd and its key, nil if there are none.
func etcdFiles(cfg config.Etcd, registerer prometheus.Registerer, log *slog.Logger) (*tlsfile.Store, error) {
	if cfg.TLS.Crt == "" {
		return nil, nil
	}
	files, err := tlsfile.New(tlsfile.Config{Certificate: cfg.TLS.Crt, Key: cfg.TLS.Key, What: "etcd (etcd.tls)", Logger: log})
	if err != nil {
		return nil, fmt.Errorf("read etcd.tls.crt and etcd.tls.key: %w", err)
	}
	return files, expiry(registerer, "etcd", files)
}

// newEtcd makes a client. It does not connect, so it succeeds while etcd is
// away; its errors are those of the configuration.
func newEtcd(cfg config.Etcd, files *tlsfile.Store) (*clientv3.Client, error) {
	secured, err := clientTLS("etcd.tls", cfg.TLS, cfg.Material)
	if files != nil && err == nil {
		// Connections to come show what the files hold then.
		secured.Certificates, secured.GetClientCertificate = nil, files.ClientCertificate
	}
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
