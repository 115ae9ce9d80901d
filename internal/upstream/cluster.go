package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/trestle-bridge/trestle/internal/secret"
)

// serverName is what every cluster's certificate is for, whatever its URL.
const serverName = "ws-manager"

// dialTimeout bounds how long a host that does not answer holds us up.
const dialTimeout = 5 * time.Second

// Cluster says where a workspace cluster is and how to prove who we are.
type Cluster struct {
	Name string
	// URL is a gRPC target: host:port, or with one of the schemes dns,
	// passthrough, unix and unix-abstract. Without a port it is 443.
	URL string
	// TLS is nil for a plain connection.
	TLS *TLS
}

// TLS is what a connection with mutual TLS needs, each in PEM. It prints
// itself as redacted.
type TLS struct {
	CA, Cert, Key secret.String
}

// Equal says whether both prove the same to each other; nil is a plain
// connection.
func (t *TLS) Equal(other *TLS) bool {
	if t == nil || other == nil {
		return t == other
	}
	return t.CA.Equal(other.CA) && t.Cert.Equal(other.Cert) && t.Key.Equal(other.Key)
}

// config gives nil for a plain connection.
func (t *TLS) config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	if t.CA.IsZero() || t.Cert.IsZero() || t.Key.IsZero() {
		return nil, errors.New("TLS needs a CA, a certificate and a key")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(t.CA.Reveal())) {
		return nil, errors.New("the TLS CA holds no certificate in PEM")
	}
	pair, err := tls.X509KeyPair([]byte(t.Cert.Reveal()), []byte(t.Key.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("read the TLS certificate and key: %w", err)
	}
	return &tls.Config{
		RootCAs:      roots,
		Certificates: []tls.Certificate{pair},
		ServerName:   serverName,
		MinVersion:   tls.VersionTLS12,
	}, nil
}

// target is a gRPC target, taken apart. We resolve and dial ourselves, once
// for each connection: the stream and the snapshots then go the same way, a
// cluster that came back under another address is found at the next attempt,
// and neither proxies from the environment nor service configurations from
// the DNS have a say.
type target struct {
	network string // tcp or unix
	address string // host:port, or the path of a socket
	// resolver is the DNS server that the target names, or nil.
	resolver *net.Resolver
}

func parseTarget(url string) (target, error) {
	scheme, rest, has := strings.Cut(url, ":")
	if !has {
		return tcpTarget(url, nil)
	}
	switch scheme {
	case "unix", "unix-abstract":
		path, slashes := strings.CutPrefix(rest, "//")
		if slashes && !strings.HasPrefix(path, "/") {
			return target{}, fmt.Errorf("target %q: a socket's path after %s:// starts with a slash", url, scheme)
		}
		if path == "" {
			return target{}, fmt.Errorf("target %q names no socket", url)
		}
		if scheme == "unix-abstract" {
			path = "@" + path
		}
		return target{network: "unix", address: path}, nil
	case "dns", "passthrough":
		endpoint, slashes := strings.CutPrefix(rest, "//")
		if !slashes {
			if scheme == "dns" && isPort(rest) {
				break // a host that is called dns
			}
			return tcpTarget(rest, nil)
		}
		server, endpoint, has := strings.Cut(endpoint, "/")
		if !has {
			return target{}, fmt.Errorf("target %q: the host stands after three slashes, as in %s:///host:port", url, scheme)
		}
		if server == "" || scheme == "passthrough" {
			return tcpTarget(endpoint, nil)
		}
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(strings.Trim(server, "[]"), "53")
		}
		dialer := net.Dialer{Timeout: dialTimeout}
		return tcpTarget(endpoint, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, server)
		}})
	}
	if strings.HasPrefix(rest, "//") {
		return target{}, fmt.Errorf("target %q: scheme %q is none of dns, passthrough, unix, unix-abstract", url, scheme)
	}
	return tcpTarget(url, nil)
}

func isPort(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}

func tcpTarget(endpoint string, resolver *net.Resolver) (target, error) {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		host, port = strings.Trim(endpoint, "[]"), "443"
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return target{}, fmt.Errorf("target %q: %w", endpoint, err)
		}
	}
	if host == "" || port == "" || strings.ContainsAny(host, "/ @") {
		return target{}, fmt.Errorf("target %q is not of the form host:port", endpoint)
	}
	return target{network: "tcp", address: net.JoinHostPort(host, port), resolver: resolver}, nil
}

func (t target) dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, Resolver: t.resolver}
	return dialer.DialContext(ctx, t.network, t.address)
}

// authority is what requests name as their host.
func (t target) authority(secured bool) string {
	switch {
	case secured:
		return serverName
	case t.network == "unix":
		return "localhost"
	}
	return t.address
}
