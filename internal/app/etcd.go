package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	secured, err := etcdTLS(cfg)
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
func etcdTLS(cfg config.Etcd) (*tls.Config, error) {
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
	if len(cfg.Material.Crt) > 0 {
		pair, err := tls.X509KeyPair(cfg.Material.Crt, []byte(cfg.Material.Key.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("read etcd.tls.crt and etcd.tls.key: %w", err)
		}
		secured.Certificates = []tls.Certificate{pair}
	}
	return secured, nil
}
