package api

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/store"
)

// invalidError is a request that cannot be served whatever the registry holds.
type invalidError struct{ field, what string }

func (e *invalidError) Error() string { return e.field + ": " + e.what }

func invalid(field, what string, args ...any) error {
	return &invalidError{field, fmt.Sprintf(what, args...)}
}

// takenError says by whom a name or URL is taken.
type takenError struct{ what string }

func (e *takenError) Error() string { return e.what }

// unreachableError is a cluster that did not answer when it was tried.
type unreachableError struct {
	url   string
	cause error
}

func (e *unreachableError) Error() string {
	reason := e.cause.Error()
	// What gRPC says, without what our own code has put before it.
	var answered interface{ GRPCStatus() *status.Status }
	if errors.As(e.cause, &answered) {
		reason = answered.GRPCStatus().Message()
		if reason == "" {
			reason = answered.GRPCStatus().Code().String()
		}
	}
	return fmt.Sprintf("%s cannot be reached: %s", e.url, reason)
}

func (e *unreachableError) Unwrap() error { return e.cause }

// toStatus is the one place where errors become codes. What the caller can do
// something about is told; what is our own affair is not.
func toStatus(ctx context.Context, err error) error {
	var (
		wrong       *invalidError
		taken       *takenError
		unreachable *unreachableError
		inUse       *store.ClusterInUseError
		answered    interface{ GRPCStatus() *status.Status }
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(panicked)):
		return status.Error(codes.Internal, "internal error; the log of the service says more")
	case errors.As(err, &wrong):
		return status.Error(codes.InvalidArgument, wrong.Error())
	case errors.As(err, &taken):
		return status.Error(codes.AlreadyExists, taken.Error())
	case errors.Is(err, store.ErrClusterNameTaken):
		return status.Error(codes.AlreadyExists, "a cluster of this name is registered already; choose another name, or deregister that one")
	case errors.Is(err, store.ErrClusterURLTaken):
		return status.Error(codes.AlreadyExists, "a cluster at this URL is registered already; list the clusters to see which")
	case errors.Is(err, store.ErrUnknownCluster):
		return status.Error(codes.NotFound, "no cluster of this name is registered; list the clusters to see which are (those marked static are changed in the configuration)")
	case errors.Is(err, store.ErrClusterMoved):
		return status.Error(codes.Aborted, "the cluster was registered anew, at another URL, while this change was tried; try it again")
	case errors.As(err, &inUse):
		some := strings.Join(inUse.Instances, ", ")
		if int64(len(inUse.Instances)) < inUse.Count {
			some += ", ..."
		}
		return status.Errorf(codes.FailedPrecondition,
			"%d regular instances of the cluster are not stopped (%s); cordon the cluster and wait for them, or deregister it with force", inUse.Count, some)
	case errors.Is(ctx.Err(), context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call took too long; whether it had an effect is not known: list the clusters")
	case errors.As(err, &unreachable):
		return status.Error(codes.FailedPrecondition, unreachable.Error()+"; nothing was stored")
	case store.Unreachable(err):
		return status.Error(codes.Unavailable, "the database cannot be reached; whether the call had an effect is not known: try it again, or list the clusters")
	case errors.As(err, &answered):
		// Of the services that are not ours.
		return answered.GRPCStatus().Err()
	}
	return status.Error(codes.Internal, "internal error; the log of the service says more")
}

// ours says whether an answer tells of a fault of ours.
func ours(err error) bool {
	switch status.Code(err) {
	case codes.Internal, codes.Unavailable, codes.DeadlineExceeded, codes.Unknown:
		return true
	}
	return false
}
