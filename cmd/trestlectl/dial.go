package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// maxAnswer is more than any page of shards has.
const maxAnswer = 64 << 20

// replica is one that answers.
type replica struct {
	address string
	conn    *grpc.ClientConn
}

func (r *replica) shards() trestlev1.ShardServiceClient {
	return trestlev1.NewShardServiceClient(r.conn)
}
func (r *replica) clusters() bridge.ClusterServiceClient {
	return bridge.NewClusterServiceClient(r.conn)
}

func (r *replica) instances() trestlev1.InstanceServiceClient {
	return trestlev1.NewInstanceServiceClient(r.conn)
}
func (r *replica) quarantine() trestlev1.QuarantineServiceClient {
	return trestlev1.NewQuarantineServiceClient(r.conn)
}

func checkAddress(address string) error {
	if strings.Contains(address, ":///") {
		return nil // a gRPC target with its scheme
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("--address %q: give host:port, such as %s", address, defaultAddress)
	}
	return nil
}

// dial connects to a replica, and makes sure that it serves. The error is the
// reason, in the words of the one who gives it.
func (p *proof) dial(ctx context.Context, address string, within time.Duration) (*replica, error) {
	options, err := p.options(address)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(address, append(options,
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)...)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	health, err := healthpb.NewHealthClient(conn).Check(limited, &healthpb.HealthCheckRequest{})
	switch code := status.Code(err); {
	case code == codes.OK && health.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		err = errors.New("it starts or stops")
	case code == codes.DeadlineExceeded:
		err = fmt.Errorf("no answer within %s", within.Round(time.Millisecond))
	case code == codes.Unavailable, code == codes.Canceled:
		err = errors.New(message(err))
		// gRPC wraps what the network says.
		if _, said, found := strings.Cut(err.Error(), "Error while dialing: "); found {
			err = errors.New(strings.TrimSuffix(said, `"`))
		}
		switch said := err.Error(); {
		case strings.Contains(said, "looked like an HTTP/1.1 header"):
			err = errors.New("it speaks HTTP and not gRPC, as the addresses of metrics and console do: give that of clusterService")
		case p.tls == nil && strings.Contains(said, "error reading server preface"):
			err = fmt.Errorf("%w (it may speak TLS: give --tls-ca or --tls)", err)
		case strings.Contains(said, "first record does not look like a TLS handshake"):
			err = fmt.Errorf("%w (it may speak plain text: leave out --tls and its like)", err)
		}
	default:
		// It answers, whatever it knows of its health.
		return &replica{address, conn}, nil
	}
	_ = conn.Close() // nothing was said
	return nil, err
}

// reachable tries the addresses in turn. The time that is left is shared out
// among those that are left, so that one that is silent keeps some for the
// others.
func (p *program) reachable(ctx context.Context, deadline time.Time, from int, tried *[]string) (*replica, int, error) {
	for i := from; i < len(p.addresses); i++ {
		r, err := p.proof.dial(ctx, p.addresses[i], time.Until(deadline)/time.Duration(len(p.addresses)-i+1))
		if err == nil {
			return r, i, nil
		}
		if ctx.Err() != nil {
			return nil, i, context.Cause(ctx)
		}
		*tried = append(*tried, p.addresses[i]+": "+err.Error())
	}
	return nil, len(p.addresses), &unreachableError{*tried}
}

// ask makes a call that changes nothing: a replica that cannot answer it now is
// passed over for the next.
func (p *program) ask(ctx context.Context, do func(context.Context, *replica) error) error {
	return p.call(ctx, true, do)
}

// change makes a call that changes something, on the first replica that
// answers. One that says that it has done nothing is passed over too; if the
// call fails otherwise, whether it stands is for a human to find out.
func (p *program) change(ctx context.Context, do func(context.Context, *replica) error) error {
	return p.call(ctx, false, do)
}

// untouched says that a replica has promised to have done nothing.
func untouched(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is && info.GetDomain() == "trestle" && info.GetReason() == "NOTHING_DONE" {
			return true
		}
	}
	return false
}

func (p *program) call(ctx context.Context, again bool, do func(context.Context, *replica) error) error {
	deadline := time.Now().Add(p.timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var tried []string
	for i := 0; ; i++ {
		r, at, err := p.reachable(ctx, deadline, i, &tried)
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				return &unreachableError{append(tried, fmt.Sprintf("no answer within %s", p.timeout))}
			}
			return err
		}
		i = at
		err = do(ctx, r)
		_ = r.conn.Close() // all was said
		if status.Code(err) != codes.Unavailable || !again && !untouched(err) {
			return err
		}
		tried = append(tried, r.address+": "+message(err))
	}
}
