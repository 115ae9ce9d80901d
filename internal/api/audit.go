package api

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/access"
)

// Texts of callers are cut to this before they are logged.
const maxLoggedBytes = 512

// Metadata with which a caller says why, where the request has no room for it.
const reasonHeader = "trestle-reason-bin"

// record is one call, for the audit log. It is of one goroutine at a time: the
// interceptors' and, in between, the handler's.
type record struct {
	method string
	rule   rule
	who    access.Identity
	began  time.Time
	// What the caller asked for, in its own words.
	cluster, shard, replica, instance, reason, author string
	// details are what the handler adds.
	details []any
}

type recordKey struct{}

// note adds to what the audit log says of a call.
func note(ctx context.Context, details ...any) {
	if r, ok := ctx.Value(recordKey{}).(*record); ok {
		r.details = append(r.details, details...)
	}
}

// asked reads who and what a request is about, and why.
func (r *record) asked(ctx context.Context, request any) {
	if m, ok := request.(interface{ GetName() string }); ok {
		r.cluster = clipped(m.GetName())
	}
	if m, ok := request.(interface{ GetCluster() string }); ok {
		r.cluster = clipped(m.GetCluster())
	}
	if m, ok := request.(interface{ GetShard() string }); ok {
		r.shard = clipped(m.GetShard())
	}
	if m, ok := request.(interface{ GetReplica() string }); ok {
		r.replica = clipped(m.GetReplica())
	}
	if m, ok := request.(interface{ GetInstance() string }); ok {
		r.instance = clipped(m.GetInstance())
	}
	if m, ok := request.(described); ok {
		r.reason, r.author = clipped(m.GetReason()), clipped(m.GetAuthor())
	} else if md, ok := metadata.FromIncomingContext(ctx); ok {
		if given := md.Get(reasonHeader); len(given) > 0 {
			r.reason = clipped(given[0])
		}
	}
}

func clipped(text string) string {
	if len(text) > maxLoggedBytes {
		text = text[:maxLoggedBytes] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// audit logs what changes something, or was refused for the sake of who asked.
// The fields are always the same, in this order.
func (r *record) audit(ctx context.Context, log *slog.Logger, answer, failure error) {
	var (
		unknown   *access.UnknownError
		forbidden *forbiddenError
		tooMuch   *access.LimitError
	)
	message := "a change was made"
	switch {
	case errors.As(failure, &unknown), errors.As(failure, &forbidden):
		message = "a caller was refused"
	case errors.As(failure, &tooMuch):
		if !tooMuch.Tell {
			return
		}
		message = "a caller does too much"
	case r.rule.change == "":
		return
	case failure != nil:
		message = "a change was refused, or failed"
	}
	fields := []any{
		"who", r.who.Name, "role", r.who.Role.String(), "proof", r.who.Proof, "peer", caller(ctx), "method", r.method,
		"change", r.rule.change, "cluster", r.cluster, "shard", r.shard, "replica", r.replica,
		"instance", r.instance, "reason", r.reason, "author", r.author, "outcome", status.Code(answer).String(),
	}
	if failure != nil {
		// What the caller is told; what is our own affair stands in the other log.
		fields = append(fields, "error", status.Convert(answer).Message())
	}
	if unknown != nil && unknown.Unwrap() != nil {
		fields = append(fields, "cause", unknown.Unwrap().Error())
	}
	if len(r.details) > 0 {
		fields = append(fields, slog.Group("details", r.details...))
	}
	log.InfoContext(ctx, message, fields...)
}

// recorded is a stream whose context has its record.
type recorded struct {
	grpc.ServerStream
	ctx context.Context
}

func (s recorded) Context() context.Context { return s.ctx }
