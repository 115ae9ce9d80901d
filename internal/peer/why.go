package peer

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/pipeline"
	"github.com/trestle-bridge/trestle/pipeline/trace"
	peerv1 "github.com/trestle-bridge/trestle/proto/trestle/peer/v1"
	"github.com/trestle-bridge/trestle/shard"
)

// retryTimeout bounds a Retry, which takes a whole snapshot.
const retryTimeout = 25 * time.Second

func (s *service) Trace(_ context.Context, r *peerv1.TraceRequest) (*peerv1.TraceResponse, error) {
	id, err := instanceID(r.GetInstanceId())
	if err != nil {
		return nil, err
	}
	decided, undecided := s.replica.Why(id)
	response := &peerv1.TraceResponse{}
	for _, d := range decided {
		response.Decided = append(response.Decided, encodeDecided(d))
	}
	for _, u := range undecided {
		response.Undecided = append(response.Undecided, &peerv1.Undecided{
			Since: timestamppb.New(u.Since), Updates: int64(u.Updates), Version: u.Version, Phase: string(u.Phase), InFlight: u.InFlight,
			Shard: u.Shard.String(), Epoch: int64(u.Epoch),
		})
	}
	return response, nil
}

func (s *service) Retry(ctx context.Context, r *peerv1.RetryRequest) (*peerv1.RetryResponse, error) {
	instance, err := instanceID(r.GetInstanceId())
	if err != nil {
		return nil, err
	}
	id, err := shard.ParseID(r.GetShard())
	if err != nil {
		return nil, grpcstatus.Error(codes.InvalidArgument, err.Error())
	}
	decided, heard, err := s.replica.Retry(ctx, id, instance)
	switch {
	case errors.Is(err, pipeline.ErrCannotRetry):
		return nil, grpcstatus.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, grpcstatus.Error(codes.Internal, err.Error())
	case !heard:
		return &peerv1.RetryResponse{}, nil
	}
	return &peerv1.RetryResponse{Decided: encodeDecided(decided)}, nil
}

func instanceID(raw []byte) (id status.InstanceID, err error) {
	if len(raw) != len(id) {
		return id, grpcstatus.Errorf(codes.InvalidArgument, "an instance's id has %d bytes, not %d", len(id), len(raw))
	}
	copy(id[:], raw)
	return id, nil
}

func encodeDecided(d pipeline.Decided) *peerv1.Decided {
	out := &peerv1.Decided{
		At: timestamppb.New(d.At), Decision: uint32(d.Decision), Updates: int64(d.Updates), Version: d.Version, Phase: string(d.Phase),
		Shard: d.Shard.String(), Epoch: int64(d.Epoch),
	}
	if d.KnowsStored {
		out.Stored = &d.Stored
	}
	return out
}

func decodeDecided(d *peerv1.Decided) (pipeline.Decided, error) {
	id, err := shard.ParseID(d.GetShard())
	return pipeline.Decided{
		Entry: trace.Entry{
			At: d.GetAt().AsTime(), Decision: trace.Decision(d.GetDecision()), Updates: int(d.GetUpdates()), Version: d.GetVersion(),
			Stored: d.GetStored(), KnowsStored: d.Stored != nil, Phase: status.Phase(d.GetPhase()),
		},
		Shard: id, Epoch: shard.Epoch(d.GetEpoch()),
	}, err
}

// Why asks a replica what it remembers of an instance.
func (p *Peers) Why(ctx context.Context, address string, id status.InstanceID) (decided []pipeline.Decided, undecided []pipeline.Undecided, err error) {
	err = p.call(ctx, address, callTimeout, "what it remembers of an instance", func(ctx context.Context, c peerv1.PeerServiceClient) error {
		response, err := c.Trace(ctx, &peerv1.TraceRequest{InstanceId: id[:]})
		if err != nil {
			return err
		}
		for _, d := range response.GetDecided() {
			decoded, err := decodeDecided(d)
			if err != nil {
				return err
			}
			decided = append(decided, decoded)
		}
		for _, u := range response.GetUndecided() {
			of, err := shard.ParseID(u.GetShard())
			if err != nil {
				return err
			}
			undecided = append(undecided, pipeline.Undecided{
				Shard: of, Epoch: shard.Epoch(u.GetEpoch()), Version: u.GetVersion(), Updates: int(u.GetUpdates()),
				Since: u.GetSince().AsTime(), Phase: status.Phase(u.GetPhase()), InFlight: u.GetInFlight(),
			})
		}
		return nil
	})
	return decided, undecided, err
}

// Retry has the owner of a shard try what was refused of an instance again, and
// says whether the cluster still speaks of it. The error is
// pipeline.ErrCannotRetry when nothing was changed.
func (p *Peers) Retry(ctx context.Context, address string, id shard.ID, instance status.InstanceID) (decided pipeline.Decided, heard bool, err error) {
	err = p.call(ctx, address, retryTimeout, "to try an update again", func(ctx context.Context, c peerv1.PeerServiceClient) error {
		response, err := c.Retry(ctx, &peerv1.RetryRequest{Shard: id.String(), InstanceId: instance[:]})
		switch {
		case grpcstatus.Code(err) == codes.FailedPrecondition:
			return refusedRetry{grpcstatus.Convert(err).Message()}
		case err != nil:
			return err
		case response.GetDecided() == nil:
			return nil
		}
		heard = true
		decided, err = decodeDecided(response.GetDecided())
		return err
	})
	return decided, heard, err
}

// refusedRetry is pipeline.ErrCannotRetry in the words of the replica that says so.
type refusedRetry struct{ why string }

func (e refusedRetry) Error() string        { return e.why }
func (e refusedRetry) Is(target error) bool { return target == pipeline.ErrCannotRetry }
