package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one thing that must be well: Err is nil, or why it is not. It is
// served to whoever reaches the address: no secrets.
type Check struct {
	Name string
	Err  error
}

// ServerConfig is what a Server needs. Healthy and Ready are called for each
// request, so by several goroutines at once; their context ends with the
// request, and after a few seconds.
type ServerConfig struct {
	Address  string // host:port; port 0 = any that is free
	Gatherer prometheus.Gatherer
	Healthy  func(context.Context) []Check // for /healthz: the process does its work
	Ready    func(context.Context) []Check // for /readyz: it may be given more
	Logger   *slog.Logger
}

// Server serves /metrics, /healthz and /readyz. The health pages answer 200
// if all their checks are well, else 503, and name each check with what is
// wrong with it: as text, or as JSON to those who accept it.
type Server struct {
	config   ServerConfig
	listener net.Listener
}

// The limits of a request. A scrape of many clusters is large, and the
// network to the scraper may be slow.
const (
	readTimeout     = 10 * time.Second
	writeTimeout    = 30 * time.Second
	idleTimeout     = 2 * time.Minute
	maxHeaderBytes  = 16 << 10
	shutdownTimeout = 5 * time.Second
	checkTimeout    = 5 * time.Second
	scrapesAtOnce   = 4
)

// NewServer takes the address, so that one that is in use shows before
// anything has been started. Run serves it; without Run, Close gives it back.
func NewServer(config ServerConfig) (*Server, error) {
	if config.Gatherer == nil || config.Healthy == nil || config.Ready == nil || config.Logger == nil {
		return nil, errors.New("the HTTP server needs a gatherer, its checks and a logger")
	}
	listener, err := net.Listen("tcp", config.Address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics and health: %w", err)
	}
	return &Server{config: config, listener: listener}, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives back the address of a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, gives the requests under way a few seconds, and
// returns nil; or an error if serving ended by itself. It is called once.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelWarn),
	}
	if err := Serve(ctx, server, s.listener, shutdownTimeout); err != nil {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	return nil
}

// Serve serves until ctx ends, gives the requests under way so much time, and
// returns nil; or an error if serving ended by itself.
func Serve(ctx context.Context, server *http.Server, listener net.Listener, grace time.Duration) error {
	served := make(chan error, 1) // so that serving ends even when nobody asks why
	go func() { served <- server.Serve(listener) }()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		server.Close() // whoever is still reading has had the time
	}
	<-served
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.config.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelWarn),
		// One collector that fails does not hide the others.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             writeTimeout - time.Second,
	}))
	mux.Handle("GET /healthz", health(s.config.Healthy))
	mux.Handle("GET /readyz", health(s.config.Ready))
	return mux
}

type outcome struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
}

func health(look func(context.Context) []Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		checks := look(ctx)
		status, code := "ok", http.StatusOK
		outcomes := make([]outcome, 0, len(checks)) // an empty list in JSON, not null
		for _, c := range checks {
			o := outcome{Name: c.Name, Status: "ok"}
			if err := c.Err; err != nil {
				o.Status, o.Error = "failing", strings.Join(strings.Fields(err.Error()), " ")
				status, code = "failing", http.StatusServiceUnavailable
			}
			outcomes = append(outcomes, o)
		}

		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// A client that is gone is no concern of ours: errors of writing are
		// not looked at.
		if strings.Contains(r.Header.Get("Accept"), "application/json") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			json.NewEncoder(w).Encode(struct {
				Status string    `json:"status"`
				Checks []outcome `json:"checks"`
			}{status, outcomes})
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		fmt.Fprintln(w, status)
		for _, o := range outcomes {
			if o.Error != "" {
				fmt.Fprintf(w, "%s: %s: %s\n", o.Name, o.Status, o.Error)
			} else {
				fmt.Fprintf(w, "%s: %s\n", o.Name, o.Status)
			}
		}
	})
}
