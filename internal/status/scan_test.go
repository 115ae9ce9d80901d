package status

import (
	"errors"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

const scannedID = "8d6a4f8e-3f0d-4a53-9c56-0a8f2f0f4b11"

// scanned gives a status of the size and shape that clusters send.
func scanned() *wsman.WorkspaceStatus {
	team := "b9d1a2a0-7a51-4c36-9f31-c2d25b7a1d10"
	return &wsman.WorkspaceStatus{
		Id: scannedID,
		Metadata: &wsman.WorkspaceMetadata{
			Owner:       "3b0c0d7e-51a9-4b8e-8d0a-7fd0f4f1f0aa",
			MetaId:      "trestlebrid-trestle-8u2k3m1x9qz",
			StartedAt:   timestamppb.New(timestamppb.Now().AsTime()),
			Annotations: map[string]string{"workspaceful/size": "large", "workspaceful/origin": "context"},
			Team:        &team,
			Metrics:     &wsman.WorkspaceMetadata_Metrics{Image: &wsman.WorkspaceMetadata_ImageInfo{TotalSize: 5 << 30, WorkspaceImageSize: 3 << 29}},
		},
		Spec: &wsman.WorkspaceSpec{
			WorkspaceImage: "registry.cluster.example/workspace-images/0a8f2f0f4b118d6a4f8e3f0d4a539c560a8f2f0f4b11:latest",
			Url:            "https://trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example",
			Timeout:        "30m",
			IdeImage:       &wsman.IDEImage{WebRef: "registry.cluster.example/ide/code:commit-0a8f2f0f4b118d6a", SupervisorRef: "registry.cluster.example/supervisor:commit-4a539c560a8f"},
			Class:          "g1-standard",
			ExposedPorts: []*wsman.PortSpec{
				{Port: 3000, Visibility: wsman.PortVisibility_PORT_VISIBILITY_PUBLIC, Url: "https://3000-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},
				{Port: 8080, Url: "https://8080-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},
			},
		},
		Phase:      wsman.WorkspacePhase_RUNNING,
		Conditions: &wsman.WorkspaceConditions{Deployed: wsman.WorkspaceConditionBool_TRUE, FirstUserActivity: timestamppb.New(timestamppb.Now().AsTime())},
		Message:    "running",
		Runtime:    &wsman.WorkspaceRuntimeInfo{NodeName: "workspace-node-7f3a", PodName: "ws-" + scannedID, NodeIp: "10.0.17.4"},
		Auth:       &wsman.WorkspaceAuthentication{OwnerToken: "kR2mXw8cQyT5vN1zB7hJ4gF9dS6aL3pE"},
		InitializerMetrics: &wsman.InitializerMetrics{
			Git: &wsman.InitializerMetric{Duration: durationpb.New(1_500_000_000), Size: 12345},
		},
		StatusVersion: 1 << 40,
	}
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func mustScan(t testing.TB, raw []byte) Heard {
	t.Helper()
	h, err := Scan(raw)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestScanReadsIdentity(t *testing.T) {
	raw := encode(t, scanned())
	h := mustScan(t, raw)
	if h.ID.String() != scannedID || h.Version != 1<<40 {
		t.Fatalf("got %s at %d", h.ID, h.Version)
	}
	if &h.Raw[0] != &raw[0] || len(h.Raw) != len(raw) {
		t.Fatal("Raw is not what was scanned")
	}
	if allocations := testing.AllocsPerRun(100, func() { _, _ = Scan(raw) }); allocations != 0 {
		t.Fatalf("%v allocations", allocations)
	}
}

func TestScanInvalid(t *testing.T) {
	change := func(f func(s *wsman.WorkspaceStatus)) []byte {
		s := scanned()
		f(s)
		return encode(t, s)
	}
	whole := encode(t, scanned())
	cases := map[string]struct {
		raw  []byte
		want Reason
	}{
		"nothing":         {nil, ReasonNoID},
		"no id":           {change(func(s *wsman.WorkspaceStatus) { s.Id = "" }), ReasonNoID},
		"name as id":      {change(func(s *wsman.WorkspaceStatus) { s.Id = "workspace-1" }), ReasonNotUUID},
		"long id":         {change(func(s *wsman.WorkspaceStatus) { s.Id = strings.Repeat("x", 1<<20) }), ReasonNotUUID},
		"no metadata":     {change(func(s *wsman.WorkspaceStatus) { s.Metadata = nil }), ReasonNoMetadata},
		"no spec":         {change(func(s *wsman.WorkspaceStatus) { s.Spec = nil }), ReasonNoSpec},
		"no conditions":   {change(func(s *wsman.WorkspaceStatus) { s.Conditions = nil }), ReasonNoConditions},
		"version":         {change(func(s *wsman.WorkspaceStatus) { s.StatusVersion = math.MaxInt64 + 1 }), ReasonVersion},
		"cut":             {whole[:len(whole)-1], ReasonMalformed},
		"field zero":      {append(whole[:len(whole):len(whole)], 0x00, 0x00), ReasonMalformed},
		"end group alone": {append(whole[:len(whole):len(whole)], 0x64), ReasonMalformed},
		"metadata cut":    {append(whole[:len(whole):len(whole)], 0x12, 0x01, 0x0a), ReasonMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Scan(c.raw)
			var invalid *InvalidError
			if !errors.As(err, &invalid) || invalid.Reason != c.want {
				t.Fatalf("got %v, want reason %s", err, c.want)
			}
			if len(err.Error()) > 500 {
				t.Fatalf("the error quotes too much: %d bytes", len(err.Error()))
			}
		})
	}
	if h := mustScan(t, change(func(s *wsman.WorkspaceStatus) { s.StatusVersion = math.MaxInt64 })); h.Version != math.MaxInt64 {
		t.Fatal("the highest version is not taken")
	}
}

// Every declared field counts, the version alone does not.
func TestScanHashIsOfEveryFieldButTheVersion(t *testing.T) {
	base := scanned()
	want := mustScan(t, encode(t, base)).Hash

	for _, version := range []uint64{0, 1, 1 << 62} {
		s := proto.Clone(base).(*wsman.WorkspaceStatus)
		s.StatusVersion = version
		if h := mustScan(t, encode(t, s)); h.Hash != want || h.Version != version {
			t.Fatalf("version %d: hash %x, want %x", h.Version, h.Hash, want)
		}
	}
	changes := map[string]func(s *wsman.WorkspaceStatus){
		"id":             func(s *wsman.WorkspaceStatus) { s.Id = strings.Replace(s.Id, "8", "9", 1) },
		"owner":          func(s *wsman.WorkspaceStatus) { s.Metadata.Owner = "x" },
		"annotation":     func(s *wsman.WorkspaceStatus) { s.Metadata.Annotations["workspaceful/size"] = "small" },
		"annotations":    func(s *wsman.WorkspaceStatus) { s.Metadata.Annotations = nil },
		"team":           func(s *wsman.WorkspaceStatus) { s.Metadata.Team = nil },
		"image":          func(s *wsman.WorkspaceStatus) { s.Metadata.Metrics.Image.TotalSize++ },
		"url":            func(s *wsman.WorkspaceStatus) { s.Spec.Url += "/" },
		"port":           func(s *wsman.WorkspaceStatus) { s.Spec.ExposedPorts[0].Port++ },
		"port gone":      func(s *wsman.WorkspaceStatus) { s.Spec.ExposedPorts = s.Spec.ExposedPorts[:1] },
		"phase":          func(s *wsman.WorkspaceStatus) { s.Phase = wsman.WorkspacePhase_STOPPING },
		"conditions":     func(s *wsman.WorkspaceStatus) { s.Conditions = &wsman.WorkspaceConditions{} },
		"failed":         func(s *wsman.WorkspaceStatus) { s.Conditions.Failed = "x" },
		"message":        func(s *wsman.WorkspaceStatus) { s.Message = "" },
		"runtime":        func(s *wsman.WorkspaceStatus) { s.Runtime.NodeIp = "10.0.17.5" },
		"auth":           func(s *wsman.WorkspaceStatus) { s.Auth = nil },
		"initialization": func(s *wsman.WorkspaceStatus) { s.InitializerMetrics.Git.Size++ },
	}
	seen := map[uint64]string{want: "nothing"}
	for name, change := range changes {
		s := proto.Clone(base).(*wsman.WorkspaceStatus)
		change(s)
		got := mustScan(t, encode(t, s)).Hash
		if other, taken := seen[got]; taken {
			t.Errorf("a change of %s hashes as one of %s", name, other)
		}
		seen[got] = name
	}
}

func TestScanTakesAnnotationsAsASet(t *testing.T) {
	s := scanned()
	s.Metadata.Annotations = nil
	entry := func(key, value string) []byte {
		var e []byte
		e = protowire.AppendString(protowire.AppendTag(e, 1, protowire.BytesType), key)
		e = protowire.AppendString(protowire.AppendTag(e, 2, protowire.BytesType), value)
		return protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), e)
	}
	a, b, c := entry("a", "1"), entry("b", "2"), entry("c", "3")
	with := func(entries ...[]byte) uint64 {
		metadata := encode(t, s.Metadata)
		for _, e := range entries {
			metadata = append(metadata, e...)
		}
		rest := proto.Clone(s).(*wsman.WorkspaceStatus)
		rest.Metadata = nil
		raw := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), metadata)
		return mustScan(t, append(raw, encode(t, rest)...)).Hash
	}
	if with(a, b, c) != with(c, a, b) {
		t.Error("the order of annotations counts")
	}
	if with(a, b) == with(a, c) || with(a) == with(a, a) || with() == with(a) {
		t.Error("different annotations hash alike")
	}
}

// Fields that we do not declare come and go without being a change.
func TestScanSkipsUndeclaredFields(t *testing.T) {
	base := encode(t, scanned())
	want := mustScan(t, base)
	git := protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), []byte("branch: main"))
	for name, extra := range map[string][]byte{
		"git status":   git,
		"far number":   protowire.AppendVarint(protowire.AppendTag(nil, 12345, protowire.VarintType), 1),
		"fixed32":      protowire.AppendFixed32(protowire.AppendTag(nil, 15, protowire.Fixed32Type), 7),
		"fixed64":      protowire.AppendFixed64(protowire.AppendTag(nil, 15, protowire.Fixed64Type), 7),
		"group":        protowire.AppendGroup(protowire.AppendTag(nil, 20, protowire.StartGroupType), 20, git),
		"id as number": protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1),
		"version text": protowire.AppendString(protowire.AppendTag(nil, 10, protowire.BytesType), "x"),
	} {
		for _, raw := range [][]byte{append(extra[:len(extra):len(extra)], base...), append(base[:len(base):len(base)], extra...)} {
			if h := mustScan(t, raw); h.Hash != want.Hash || h.ID != want.ID || h.Version != want.Version {
				t.Errorf("%s changes what is heard", name)
			}
		}
	}
}

func TestScanTakesTheLastOfTwo(t *testing.T) {
	raw := encode(t, scanned())
	other := "00000000-0000-4000-8000-000000000001"
	raw = protowire.AppendString(protowire.AppendTag(raw, 1, protowire.BytesType), other)
	raw = protowire.AppendVarint(protowire.AppendTag(raw, 10, protowire.VarintType), 7)
	if h := mustScan(t, raw); h.ID.String() != other || h.Version != 7 {
		t.Fatalf("got %s at %d", h.ID, h.Version)
	}
}

func TestScanEnvelope(t *testing.T) {
	s := scanned()
	raw := encode(t, &wsman.SubscribeResponse{Status: s})
	e, err := ScanEnvelope(raw)
	if err != nil || e.Trace() != "" {
		t.Fatalf("got %q, %v", e.Trace(), err)
	}
	if h := mustScan(t, e.Status); h.ID.String() != scannedID {
		t.Fatalf("got %s", h.ID)
	}
	if allocations := testing.AllocsPerRun(100, func() {
		e, _ := ScanEnvelope(raw)
		_ = e.Trace()
	}); allocations != 0 {
		t.Fatalf("%v allocations", allocations)
	}

	for want, header := range map[string]map[string]string{
		"jaeger": {"uber-trace-id": "jaeger", "other": "x"},
		"w3c":    {"uber-trace-id": "jaeger", "Traceparent": "w3c"},
		"":       {"other": "x"},
	} {
		e, err := ScanEnvelope(encode(t, &wsman.SubscribeResponse{Status: s, Header: header}))
		if err != nil || e.Trace() != want {
			t.Errorf("%v: got %q, %v", header, e.Trace(), err)
		}
	}

	if e, err := ScanEnvelope(nil); err != nil || e.Status != nil {
		t.Errorf("empty: got %v, %v", e.Status, err)
	}
	if _, err := ScanEnvelope(raw[:len(raw)-1]); !errors.Is(err, ErrMalformedEnvelope) {
		t.Errorf("cut: got %v", err)
	}

	// In two parts, as a message that merges with itself.
	first, second := &wsman.WorkspaceStatus{Id: s.Id, Metadata: s.Metadata}, proto.Clone(s).(*wsman.WorkspaceStatus)
	second.Id, second.Metadata = "", nil
	both := append(encode(t, &wsman.SubscribeResponse{Status: first}), encode(t, &wsman.SubscribeResponse{Status: second})...)
	e, err = ScanEnvelope(both)
	if err != nil {
		t.Fatal(err)
	}
	var merged wsman.WorkspaceStatus
	if err := proto.Unmarshal(e.Status, &merged); err != nil || !proto.Equal(&merged, s) {
		t.Fatalf("two parts do not make the whole: %v", err)
	}
	if mustScan(t, e.Status).ID.String() != scannedID {
		t.Fatal("the id is lost in the merge")
	}
}

func BenchmarkScan(b *testing.B) {
	raw := encode(b, scanned())
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScanEnvelope(b *testing.B) {
	raw := encode(b, &wsman.SubscribeResponse{Status: scanned()})
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		e, err := ScanEnvelope(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Scan(e.Status); err != nil {
			b.Fatal(err)
		}
	}
}
