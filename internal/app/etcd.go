package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	secured, err := etcdTLS(cfg, files)
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

// etcdTLS gives nil for plain connections; the scheme of an endpoint without
// files of its own means the system's authorities.
func etcdTLS(cfg config.Etcd, files *tlsfile.Store) (*tls.Config, error) {
	if cfg.TLS == (config.TLSFiles{}) {
		return nil, nil
	}
	secured := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(cfg.Material.CA) > 0 {
		secured.RootCAs = x509.NewCertPool()
		if !secured.RootCAs.AppendCertsFromPEM(cfg.Material.CA) {
			return nil, errors.New("etcd.tls.ca holds no certificate in PEM")
		}
	}
	if files != nil {
		// Connections to come show what the files hold then.
		secured.GetClientCertificate = files.ClientCertificate
	}
	return secured, nil
}
