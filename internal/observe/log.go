// Package observe makes what an operator looks at: the log, the metrics, the
// traces, and the HTTP server for metrics and health. It is plumbing and
// knows nothing of clusters and instances; who has something to show gets the
// part for it from the wiring.
//
// Nothing here is global: neither slog's, nor Prometheus', nor OpenTelemetry's
// defaults are touched.
package observe

import (
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
