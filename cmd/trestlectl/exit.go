package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit codes; operators and their scripts rely on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 5
)

// usageError is a command that is wrong whatever the service would say.
type usageError struct{ what string }

func (e *usageError) Error() string { return e.what }

func usage(what string, args ...any) error { return &usageError{fmt.Sprintf(what, args...)} }

// unreachableError says what came of each address.
type unreachableError struct{ tried []string }

func (e *unreachableError) Error() string {
	return "no replica can be asked:\n  " + strings.Join(e.tried, "\n  ")
}

// againError is a retry that was refused as before.
type againError struct{ what string }

func (e *againError) Error() string { return e.what }

// exitCode is that of a command that ended with an error.
func exitCode(err error) int {
	switch {
	case errors.As(err, new(*usageError)):
		return exitUsage
	case errors.As(err, new(*unreachableError)):
		return exitUnreachable
	case errors.As(err, new(*againError)):
		return exitRefused
	}
	switch status.Code(err) {
	case codes.InvalidArgument:
		return exitUsage
	case codes.NotFound:
		return exitNotFound
	case codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted, codes.Unauthenticated, codes.PermissionDenied:
		return exitRefused
	case codes.Unavailable:
		return exitUnreachable
	}
	return exitFailed
}

// fail says what is wrong and what can be done about it, and gives the exit
// code.
func (p *program) fail(command *cobra.Command, err error) int {
	code := exitCode(err)
	attempted := ""
	if p.started {
		// What was asked of a replica, as its answer need not say on what.
		words := append(strings.Fields(command.CommandPath())[1:], command.Flags().Args()...)
		attempted = strings.Join(words, " ") + ": "
	}
	fmt.Fprintf(p.streams.err, "trestlectl: %s\n", plain(attempted+message(err), '\n'))
	if advice := p.advice(command, err, code); advice != "" {
		fmt.Fprintln(p.streams.err, advice)
	}
	return code
}

// message is what the service says, without what gRPC puts around it.
func message(err error) string {
	var answered interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answered) {
		return err.Error()
	}
	s := answered.GRPCStatus()
	if s.Message() == "" {
		return "the replica answers " + s.Code().String()
	}
	return s.Message()
}

func (p *program) advice(command *cobra.Command, err error, code int) string {
	switch code {
	case exitUsage:
		return "See: " + command.CommandPath() + " --help"
	case exitNotFound:
		switch parent := command.Parent(); {
		case parent != nil && parent.Name() == "quarantine":
			return "See what there is: trestlectl quarantine list"
		case parent != nil && parent.Name() == "instance":
			return "Give the id of the instance, not that of its workspace."
		}
		return "See what there is: trestlectl shards, trestlectl replicas, trestlectl clusters list"
	case exitRefused:
		if errors.As(err, new(*againError)) {
			return "Mend what it says, and try again; or drop it: trestlectl quarantine drop"
		}
		if strings.Contains(message(err), "nothing was changed") {
			return ""
		}
		return "Nothing was changed."
	case exitUnreachable:
		if errors.As(err, new(*unreachableError)) {
			return "Reach one with a port-forward (kubectl port-forward deployment/trestle 8080:8080), or name others with --address or " +
				addressVariable + "; several are tried in turn."
		}
		return "Ask another replica with --address."
	}
	switch status.Code(err) {
	case codes.DeadlineExceeded:
		if p.trace != "" {
			return "See what has come of it: " + p.trace
		}
		return "Give it more time with --timeout, or ask another replica with --address."
	case codes.Unimplemented:
		return "This replica is of a version that does not know it; ask another one with --address."
	case codes.ResourceExhausted:
		return "Wait a moment, or ask another replica with --address."
	}
	return ""
}
