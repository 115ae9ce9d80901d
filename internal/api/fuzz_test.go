package api

import (
	"context"
	"log/slog"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/internal/store"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
	"github.com/trestle-bridge/trestle/shard"
)

// FuzzClusterRequests turns what a caller sent into what is stored.
func FuzzClusterRequests(f *testing.F) {
	for _, m := range []proto.Message{
		&bridge.RegisterRequest{Name: "eu70", Url: "dns:///eu70:443", Region: "europe", Tls: &bridge.TlsConfig{Ca: "eA==", Crt: "eA==", Key: "eA=="}},
		&bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_Score{Score: -1}},
		&bridge.UpdateRequest{Property: &bridge.UpdateRequest_AdmissionConstraint{AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: true}}},
	} {
		encoded, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	s := &clusterService{allowPlaintext: true, log: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		var register bridge.RegisterRequest
		if proto.Unmarshal(encoded, &register) == nil {
			cluster, err := s.registration(&register)
			coded(t, err)
			if err == nil {
				valid(t, cluster)
				if got := s.constraints(cluster.Name, cluster.AdmissionConstraints); len(got) > len(register.GetAdmissionConstraints()) {
					t.Errorf("%d constraints were made of %d", len(got), len(register.GetAdmissionConstraints()))
				}
			}
		}
		var update bridge.UpdateRequest
		if proto.Unmarshal(encoded, &update) == nil {
			_, _, err := changeOf(&update)
			coded(t, err)
		}
		// And what others have written into the row.
		_, _ = decodeConstraints(encoded)
	})
}

func valid(t *testing.T, c store.Cluster) {
	t.Helper()
	if c.Name == "" || len(c.Name) > maxNameBytes || c.URL == "" || len(c.URL) > maxURLBytes || !utf8.ValidString(c.Name) || c.Score < 0 {
		t.Errorf("%q at %q was taken", c.Name, c.URL)
	}
}

// coded fails unless an error is the caller's.
func coded(t *testing.T, err error) {
	t.Helper()
	if err != nil && status.Code(toStatus(context.Background(), err)) != codes.InvalidArgument {
		t.Errorf("a caller's fault is %v", err)
	}
}

// still is a fleet that takes every command.
type still struct{ Fleet }

func (still) State() (coordinator.State, <-chan struct{}) {
	return coordinator.State{Known: true, Shards: []coordinator.ShardState{{ID: shard.Whole("eu01")}}}, nil
}
func (still) Do(_ context.Context, c coordinator.Command) error {
	if c.Reason == "" || c.Author == "" || len(c.Reason) > maxReasonBytes {
		panic("a command that says nothing of why")
	}
	return nil
}
func (still) Plan() shard.Plan                      { return shard.Plan{} }
func (still) Ranks(ids []shard.ID) [][]shard.Ranked { return make([][]shard.Ranked, len(ids)) }

func (still) Request(context.Context, string) error { return nil }
func (still) Confirm(context.Context, string) error { return nil }

// FuzzShardRequests sends every request of ShardService whatever bytes make.
func FuzzShardRequests(f *testing.F) {
	for _, m := range []proto.Message{
		&trestlev1.PinRequest{Shard: "eu01", Replica: "a", Reason: "r", Author: "a"},
		&trestlev1.SetSlicesRequest{Cluster: "eu01", Slices: 4, Reason: "r", Author: "a"},
		&trestlev1.ListShardsRequest{PageToken: "eu01#1/2", PageSize: -1},
	} {
		encoded, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	s := &shardService{fleet: still{}, sweeps: still{}}
	f.Fuzz(func(t *testing.T, encoded []byte) {
		for _, call := range []func() error{
			asked(t, encoded, s.Pin), asked(t, encoded, s.Unpin), asked(t, encoded, s.DrainReplica), asked(t, encoded, s.UndrainReplica),
			asked(t, encoded, s.Freeze), asked(t, encoded, s.SetSlices), asked(t, encoded, s.ReleaseBrake),
			asked(t, encoded, s.RequestSweep), asked(t, encoded, s.ListShards), asked(t, encoded, s.ExplainCluster),
		} {
			switch code := status.Code(toStatus(t.Context(), call())); code {
			case codes.OK, codes.InvalidArgument, codes.NotFound:
			default:
				t.Errorf("the code is %v", code)
			}
		}
	})
}

func asked[Request, Response any, P interface {
	*Request
	proto.Message
}](t *testing.T, encoded []byte, call func(context.Context, P) (*Response, error)) func() error {
	return func() error {
		r := P(new(Request))
		if proto.Unmarshal(encoded, r) != nil {
			return nil
		}
		(&record{}).asked(t.Context(), r)
		_, err := call(t.Context(), r)
		return err
	}
}
