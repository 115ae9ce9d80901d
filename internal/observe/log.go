// Package observe makes what an operator looks at: the log, the metrics, the
// traces, and the HTTP server for metrics and health. It is plumbing and
// knows nothing of clusters and instances; who has something to show gets the
// part for it from the wiring.
//
// Nothing here is global: neither slog's, nor Prometheus', nor OpenTelemetry's
// defaults are touched.
package observe

import (
	"context"
	"fmt"
	"io"
	"log/slog"
)

// NewLogger writes to w as json or text. The level may be changed while the
// logger is in use, if it is a *slog.LevelVar.
func NewLogger(w io.Writer, format string, level slog.Leveler) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	}
	return nil, fmt.Errorf("log format %q is neither json nor text", format)
}

// Unfiltered is log without its level: what is written to it is always written.
// It is for what must not be lost when somebody wants less to read.
func Unfiltered(log *slog.Logger) *slog.Logger { return slog.New(unfiltered{log.Handler()}) }

type unfiltered struct{ slog.Handler }

func (unfiltered) Enabled(context.Context, slog.Level) bool { return true }

func (u unfiltered) WithAttrs(attrs []slog.Attr) slog.Handler {
	return unfiltered{u.Handler.WithAttrs(attrs)}
}

func (u unfiltered) WithGroup(name string) slog.Handler {
	return unfiltered{u.Handler.WithGroup(name)}
}
