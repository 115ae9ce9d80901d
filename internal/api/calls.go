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

// calls is what all calls have in common: who may make them, a deadline, a code
// for every error, a record of every change, and a panic that ends the call and
// not the process.
type calls struct {
	timeout time.Duration
	door    *door
	log     *slog.Logger
	// audit is the log of who changed what, and why.
	audit *slog.Logger
}

func (c calls) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r := c.record(info.FullMethod)
	r.asked(ctx, request)
	defer c.finish(ctx, r, &err)
	var leave func()
	if r.who, leave, err = c.door.enter(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	defer leave()
	return handle(context.WithValue(ctx, recordKey{}, r), request)
}

// Streams are those of health and reflection and of who watches the shards,
// which last as long as the client likes.
func (c calls) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	r := c.record(info.FullMethod)
	defer c.finish(stream.Context(), r, &err)
	var leave func()
	if r.who, leave, err = c.door.enter(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	defer leave()
	return handle(server, recorded{stream, context.WithValue(stream.Context(), recordKey{}, r)})
}

func (c calls) record(method string) *record {
	return &record{method: method, rule: c.door.rule(method), began: time.Now()}
}

// finish is deferred around a handler. Requests and responses are not logged:
// they may hold keys.
func (c calls) finish(ctx context.Context, r *record, err *error) {
	failure := *err
	if value := recover(); value != nil {
		failure = panicked{fmt.Sprint(value), debug.Stack()}
	}
	*err = toStatus(ctx, failure)
	r.audit(ctx, c.audit, *err, failure)
	log := c.log.With("method", r.method, "by", caller(ctx), "code", status.Code(*err).String(), "took", time.Since(r.began).Round(time.Microsecond).String())
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

// caller is the address from which a call comes.
func caller(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "unknown"
}
