// Package tlsfile keeps a certificate, its key and the authorities of the other
// side as they stand in PEM files, so that they can be replaced while the
// process runs.
//
// Its invariants:
//
//   - New fails on files that cannot be used, so a process does not start with
//     them. Later the last that could be used stay in force, and the log says
//     why others could not; once for each reason.
//   - A certificate and a key that do not fit together are what a replacement
//     looks like halfway. They are never used.
//   - Nothing of a file but its path gets into an error or a log.
//
// Owner: the wiring, which runs each Store.
package tlsfile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"
)

const (
	// defaultEvery is how often the files are looked at.
	defaultEvery = 10 * time.Second
	// maxBytes is far above any chain or token; it keeps a wrong path from filling the
	// memory.
	maxBytes = 1 << 20
)

// Config is what a Store needs. Logger is required, and one of CA and
// Certificate; Certificate and Key go together.
type Config struct {
	// CA, Certificate and Key are paths of PEM files.
	CA, Certificate, Key string
	// What the files are for, for the log.
	What string
	// Every is how often the files are looked at, 0 for every 10 s.
	Every  time.Duration
	Logger *slog.Logger
}

// Store has what the files held when they could be used last. All methods may be
// called at once, Run once.
type Store struct {
	cfg     Config
	current atomic.Pointer[material]
}

type material struct {
	ca, certificate, key []byte // as they were read
	pool                 *x509.CertPool
	pair                 *tls.Certificate
}

// New reads the files. Run keeps up with them.
func New(cfg Config) (*Store, error) {
	switch {
	case cfg.Logger == nil:
		return nil, errors.New("tlsfile: a logger is required")
	case cfg.CA == "" && cfg.Certificate == "":
		return nil, errors.New("tlsfile: no file is named")
	case (cfg.Certificate == "") != (cfg.Key == ""):
		return nil, errors.New("tlsfile: a certificate and a key go together")
	}
	cfg.Every = cmp.Or(cfg.Every, defaultEvery)
	s := &Store{cfg: cfg}
	m, err := s.read()
	if err != nil {
		return nil, err
	}
	s.current.Store(m)
	return s, nil
}

// Run looks at the files until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	said := ""
	for {
		// Replicas that got their files at once do not look at once.
		timer := time.NewTimer(s.cfg.Every*9/10 + rand.N(s.cfg.Every/5))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		changed, err := s.Look()
		switch {
		case err != nil && err.Error() != said:
			said = err.Error()
			s.cfg.Logger.Error("TLS files cannot be used; those read before stay in force", "what", s.cfg.What, "error", err)
		case err == nil && changed:
			s.cfg.Logger.Info("TLS files were read anew", "what", s.cfg.What, "certificate_expires", s.Expires())
		}
		if err == nil {
			said = ""
		}
	}
}

// Look reads the files, and says whether they are others than before. An error
// leaves what was in force.
func (s *Store) Look() (changed bool, err error) {
	m, err := s.read()
	if err != nil {
		return false, err
	}
	old := s.current.Load()
	if bytes.Equal(old.ca, m.ca) && bytes.Equal(old.certificate, m.certificate) && bytes.Equal(old.key, m.key) {
		return false, nil
	}
	s.current.Store(m)
	return true, nil
}

func (s *Store) read() (*material, error) {
	m := &material{}
	for _, file := range []struct {
		path string
		to   *[]byte
	}{{s.cfg.CA, &m.ca}, {s.cfg.Certificate, &m.certificate}, {s.cfg.Key, &m.key}} {
		if file.path == "" {
			continue
		}
		content, err := ReadFile(file.path)
		if err != nil {
			return nil, fmt.Errorf("read a PEM file: %w", err)
		}
		*file.to = content
	}
	if s.cfg.CA != "" {
		m.pool = x509.NewCertPool()
		if !m.pool.AppendCertsFromPEM(m.ca) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", s.cfg.CA)
		}
	}
	if s.cfg.Certificate != "" {
		pair, err := tls.X509KeyPair(m.certificate, m.key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s are no certificate and its key in PEM: %w", s.cfg.Certificate, s.cfg.Key, err)
		}
		m.pair = &pair
	}
	return m, nil
}

// ReadFile reads a file of certificates, a key or a token. One that is larger than
// any of those is an error.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err == nil && len(content) > maxBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxBytes)
	}
	return content, err
}

// Expires is when the certificate in force does; zero if there is none.
func (s *Store) Expires() time.Time {
	if pair := s.current.Load().pair; pair != nil {
		return pair.Leaf.NotAfter
	}
	return time.Time{}
}

// ServerTLS is the configuration of a server that shows the certificate in
// force. With a CA, clients may show certificates of their own, which must be
// signed by it; those without one are let in, for whoever serves to say what
// they may do.
func (s *Store) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.current.Load()
			if m.pair == nil {
				return nil, errors.New("there is no certificate to serve with")
			}
			c := &tls.Config{
				MinVersion:   tls.VersionTLS12,
				Certificates: []tls.Certificate{*m.pair},
				// A resumed session would be believed by authorities of the past.
				SessionTicketsDisabled: true,
			}
			if m.pool != nil {
				c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, m.pool
			}
			return c, nil
		},
	}
}

// ClientCertificate is for tls.Config.GetClientCertificate: the certificate in
// force, whatever the server asks for.
func (s *Store) ClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if pair := s.current.Load().pair; pair != nil {
		return pair, nil
	}
	return new(tls.Certificate), nil // none
}

// VerifyClient says whether a client's chain, its own certificate first, is good
// now, by the authorities in force: connections outlive certificates and files.
func (s *Store) VerifyClient(chain []*x509.Certificate) error {
	m := s.current.Load()
	if m.pool == nil || len(chain) == 0 {
		return errors.New("no certificates of clients are expected")
	}
	options := x509.VerifyOptions{
		Roots: m.pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(options)
	return err
}
