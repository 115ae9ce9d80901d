package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/trestle-bridge/trestle/internal/config"
)

// clientTLS is how to reach a server whose files stand under a key of the
// configuration. It gives nil without files: then the scheme of the address says
// whether to speak TLS, with the system's authorities.
func clientTLS(key string, files config.TLSFiles, material config.TLSMaterial) (*tls.Config, error) {
	if files.IsZero() {
		return nil, nil
	}
	secured := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(material.CA) > 0 {
		secured.RootCAs = x509.NewCertPool()
		if !secured.RootCAs.AppendCertsFromPEM(material.CA) {
			return nil, fmt.Errorf("%s.ca holds no certificate in PEM", key)
		}
	}
	if len(material.Crt) > 0 {
		pair, err := tls.X509KeyPair(material.Crt, []byte(material.Key.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("read %s.crt and %s.key: %w", key, key, err)
		}
		secured.Certificates = []tls.Certificate{pair}
	}
	return secured, nil
}
