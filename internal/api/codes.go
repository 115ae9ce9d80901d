package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/internal/sweep"
	"github.com/trestle-bridge/trestle/pipeline"
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

// missingError names what there is not in the fleet, and what there is. A
// replica that is cut off cannot know.
type missingError struct {
	what     string
	detached bool
}

func (e *missingError) Error() string { return e.what }

// unwrittenError is a command of which it is not known whether etcd has it.
type unwrittenError struct{ cause error }

func (e *unwrittenError) Error() string { return e.cause.Error() }
func (e *unwrittenError) Unwrap() error { return e.cause }

// unledError is a question to the leader that it may not have heard.
type unledError struct{ cause error }

func (e *unledError) Error() string { return e.cause.Error() }
func (e *unledError) Unwrap() error { return e.cause }

// unretriedError is a retry of which it is not known how it ended, or that could
// not be noted.
type unretriedError struct {
	what  string
	cause error
}

func (e *unretriedError) Error() string { return e.what + ": " + e.cause.Error() }
func (e *unretriedError) Unwrap() error { return e.cause }

// noRoundsError is a cluster that the leader makes no rounds of: there is none,
// or it is new, or the leader is.
type noRoundsError struct{ missing, cause error }

func (e *noRoundsError) Error() string {
	if e.missing != nil {
		return e.missing.Error()
	}
	return "the leader makes no rounds of this cluster yet; they begin within a minute after it was registered, or a replica has begun to lead: try again then"
}
func (e *noRoundsError) Unwrap() error { return e.cause }

var (
	errUnread       = errors.New("this replica has not read yet who carries what, as it has just started or cannot reach etcd; try again, or ask another replica")
	errStopping     = errors.New("this replica stops; watch another one")
	errTooManyWatch = fmt.Errorf("%d clients watch this replica already; watch another one", maxWatching)
)

// toStatus is the one place where errors become codes. What the caller can do
// something about is told; what is our own affair is not.
func toStatus(ctx context.Context, err error) error {
	var (
		wrong       *invalidError
		missing     *missingError
		noRounds    *noRoundsError
		unwritten   *unwrittenError
		unled       *unledError
		unretried   *unretriedError
		taken       *takenError
		unreachable *unreachableError
		inUse       *store.ClusterInUseError
		unknown     *access.UnknownError
		forbidden   *forbiddenError
		tooMuch     *access.LimitError
		answered    interface{ GRPCStatus() *status.Status }
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return status.Error(codes.Unauthenticated, unknown.Error())
	case errors.As(err, &forbidden):
		return status.Error(codes.PermissionDenied, forbidden.Error())
	case errors.As(err, &tooMuch):
		return status.Error(codes.ResourceExhausted, tooMuch.Error())
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
	case errors.As(err, &missing) && missing.detached:
		return untouched(missing.what + ", as far as this replica knows, which is cut off from etcd; ask another one")
	case errors.As(err, &missing):
		return status.Error(codes.NotFound, missing.what)
	case errors.As(err, &noRounds):
		return status.Error(codes.NotFound, noRounds.Error())
	case errors.Is(err, sweep.ErrNotLeading):
		return untouched(sweep.ErrNotLeading.Error() + "; nothing was asked for: try again in some seconds")
	case errors.Is(err, pipeline.ErrCannotRetry):
		return status.Error(codes.FailedPrecondition, strings.TrimPrefix(err.Error(), pipeline.ErrCannotRetry.Error()+": ")+"; nothing was changed")
	case errors.Is(err, sweep.ErrNotHeld):
		return status.Error(codes.FailedPrecondition, "nothing of this cluster is held back: there is nothing to confirm")
	case errors.Is(err, coordinator.ErrCommand):
		return status.Error(codes.FailedPrecondition, "the leader refuses: "+strings.TrimPrefix(err.Error(), coordinator.ErrCommand.Error()+": "))
	case errors.Is(err, errUnread), errors.Is(err, errStopping):
		return untouched(err.Error())
	case errors.Is(err, errTooManyWatch):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(ctx.Err(), context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(err, coordinator.ErrUnanswered):
		return status.Error(codes.DeadlineExceeded, "no leader has acted on this yet; it stands, and the next leader acts on it: list the commands to see what comes of it")
	case errors.As(err, &unwritten):
		return status.Error(codes.Unavailable, "etcd cannot be reached from this replica; whether the change stands is not known: list the commands, or ask another replica")
	case errors.As(err, &unretried):
		return status.Error(codes.Unavailable, unretried.Error())
	case errors.As(err, &unled):
		return status.Error(codes.Unavailable, "the leader cannot be reached, and may or may not have heard of this; try again: "+unled.Error())
	case overdue(ctx):
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

// untouched is UNAVAILABLE of a replica that has done nothing, so that a client may
// ask another one even for a change.
func untouched(what string) error {
	plain := status.New(codes.Unavailable, what)
	detailed, err := plain.WithDetails(&errdetails.ErrorInfo{Domain: "trestle", Reason: "NOTHING_DONE"})
	if err != nil {
		return plain.Err() // the code is not OK, so this cannot be
	}
	return detailed.Err()
}

// overdue says whether the call's time is over. Whoever was asked in its course
// knows the deadline too, and may end it before our timer has fired.
func overdue(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || limited && !time.Now().Before(deadline)
}

// ours says whether an answer tells of a fault of ours. That a replica starts
// or stops is none.
func ours(answer, failure error) bool {
	if errors.Is(failure, errUnread) || errors.Is(failure, errStopping) {
		return false
	}
	switch status.Code(answer) {
	case codes.Internal, codes.Unavailable, codes.DeadlineExceeded, codes.Unknown:
		return true
	}
	return false
}
