package publish

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/trestle-bridge/trestle/internal/secret"
)

// Redis says where Redis is. Either Address or URL is required; URL wins.
type Redis struct {
	// Address is host:port.
	Address string

	// URL is redis://[user:password@]host:port/database, rediss:// for TLS, or
	// unix://path. Timeouts may be set as in ?read_timeout=2s.
	//
	// With ?master_name=NAME it names a Sentinel, further ones with
	// &addr=host:port. Then user and password are for the Sentinels, and those
	// for Redis itself are &username= and &password=, or the fields below.
	URL secret.URL

	// Username and Password win over those in the URL.
	Username string
	Password secret.String

	// TLS wins over what the URL's scheme says. Default: TLS for rediss:// with
	// the machine's certificate authorities.
	TLS *tls.Config
}

// ioTimeout bounds a dial, a write, and the wait for the answers to one round
// trip, unless the URL says otherwise: a dead peer is noticed within it.
const ioTimeout = 3 * time.Second

// maxConnections is far above the number of lanes. It also is the number of
// failed dials after which the driver would probe in the background.
const maxConnections = 64

func newClient(cfg Redis) (*redis.Client, error) {
	raw := cfg.URL.Reveal()
	if raw == "" {
		if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
			return nil, fmt.Errorf("the address of Redis must be host:port: %w", err)
		}
		opts := &redis.Options{Network: "tcp", Addr: cfg.Address}
		return cfg.direct(opts), nil
	}
	parsed, err := url.Parse(raw)
	if err != nil {
		return nil, errBadURL
	}
	if parsed.Query().Has("master_name") {
		opts, err := redis.ParseFailoverURL(raw)
		if err != nil {
			return nil, explainURL(raw, err)
		}
		if opts.MasterName == "" || opts.RouteByLatency || opts.RouteRandomly || opts.ReplicaOnly {
			return nil, errors.New("the URL of Redis must name a master, and may not send us to replicas")
		}
		return cfg.sentinel(opts), nil
	}
	opts, err := redis.ParseURL(raw)
	if err != nil {
		return nil, explainURL(raw, err)
	}
	return cfg.direct(opts), nil
}

var errBadURL = errors.New("the URL of Redis is not of the form redis://[user:password@]host:port/database (special characters in the password must be percent-encoded)")

// explainURL gives the reason only where no part of a password can be in it:
// one with stray slashes ends up in what the parser quotes.
func explainURL(raw string, err error) error {
	if strings.Contains(raw, "@") || strings.Contains(strings.ToLower(raw), "password") {
		return errBadURL
	}
	return fmt.Errorf("read the URL of Redis: %w", err)
}

func (cfg Redis) direct(o *redis.Options) *redis.Client {
	if cfg.Username != "" {
		o.Username = cfg.Username
	}
	if !cfg.Password.IsZero() {
		o.Password = cfg.Password.Reveal()
	}
	if cfg.TLS != nil {
		o.TLSConfig = cfg.TLS
	}
	o.DialTimeout = orDefault(o.DialTimeout)
	o.ReadTimeout = orDefault(o.ReadTimeout)
	o.WriteTimeout = orDefault(o.WriteTimeout)
	// The driver would send a whole pipeline again after a lost answer: messages
	// would come twice that the caller has not chosen to repeat.
	o.MaxRetries = -1
	// Dials are repeated by the caller too, who knows how long it may wait.
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.PoolSize, o.PoolTimeout, o.MinIdleConns = maxConnections, ioTimeout, 0
	o.PipelinePoolSize = -1 // sessions pipeline on connections of their own
	// RESP3 has nothing for a publisher, and costs a look for pushed messages
	// at every answer.
	o.Protocol = 2
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.DisableIdentity = true
	o.ClientName = orName(o.ClientName)
	o.Dialer = dialer(o.DialTimeout, o.TLSConfig)
	return redis.NewClient(o)
}

// sentinel sets the same as direct, for the same reasons.
func (cfg Redis) sentinel(o *redis.FailoverOptions) *redis.Client {
	if cfg.Username != "" {
		o.Username = cfg.Username
	}
	if !cfg.Password.IsZero() {
		o.Password = cfg.Password.Reveal()
	}
	if cfg.TLS != nil {
		o.TLSConfig = cfg.TLS
	} else if o.TLSConfig != nil {
		// The driver has the name of the first Sentinel here. The others and the
		// master have names of their own, which the dialer knows.
		o.TLSConfig.ServerName = ""
	}
	o.DialTimeout = orDefault(o.DialTimeout)
	o.ReadTimeout = orDefault(o.ReadTimeout)
	o.WriteTimeout = orDefault(o.WriteTimeout)
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.PoolSize, o.PoolTimeout, o.MinIdleConns = maxConnections, ioTimeout, 0
	o.PipelinePoolSize = -1
	o.Protocol = 2
	o.DisableIdentity = true
	o.ClientName = orName(o.ClientName)
	o.Dialer = dialer(o.DialTimeout, o.TLSConfig)
	return redis.NewFailoverClient(o)
}

// orDefault also replaces the driver's negative values, which mean no timeout.
func orDefault(d time.Duration) time.Duration {
	if d <= 0 {
		return ioTimeout
	}
	return d
}

func orName(name string) string {
	if name == "" {
		return "trestle"
	}
	return name
}

// dialer makes connections that forget what they have not delivered when they
// are closed. By default the kernel goes on delivering it for minutes: after a
// network failure messages given up long ago would arrive behind newer ones.
func dialer(timeout time.Duration, tlsConfig *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: timeout, KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			if err := tcp.SetLinger(0); err != nil {
				return nil, errors.Join(err, conn.Close())
			}
		}
		if tlsConfig == nil {
			return conn, nil
		}
		cfg := tlsConfig
		if host, _, err := net.SplitHostPort(addr); err == nil && cfg.ServerName == "" {
			cfg = cfg.Clone()
			cfg.ServerName = host
		}
		secured := tls.Client(conn, cfg)
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close() // the handshake's error says more
			return nil, fmt.Errorf("TLS handshake with %s: %w", addr, err)
		}
		return secured, nil
	}
}

// LogDriver sends what the Redis driver has to say to log, at debug level: the
// errors that matter come back to its callers. The driver keeps one logger for
// the whole process and by default prints to standard error, so this is for the
// wiring of a program to call, once.
func LogDriver(log *slog.Logger) { redis.SetLogger(driverLog{log}) }

type driverLog struct{ log *slog.Logger }

func (d driverLog) Printf(ctx context.Context, format string, args ...any) {
	if d.log.Enabled(ctx, slog.LevelDebug) {
		d.log.DebugContext(ctx, "Redis driver", "message", fmt.Sprintf(format, args...))
	}
}
