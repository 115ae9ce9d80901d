package status

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// everything is a status in which every declared field is set.
func everything() *wsman.WorkspaceStatus {
	metric := func(n int) *wsman.InitializerMetric {
		return &wsman.InitializerMetric{Duration: durationpb.New(time.Duration(n) * 1234567), Size: uint64(n) << 40}
	}
	team, project := "team", "project"
	return &wsman.WorkspaceStatus{
		Id: scannedID, Phase: wsman.WorkspacePhase_RUNNING, Message: "a message", StatusVersion: 1 << 60,
		Metadata: &wsman.WorkspaceMetadata{
			Owner: "owner", MetaId: "workspace", StartedAt: timestamppb.New(time.Unix(1e9, 1)), Annotations: map[string]string{"a": "b", "": ""},
			Team: &team, Project: &project,
			Metrics: &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: -1, WorkspaceImageSize: 1 << 50}},
		},
		Spec: &wsman.WorkspaceSpec{
			WorkspaceImage: "image", Headless: true, Url: "https://url", Type: wsman.WorkspaceType_PREBUILD, Timeout: "30m",
			IdeImage: &wsman.IDEImage{WebRef: "web", SupervisorRef: "supervisor"}, Class: "class", IdeImageLayers: []string{"one", "two"}, ClosedTimeout: "5m",
			ExposedPorts: []*wsman.PortSpec{{Port: 3000, Url: "https://3000"}, {
				Port: 1<<32 - 1, Visibility: wsman.PortVisibility_PORT_VISIBILITY_PUBLIC, Url: "https://last", Protocol: wsman.PortProtocol_PORT_PROTOCOL_HTTPS,
			}},
		},
		Conditions: &wsman.WorkspaceConditions{
			Failed: "failed", Timeout: "timeout", PullingImages: 1, Snapshot: "snapshot", FinalBackupComplete: 2, Deployed: 1, NetworkNotReady: 2,
			FirstUserActivity: timestamppb.New(time.Unix(1e9, 5e8)), HeadlessTaskFailed: "task", StoppedByRequest: 1, Aborted: 2,
		},
		Runtime: &wsman.WorkspaceRuntimeInfo{NodeName: "node", PodName: "pod", NodeIp: "10.0.0.1"},
		Auth:    &wsman.WorkspaceAuthentication{Admission: 1, OwnerToken: "token"},
		InitializerMetrics: &wsman.InitializerMetrics{
			Git: metric(1), FileDownload: metric(2), Snapshot: metric(3), Backup: metric(4), Prebuild: metric(5), Composite: metric(6),
		},
	}
}

// same decodes both ways, and fails the test where the quick way accepts what
// it may not, or makes another change of it. It reports whether the quick way
// was taken.
func same(t *testing.T, raw []byte) bool {
	t.Helper()
	h := Heard{Raw: raw, At: time.Unix(1e9, 0), Version: 1}
	if !new(decoded).quickly(raw) {
		return false
	}
	s, err := decodeAny(h)
	if err != nil {
		t.Fatalf("taken for a status though it is none: %v", err)
	}
	for _, rules := range []Rules{{}, {DecidedWhenStopped: true}} {
		want := rules.change(h, s)
		h.Raw = append([]byte(nil), raw...)
		got, err := rules.Change(h)
		if err != nil {
			t.Fatal(err)
		}
		clear(h.Raw) // whose bytes are another's by then
		if !reflect.DeepEqual(plain(got), plain(want)) {
			t.Fatalf("decoded to\n%+v, want\n%+v", plain(got), plain(want))
		}
	}
	return true
}

// plain gives a change that prints what is in it.
func plain(c *Change) any {
	type bare Change
	b := (*bare)(c)
	return []any{*b, fmt.Sprintf("%q", b.Document), fmt.Sprintf("%q", b.Conditions), b.steps, b.prebuild}
}

func TestDecodingQuicklyIsTheRule(t *testing.T) {
	for _, s := range []*wsman.WorkspaceStatus{everything(), scanned(), {}} {
		if raw := encode(t, s); !same(t, raw) {
			t.Errorf("%x was decoded the long way", raw)
		}
	}
	raw := encode(t, everything())
	for _, odd := range [][]byte{
		append(raw[:len(raw):len(raw)], raw...), // messages in several parts
		append(raw[:len(raw):len(raw)], protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 1)...), // the spec as a number
		append(raw[:len(raw):len(raw)], protowire.AppendGroup(protowire.AppendTag(nil, 99, protowire.StartGroupType), 99, nil)...),
		append(raw[:len(raw):len(raw)], protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), []byte{0xff})...),
		raw[:len(raw)-1],
	} {
		if same(t, odd) {
			t.Errorf("%x was decoded quickly", odd)
		}
	}
}

// FuzzDecode holds quick decoding against generated decoding.
func FuzzDecode(f *testing.F) {
	for _, raw := range seeds(f) {
		f.Add(raw)
	}
	f.Add(encode(f, everything()))
	f.Fuzz(func(t *testing.T, raw []byte) { same(t, raw) })
}
