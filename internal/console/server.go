package console

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/observe"
	"github.com/trestle-bridge/trestle/shard"
)

//go:embed page
var page embed.FS

// Fleet is what is known of all replicas; see coordinator.Coordinator. All of it
// is safe for concurrent use, and none of it waits.
type Fleet interface {
	State() (coordinator.State, <-chan struct{})
	Plan() shard.Plan
	Ranks(ids []shard.ID) [][]shard.Ranked
}

// Config is what a Server needs. All of it is required but for what says
// otherwise.
type Config struct {
	// Address to listen on, host:port; port 0 is any that is free.
	Address string
	// Exposed permits an address that other machines reach; optional. There is
	// no login.
	Exposed bool
	// Hosts are names under which it is reached, beside localhost and IP
	// addresses; optional.
	Hosts []string
	// Installation, Version and Incarnation of this replica are shown.
	Installation, Version, Incarnation string
	Fleet                              Fleet
	// Checks says how well is what this replica needs. It is called by one
	// goroutine, with a few seconds to answer.
	Checks     func(context.Context) []observe.Check
	Quarantine Quarantine
	// Level is that of the log; optional, without it the level is neither shown
	// nor changed.
	Level  *slog.LevelVar
	Logger *slog.Logger
}

// The limits of connections and requests. A document of ten thousand shards is
// some megabytes, and the way to the operator may be slow. Streams and profiles
// take as long as they take, and see to it themselves.
const (
	readTimeout     = 10 * time.Second
	writeTimeout    = 30 * time.Second
	idleTimeout     = 2 * time.Minute
	maxHeaderBytes  = 16 << 10
	shutdownTimeout = 3 * time.Second
	maxConnections  = 128
	maxExplaining   = 2
)

// Server serves the console: the page and its document at /, what changes at
// /events, an explanation at /cluster, profiles and the level of the log.
type Server struct {
	cfg      Config
	listener net.Listener
	looks    *looks
	assets   map[string]asset
	// Each who is served puts one in and takes one out.
	watching, explaining, profiling chan struct{}
	stopping                        chan struct{} // closed when Run is to end
}

// New takes the address, so that one that is in use shows before anything has
// been started. Run serves it, once; without Run, Close gives it back.
func New(cfg Config) (*Server, error) {
	if cfg.Fleet == nil || cfg.Checks == nil || cfg.Quarantine == nil || cfg.Logger == nil || cfg.Incarnation == "" {
		return nil, errors.New("the console needs a fleet, checks, a quarantine, a logger and an incarnation")
	}
	assets, err := readAssets(page)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("serve the console (console.address): %w", err)
	}
	if tcp, ok := listener.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		if !cfg.Exposed {
			return nil, errors.Join(fmt.Errorf("serve the console at %s (console.address): it has no login, and other machines reach this address: "+
				"set console.exposed to true if they may, or use localhost", listener.Addr()), listener.Close())
		}
		cfg.Logger.Warn("the console, which has no login, listens on an address that others reach", "address", listener.Addr().String())
	}
	s := &Server{
		cfg: cfg, listener: listener, assets: assets,
		watching: make(chan struct{}, maxWatching), explaining: make(chan struct{}, maxExplaining),
		profiling: make(chan struct{}, maxProfiling), stopping: make(chan struct{}),
	}
	s.looks = &looks{
		fleet: cfg.Fleet, checks: newChecks(cfg.Checks, cfg.Quarantine), level: s.level,
		me: answering{ref: ref{Incarnation: cfg.Incarnation}, Installation: cfg.Installation, Version: cfg.Version},
	}
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close gives back the address of a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, and returns nil; or an error if serving ended by
// itself. Streams end at once, other requests get a moment more.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { s.looks.checks.run(running); return nil })
	group.Go(func() error {
		<-running.Done()
		close(s.stopping)
		return nil
	})
	group.Go(func() error {
		if err := observe.Serve(running, server, netutil.LimitListener(s.listener, maxConnections), shutdownTimeout); err != nil {
			return fmt.Errorf("serve the console: %w", err)
		}
		return nil
	})
	return group.Wait()
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.root)
	mux.HandleFunc("GET /assets/{name}", s.asset)
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /cluster", func(w http.ResponseWriter, r *http.Request) {
		if !wantsJSON(r) && strings.Contains(r.Header.Get("Accept"), "text/html") {
			http.Redirect(w, r, "/#cluster="+url.QueryEscape(r.URL.Query().Get("name")), http.StatusSeeOther)
			return
		}
		s.explain(w, r)
	})
	mux.Handle("GET /debug/pprof/", s.profiles())
	if s.cfg.Level != nil {
		mux.HandleFunc("GET /log/level", s.showLevel)
		mux.HandleFunc("PUT /log/level", s.setLevel)
	}
	return s.guard(mux)
}

// root serves the page, or the document to those who want JSON.
func (s *Server) root(w http.ResponseWriter, r *http.Request) {
	if !wantsJSON(r) {
		s.serveAsset(w, r, "index.html")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*checkTimeout)
	defer cancel()
	s.looks.checks.await(ctx)
	all, _ := s.looks.now().since(nil)
	answer(w, http.StatusOK, all)
}

// asset is one file of the page.
type asset struct {
	content []byte
	kind    string
	etag    string
}

// readAssets reads the page. The kinds stand here and not in a table of the
// machine, which may have others: a script of the wrong kind does not run.
func readAssets(from fs.FS) (map[string]asset, error) {
	kinds := map[string]string{
		".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
		".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
	}
	assets := make(map[string]asset)
	err := fs.WalkDir(from, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		kind, known := kinds[path.Ext(name)]
		if !known {
			return fmt.Errorf("%s is of no kind that the page is made of", name)
		}
		content, err := fs.ReadFile(from, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		assets[path.Base(name)] = asset{content, kind, `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the page of the console: %w", err)
	}
	return assets, nil
}

func (s *Server) asset(w http.ResponseWriter, r *http.Request) {
	s.serveAsset(w, r, r.PathValue("name"))
}

func (s *Server) serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	a, known := s.assets[name]
	if !known {
		refuse(w, r, http.StatusNotFound, "the console has no such page: go to /")
		return
	}
	// Another version of the service has other files under the same names.
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", a.etag)
	if strings.Contains(r.Header.Get("If-None-Match"), a.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	_, _ = w.Write(a.content) // a client that is gone is no concern of ours
}

// wantsJSON says whether JSON is asked for. A browser asks for pages and takes
// anything else.
func wantsJSON(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html")
}

// refuse says what is wrong, as JSON to those who want it.
func refuse(w http.ResponseWriter, r *http.Request, status int, what string) {
	if wantsJSON(r) {
		answer(w, status, struct {
			Error string `json:"error"`
		}{what})
		return
	}
	plain(w, status, what)
}

func answer(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(what) // a client that is gone is no concern of ours
}

func plain(w http.ResponseWriter, status int, what string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintln(w, what)
}
