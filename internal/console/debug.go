package console

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
)

const (
	// maxProfiling is how many profiles are taken at once, and maxProfileSeconds
	// for how long: each costs the service time.
	maxProfiling      = 2
	maxProfileSeconds = 300
	// maxLevelBytes fits a level and the JSON around it.
	maxLevelBytes = 256
)

// profiles are those of net/http/pprof, but for the command line, which is no
// profile. They are handed out here and not by way of a global mux.
func (s *Server) profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.URL.Query().Get("seconds"); text != "" {
			if seconds, err := strconv.ParseFloat(text, 64); err != nil || !(seconds >= 0 && seconds <= maxProfileSeconds) {
				refuse(w, r, http.StatusBadRequest, fmt.Sprintf("seconds has to be a number from 0 to %d", maxProfileSeconds))
				return
			}
		}
		select {
		case s.profiling <- struct{}{}:
			defer func() { <-s.profiling }()
			mux.ServeHTTP(w, r)
		default:
			refuse(w, r, http.StatusServiceUnavailable, fmt.Sprintf("%d profiles are being taken already: wait for them to end", maxProfiling))
		}
	})
}

type logLevel struct {
	Level string `json:"level"`
}

// level is that of the log, as it is told.
func (s *Server) level() string {
	if s.cfg.Level == nil {
		return ""
	}
	return strings.ToLower(s.cfg.Level.Level().String())
}

func (s *Server) showLevel(w http.ResponseWriter, r *http.Request) {
	if wantsJSON(r) {
		answer(w, http.StatusOK, logLevel{s.level()})
		return
	}
	plain(w, http.StatusOK, s.level())
}

// setLevel changes the level of this process's log until it ends: a change of
// the configuration is not made here.
func (s *Server) setLevel(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLevelBytes))
	if err != nil {
		refuse(w, r, http.StatusBadRequest, "send nothing but the level: debug, info, warn or error")
		return
	}
	text := strings.TrimSpace(string(body))
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "application/json" {
		var wanted logLevel
		if err := json.Unmarshal(body, &wanted); err != nil {
			refuse(w, r, http.StatusBadRequest, `send {"level": "debug"}`)
			return
		}
		text = wanted.Level
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil {
		refuse(w, r, http.StatusBadRequest, fmt.Sprintf("there is no level %q: debug, info, warn and error are possible", text))
		return
	}
	before := s.cfg.Level.Level()
	// Said at whatever level is shown before and after.
	s.cfg.Logger.Log(r.Context(), max(before, level, slog.LevelInfo), "the level of the log is changed, until the process ends",
		"from", before.String(), "to", level.String(), "by", r.RemoteAddr)
	s.cfg.Level.Set(level)
	s.showLevel(w, r)
}
