package store

import (
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
	"github.com/trestle-bridge/trestle/shard"
)

// BenchmarkEncode makes the parameters of a batch: without folding, and of the
// lives of its instances. An op is a row.
func BenchmarkEncode(b *testing.B) {
	const rows = 500
	for _, folded := range []int{1, 7} {
		b.Run(strconv.Itoa(folded), func(b *testing.B) {
			batch := Batch{Fences: []shard.Fence{{Shard: shard.Whole("eu01"), Epoch: 1, Owner: "one"}}}
			for i := range rows {
				batch.Entries = append(batch.Entries, Entry{Change: lifeOf(b, i, folded)})
			}
			statements, err := newApplyStatements(false)
			if err != nil {
				b.Fatal(err)
			}
			s := &Store{statements: statements, scratch: make(scratch, 1)}
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += rows {
				in, err := s.encodeBatch(batch)
				if err != nil {
					b.Fatal(err)
				}
				s.scratch.give(in.arrays)
			}
		})
	}
}

func lifeOf(b *testing.B, instance, updates int) (whole *status.Change) {
	phases := []wsman.WorkspacePhase{
		wsman.WorkspacePhase_PENDING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_CREATING, wsman.WorkspacePhase_INITIALIZING,
		wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_RUNNING, wsman.WorkspacePhase_STOPPING,
	}
	for i := range updates {
		id := status.InstanceID{0: byte(instance >> 8), 1: byte(instance)}
		raw, err := proto.Marshal(&wsman.WorkspaceStatus{
			Id: id.String(), StatusVersion: uint64(1000 + i), Phase: phases[i], Message: "on its way",
			Metadata: &wsman.WorkspaceMetadata{Owner: "owner", MetaId: "workspace",
				Metrics: &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 5_123_456_789, WorkspaceImageSize: 812_345_678}}},
			Spec:       &wsman.WorkspaceSpec{Url: "https://coral-otter.ws-eu01.workspaces.example.com", Timeout: "30m0s"},
			Conditions: &wsman.WorkspaceConditions{},
			Runtime:    &wsman.WorkspaceRuntimeInfo{NodeName: "gke-eu01-workspaces-2a-6b1f3c2d-x9kq", PodName: "ws-" + id.String(), NodeIp: "10.132.15.201"},
			Auth:       &wsman.WorkspaceAuthentication{OwnerToken: "3Kd0pQ7xWmZr8vTnYbLc5sHfJg2aUe9i"},
		})
		if err != nil {
			b.Fatal(err)
		}
		heard, err := status.Scan(raw)
		if err != nil {
			b.Fatal(err)
		}
		heard.At = time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC)
		change, err := status.Rules{}.Change(heard)
		if err != nil {
			b.Fatal(err)
		}
		if whole == nil {
			whole = change
		} else if !whole.Fold(change) {
			b.Fatal("a later update does not fold")
		}
	}
	return whole
}
