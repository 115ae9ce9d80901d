package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/config"
	"github.com/trestle-bridge/trestle/internal/tlsfile"
)

// door is who may call gRPC, and how: what the configuration says of it, kept up
// with the files.
type door struct {
	files  *tlsfile.Store // nil for plain text
	access *access.Authenticator
}

func newDoor(cfg config.ClusterService, registerer prometheus.Registerer, log *slog.Logger) (*door, error) {
	d := &door{}
	who := access.Config{TokenFile: cfg.TokenFile, Logger: log, Names: make(map[string]access.Role)}
	if !cfg.TLS.IsZero() {
		var err error
		d.files, err = tlsfile.New(tlsfile.Config{
			CA: cfg.TLS.CA, Certificate: cfg.TLS.Crt, Key: cfg.TLS.Key, What: "gRPC (clusterService.tls)", Logger: log,
		})
		if err != nil {
			return nil, fmt.Errorf("serve gRPC with TLS (clusterService.tls): %w", err)
		}
		who.VerifyClient = d.files.VerifyClient
		if err := expiry(registerer, "grpc", d.files); err != nil {
			return nil, err
		}
	}
	for _, r := range cfg.Roles {
		role, err := access.ParseRole(r.Role)
		if err != nil {
			return nil, fmt.Errorf("the role of %q in clusterService.roles %w", r.Name, err)
		}
		who.Names[r.Name] = role
	}
	var err error
	if d.access, err = access.New(who); err != nil {
		return nil, fmt.Errorf("tell the callers of gRPC apart (clusterService): %w", err)
	}
	return d, nil
}

// tls is nil for plain text.
func (d *door) tls() *tls.Config {
	if d.files == nil {
		return nil
	}
	return d.files.ServerTLS()
}

// run keeps up with the files until ctx ends.
func (d *door) run(ctx context.Context) error {
	if d.files == nil {
		return d.access.Run(ctx)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.files.Run(ctx) })
	group.Go(func() error { return d.access.Run(ctx) })
	return group.Wait()
}

// CheckFiles reads what serve reads again and again, and is not in the Config.
func CheckFiles(cfg config.Config) error {
	_, err := newDoor(cfg.ClusterService, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	return err
}

// expiry shows when a certificate expires, so that one that nobody renews is
// noticed before it does.
func expiry(registerer prometheus.Registerer, of string, files *tlsfile.Store) error {
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "trestle_certificate_expiry_timestamp_seconds", Help: "When the certificate in force expires, as Unix time; 0 if there is none.",
		ConstLabels: prometheus.Labels{"of": of},
	}, func() float64 {
		if at := files.Expires(); !at.IsZero() {
			return float64(at.UnixNano()) / float64(time.Second)
		}
		return 0
	})
	if err := registerer.Register(gauge); err != nil {
		return fmt.Errorf("show when a certificate expires: %w", err)
	}
	return nil
}
