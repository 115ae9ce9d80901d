package config

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/trestle-bridge/trestle/internal/config/settings"
)

// What the checks below take, in words.
const (
	whatText     = "a text without control characters"
	whatListen   = "host:port, with a port from 0 to 65535 and an empty host for all interfaces"
	whatConsole  = whatListen + ", or nothing at all"
	whatHosts    = "host names without ports"
	whatAddress  = "host:port, with a port from 1 to 65535"
	whatPostgres = "a PostgreSQL URL (postgres://user:password@host:port/database) or connection string (host=... dbname=...)"
	whatRedis    = "a Redis URL (redis://, rediss:// or unix://)"
	whatEtcd     = "etcd's addresses, each host:port or a URL with http, https, unix or unixs"
	whatPrefix   = "a path that begins with a slash and does not end with one"
	whatSink     = "none, log, or an HTTP URL"
	whatTracing  = "host:port, or a URL with http (plain) or https (TLS)"
	whatTarget   = "a gRPC target: host:port, or with a scheme such as dns:///host:port"
	whatID       = "a name of at most 200 characters without blanks, slashes and control characters"
	whatName     = "a name without control characters, not empty"
)

func anyText(s string) error {
	if strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return errors.New("holds a control character")
	}
	return nil
}

func anyName(s string) error {
	if strings.TrimSpace(s) == "" {
		return errors.New("is empty")
	}
	return anyText(s)
}

func replicaName(s string) error {
	if len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool {
		return r == '/' || unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		return settings.ErrNotAllowed
	}
	return nil
}

func listenAddress(s string) error { return hostPort(s, 0, true) }
func consoleAddress(s string) error {
	if s == "" {
		return nil
	}
	return listenAddress(s)
}

func hostName(s string) error {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune("/@:*", r)
	}) {
		return settings.ErrNotAllowed
	}
	return nil
}

func peerAddress(s string) error {
	if s == "" {
		return nil
	}
	return hostPort(s, 1, false)
}
func serverAddress(s string) error { return hostPort(s, 1, false) }

func hostPort(s string, lowest int, anyHost bool) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("is not host:port")
	}
	if host == "" && !anyHost {
		return errors.New("names no host")
	}
	if strings.ContainsFunc(host, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '/' || r == '@' }) {
		return errors.New("has a host that is none")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || int(n) < lowest {
		return errors.New("has a port that is none")
	}
	return nil
}

func postgresURL(s string) error {
	if scheme, rest, isURL := strings.Cut(s, "://"); isURL {
		if scheme != "postgres" && scheme != "postgresql" {
			return errors.New("has another scheme")
		}
		if rest == "" {
			return errors.New("names no server")
		}
		return nil
	}
	if !strings.Contains(s, "=") {
		return errors.New("is neither a URL nor a connection string")
	}
	return nil
}

func redisURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		// The error quotes the address, password and all.
		return errors.New("is not a URL")
	}
	switch u.Scheme {
	case "unix":
		if u.Path == "" {
			return errors.New("names no socket")
		}
	case "redis", "rediss":
		if u.Hostname() == "" {
			return errors.New("names no host")
		}
		if db := strings.Trim(u.Path, "/"); db != "" {
			if _, err := strconv.ParseUint(db, 10, 31); err != nil {
				return errors.New("has a path that is no number of a database")
			}
		}
	default:
		return errors.New("has another scheme")
	}
	return nil
}

func etcdEndpoint(s string) error {
	if s == "" {
		return errors.New("has an empty entry")
	}
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		return serverAddress(s)
	}
	switch scheme {
	case "http", "https":
		return serverAddress(strings.TrimSuffix(rest, "/"))
	case "unix", "unixs":
		if rest == "" {
			return errors.New("names no socket")
		}
		return nil
	}
	return errors.New("has another scheme")
}

func etcdPrefix(s string) error {
	if len(s) < 2 || s[0] != '/' || s[len(s)-1] == '/' || strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		return settings.ErrNotAllowed
	}
	return nil
}

func lifecycleSink(s string) error {
	if s == "none" || s == "log" {
		return nil
	}
	return httpURL(s)
}

func tracingEndpoint(s string) error {
	if s == "" {
		return nil
	}
	if strings.Contains(s, "://") {
		return httpURL(s)
	}
	return serverAddress(s)
}

func httpURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("is not a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return settings.ErrNotAllowed
	}
	if u.Hostname() == "" {
		return errors.New("names no host")
	}
	return nil
}

func grpcTarget(s string) error {
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		if path, isUnix := strings.CutPrefix(s, "unix:"); isUnix && path != "" {
			return nil
		}
		return serverAddress(s)
	}
	switch scheme {
	case "unix":
		if rest == "" {
			return errors.New("names no socket")
		}
		return nil
	case "dns", "passthrough", "ipv4", "ipv6":
		// What stands before the third slash is the name server, if any.
		if _, endpoint, has := strings.Cut(rest, "/"); has {
			rest = endpoint
		}
		return serverAddress(rest)
	}
	return errors.New("has a scheme that gRPC does not know")
}
