package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// calls is what all calls have in common: a deadline, a code for every error,
// and a panic that ends the call and not the process.
type calls struct {
	timeout time.Duration
	log     *slog.Logger
}

func (c calls) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	defer c.finish(ctx, info.FullMethod, time.Now(), &err)
	return handle(ctx, request)
}

// Streams are those of health and reflection and of who watches the shards,
// which last as long as the client likes.
func (c calls) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer c.finish(stream.Context(), info.FullMethod, time.Now(), &err)
	return handle(server, stream)
}

// finish is deferred around a handler. Requests and responses are not logged:
// they may hold keys.
func (c calls) finish(ctx context.Context, method string, began time.Time, err *error) {
	failure := *err
	if value := recover(); value != nil {
		failure = panicked{fmt.Sprint(value), debug.Stack()}
	}
	*err = toStatus(ctx, failure)
	log := c.log.With("method", method, "by", caller(ctx), "code", status.Code(*err).String(), "took", time.Since(began).Round(time.Microsecond).String())
	switch {
	case failure == nil:
		log.DebugContext(ctx, "call answered")
	case ours(*err, failure):
		log.ErrorContext(ctx, "call failed", "error", failure)
	default:
		log.DebugContext(ctx, "call refused", "error", failure)
	}
}

// panicked is the error of a handler that panicked.
type panicked struct {
	value string
	stack []byte
}

func (p panicked) Error() string { return fmt.Sprintf("panic: %s\n%s", p.value, p.stack) }

// caller is who calls, as far as that can be known.
func caller(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "unknown"
}
