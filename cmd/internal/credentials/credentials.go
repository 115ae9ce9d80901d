// Package credentials has the flags by which commands say how they believe
// replicas, and how they prove to them who they are.
package credentials

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/trestle-bridge/trestle/internal/secret"
	"github.com/trestle-bridge/trestle/internal/tlsfile"
)

// Credentials are those of one caller. Read them before use; then they are safe
// to use at once.
type Credentials struct {
	ca, crt, key, serverName, tokenFile string
	system                              bool // believe the authorities of this machine

	tls   *tls.Config // nil for plain text
	token secret.String
}

// AddFlags adds the flags to a command's.
func (c *Credentials) AddFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&c.system, "tls", false, "speak TLS, and believe the authorities of this machine ($TRESTLE_TLS)")
	flags.StringVar(&c.ca, "tls-ca", "", "speak TLS, and believe the authority in this PEM `file` ($TRESTLE_TLS_CA)")
	flags.StringVar(&c.crt, "tls-crt", "", "PEM `file` of the certificate that says who we are ($TRESTLE_TLS_CRT)")
	flags.StringVar(&c.key, "tls-key", "", "PEM `file` of its key ($TRESTLE_TLS_KEY)")
	flags.StringVar(&c.serverName, "tls-server-name", "", "name that the replicas' certificate is for, if not that of the address ($TRESTLE_TLS_SERVER_NAME)")
	flags.StringVar(&c.tokenFile, "token-file", "", "`file` of the token that says who we are ($TRESTLE_TOKEN_FILE)")
}

// Read completes from the environment what the flags have left out, and reads the
// files. The error names the flag.
func (c *Credentials) Read(lookupEnv func(string) (string, bool)) error {
	for _, v := range []struct {
		name string
		to   *string
	}{
		{"TRESTLE_TLS_CA", &c.ca}, {"TRESTLE_TLS_CRT", &c.crt}, {"TRESTLE_TLS_KEY", &c.key},
		{"TRESTLE_TLS_SERVER_NAME", &c.serverName}, {"TRESTLE_TOKEN_FILE", &c.tokenFile},
	} {
		if value, set := lookupEnv(v.name); set && *v.to == "" {
			*v.to = value
		}
	}
	switch value, _ := lookupEnv("TRESTLE_TLS"); value {
	case "", "false":
	case "true":
		c.system = true
	default:
		return fmt.Errorf("TRESTLE_TLS is %q: give true or false", value)
	}
	if c.tokenFile != "" {
		content, err := tlsfile.ReadFile(c.tokenFile)
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		token := strings.TrimSpace(string(content))
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("--token-file: %s holds no token, which is one word", c.tokenFile)
		}
		c.token = secret.New(token)
	}
	if (c.crt == "") != (c.key == "") {
		return errors.New("--tls-crt and --tls-key go together")
	}
	if c.ca == "" && c.crt == "" && c.serverName == "" && !c.system {
		return nil
	}
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName}
	if c.ca != "" {
		content, err := tlsfile.ReadFile(c.ca)
		if err != nil {
			return fmt.Errorf("--tls-ca: %w", err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(content) {
			return fmt.Errorf("--tls-ca: %s holds no certificate in PEM", c.ca)
		}
	}
	if c.crt != "" {
		pair, err := tls.LoadX509KeyPair(c.crt, c.key)
		if err != nil {
			return fmt.Errorf("--tls-crt and --tls-key: %w", err)
		}
		c.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// TLS says whether TLS is spoken.
func (c *Credentials) TLS() bool { return c.tls != nil }

// Options are those of a connection to an address. A token is not sent where
// others may read it.
func (c *Credentials) Options(address string) ([]grpc.DialOption, error) {
	var options []grpc.DialOption
	if c.tls != nil {
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(c.tls)))
	} else {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if c.token.IsZero() {
		return options, nil
	}
	if c.tls == nil && !onThisMachine(address) {
		return nil, errors.New("a token would go there in plain text; speak TLS (--tls-ca or --tls), or use a port-forward")
	}
	return append(options, grpc.WithPerRPCCredentials(bearer{c.token})), nil
}

func onThisMachine(address string) bool {
	_, after, found := strings.Cut(address, ":///")
	if found {
		address = after
	}
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// bearer sends a token with every call.
type bearer struct{ token secret.String }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials; see Options.
func (bearer) RequireTransportSecurity() bool { return false }
