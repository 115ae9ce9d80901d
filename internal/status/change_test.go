package status_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/internal/status/statustest"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

const ownerToken = "kR2mXw8cQyT5vN1zB7hJ4gF9dS6aL3pE"

// realistic is a status of the size and shape that clusters send: some 900
// bytes.
func realistic() *wsman.WorkspaceStatus {
	s := creating()
	s.Metadata.StartedAt = timestamppb.New(statustest.Epoch)
	s.Metadata.Annotations = map[string]string{"workspaceful/size": "large", "workspaceful/origin": "context", "workspaceful/class": "g1-standard"}
	s.Metadata.Metrics = imageMetrics(5<<30, 3<<29)
	s.Spec = &wsman.WorkspaceSpec{
		WorkspaceImage: "registry.cluster.example/workspace-images/0a8f2f0f4b118d6a4f8e3f0d4a539c560a8f2f0f4b11:latest",
		Url:            "https://trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example",
		Timeout:        "30m",
		IdeImage:       &wsman.IDEImage{WebRef: "registry.cluster.example/ide/code:commit-0a8f2f0f4b118d6a", SupervisorRef: "registry.cluster.example/supervisor:commit-4a539c560a8f"},
		Class:          "g1-standard",
		IdeImageLayers: []string{"registry.cluster.example/ide/helper:commit-8d6a4f8e3f0d4a53"},
		ExposedPorts: []*wsman.PortSpec{
			{Port: 3000, Visibility: wsman.PortVisibility_PORT_VISIBILITY_PUBLIC, Url: "https://3000-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},
			{Port: 8080, Url: "https://8080-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},
		},
	}
	s.Phase = running
	s.Conditions = &wsman.WorkspaceConditions{
		Deployed: isTrue, StoppedByRequest: isEmpty, FirstUserActivity: timestamppb.New(statustest.Epoch.Add(time.Minute)),
	}
	s.Message = "the workspace <is> running"
	s.Runtime = &wsman.WorkspaceRuntimeInfo{NodeName: "workspace-node-7f3a", PodName: "ws-" + testID.String(), NodeIp: "10.0.17.4"}
	s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: ownerToken}
	s.StatusVersion = 1 << 60
	s.InitializerMetrics = &wsman.InitializerMetrics{Git: &wsman.InitializerMetric{Duration: durationpb.New(1500 * time.Millisecond), Size: 12345}}
	return s
}

// The store reads these texts in SQL: their very form is what it relies on.
func TestEncodedParts(t *testing.T) {
	c := history{realistic()}.change(t, status.Rules{}, 0)
	effect := c.Rungs()[0].Effect
	for _, part := range []struct{ name, got, want string }{
		{"document", string(c.Document), `{"version":1152921504606846976,"message":"the workspace <is> running",` +
			`"exposedPorts":[{"port":3000,"visibility":"public","protocol":"http","url":"https://3000-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"},` +
			`{"port":8080,"visibility":"private","protocol":"http","url":"https://8080-trestlebrid-trestle-8u2k3m1x9qz.ws-eu117.cluster.example"}],` +
			`"timeout":"30m","ownerToken":"` + ownerToken + `"}`},
		{"conditions", string(c.Conditions), `{"pullingImages":false,"deployed":true,"firstUserActivity":"2024-03-01T12:01:00.000Z"}`},
		{"kept", string(effect.Kept()), `{"nodeName":"workspace-node-7f3a","podName":"ws-` + testID.String() + `","nodeIp":"10.0.17.4",` +
			`"metrics":{"image":{"totalSize":5368709120,"workspaceImageSize":1610612736}}}`},
		{"metrics", string(effect.Metrics.JSON()), `{"image":{"totalSize":5368709120,"workspaceImageSize":1610612736},` +
			`"initializerMetrics":{"git":{"duration":1500,"size":12345}}}`},
	} {
		if part.got != part.want {
			t.Errorf("%s is\n%s\nwant\n%s", part.name, part.got, part.want)
		}
	}

	bare := history{creating()}.change(t, status.Rules{}, 0)
	effect = bare.Rungs()[0].Effect
	if effect.Kept() != nil || effect.Metrics.JSON() != nil || string(bare.Conditions) != "{}" {
		t.Errorf("a status that says nothing: kept %s, metrics %s, conditions %s", effect.Kept(), effect.Metrics.JSON(), bare.Conditions)
	}
}

func TestFoldTellsOfAllUpdates(t *testing.T) {
	heard := func(version uint64, trace string, second int) *status.Change {
		s := creating()
		s.StatusVersion, s.Message = version, fmt.Sprint(version)
		h, err := statustest.Heard(s, heardAt(second))
		if err != nil {
			t.Fatal(err)
		}
		h.Trace = trace
		c, err := status.Rules{}.Change(h)
		if err != nil {
			t.Fatal(err)
		}
		if c.Hash != h.Hash || c.Version != version || c.ID != testID || c.Updates != 1 {
			t.Fatalf("%s is not what was heard", c)
		}
		return c
	}
	c, last := heard(1, "first", 0), heard(3, "", 2)
	second := heard(2, "second", 1)
	if !c.Fold(second) || !c.Fold(last) {
		t.Fatal("not folded")
	}
	if c.Version != 3 || c.Updates != 3 || c.Hash != last.Hash || c.Trace != "second" ||
		!c.FirstAt.Equal(heardAt(0)) || !c.LastAt.Equal(heardAt(2)) {
		t.Fatalf("%s, trace %q, from %s to %s", c, c.Trace, c.FirstAt, c.LastAt)
	}
	for _, stale := range []uint64{0, 2, 3} {
		if c.Fold(heard(stale, "stale", 9)) || c.Updates != 3 || c.Trace != "second" || !c.LastAt.Equal(heardAt(2)) {
			t.Fatalf("version %d was folded into %s", stale, c)
		}
	}
}

// What is kept of a history is bounded, however long an outage lasts.
func TestFoldIsBounded(t *testing.T) {
	s := prebuilding()
	c := history{s}.change(t, status.Rules{}, 0)
	for i := range 1000 {
		s.StatusVersion++
		s.Phase = []wsman.WorkspacePhase{running, stopping, stopped}[i%3]
		if !c.Fold(history{s}.change(t, status.Rules{}, 0)) {
			t.Fatal("not folded")
		}
		if len(c.Rungs()) > maxSteps || len(c.PrebuildSteps()) > maxSteps {
			t.Fatalf("%s has %d steps and %d for the prebuild", c, len(c.Rungs()), len(c.PrebuildSteps()))
		}
	}
}

// Nothing that prints or logs a change shows the token or the document, also
// not in another form.
func TestChangeShowsNoContent(t *testing.T) {
	s := prebuilding()
	s.Auth = &wsman.WorkspaceAuthentication{OwnerToken: ownerToken}
	s.Message = "message to the owner"
	c := history{s}.change(t, status.Rules{}, 0)
	holder := struct{ C *status.Change }{c}
	raw, err := proto.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	heard := status.Heard{ID: testID, Raw: raw}

	var shown bytes.Buffer
	for _, value := range []any{heard, &heard, []status.Heard{heard}, c, *c, &c, []*status.Change{c}, []status.Change{*c}, holder, &holder, map[string]any{"c": c}} {
		for verb := 'A'; verb <= 'z'; verb++ {
			if verb == 'w' || verb == 'p' {
				continue // fmt prints what it takes for a misuse raw; go vet refuses it
			}
			for _, flags := range []string{"", "+", "#", " ", "0", "-", "200.100"} {
				fmt.Fprintf(&shown, "%"+flags+string(verb)+"\n", value)
			}
		}
		fmt.Fprintln(&shown, value)
		for _, handler := range []slog.Handler{slog.NewTextHandler(&shown, nil), slog.NewJSONHandler(&shown, nil)} {
			slog.New(handler).Info("a change", "c", value, slog.Group("g", "c", value))
		}
	}
	_, err = status.Rules{}.Change(status.Heard{ID: testID, Raw: protowire.AppendString(protowire.AppendTag(nil, 6, protowire.BytesType), ownerToken+"\xff")})
	fmt.Fprintf(&shown, "%v %+v %#v", err, err, err)

	if !strings.Contains(shown.String(), c.String()) {
		t.Error("a change does not even show its name")
	}
	for _, secret := range []string{ownerToken, s.Message} {
		inJSON := []byte(`"` + secret + `"`)
		decimal := strings.Trim(fmt.Sprint([]byte(secret)), "[]")
		for _, form := range []string{
			secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
			base64.StdEncoding.EncodeToString(c.Document)[:64], decimal, fmt.Sprintf("% x", secret), fmt.Sprintf("%#v", inJSON)[8:60],
		} {
			if at := strings.Index(shown.String(), form); at >= 0 {
				t.Errorf("shown: %.300s", shown.String()[max(0, at-100):])
			}
		}
	}
}

func TestMalformedIsInvalid(t *testing.T) {
	for name, raw := range map[string][]byte{
		"cut off":                 {0x0a, 0xff},
		"a text that is no UTF-8": protowire.AppendString(protowire.AppendTag(nil, 6, protowire.BytesType), "\xff"),
	} {
		_, err := status.Rules{}.Change(status.Heard{ID: testID, Raw: raw})
		var invalid *status.InvalidError
		if !errors.As(err, &invalid) || invalid.Reason != status.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzChange decodes anything. Whatever is taken must give JSON that
// PostgreSQL takes.
func FuzzChange(f *testing.F) {
	for _, s := range []*wsman.WorkspaceStatus{
		creating(), prebuilding(), realistic(),
		{
			Phase: stopping, Message: "\x00\u2028<&>\"\\\u0001\U0001F600", Auth: &wsman.WorkspaceAuthentication{OwnerToken: "\x00"},
			Spec:       &wsman.WorkspaceSpec{Type: wsman.WorkspaceType_PREBUILD, Url: "\x00", ExposedPorts: []*wsman.PortSpec{{Url: "\x00"}}},
			Conditions: &wsman.WorkspaceConditions{Failed: "\x00", Snapshot: "\x00", FirstUserActivity: &timestamppb.Timestamp{Seconds: -1 << 63, Nanos: -1}},
			Metadata:   &wsman.WorkspaceMetadata{Metrics: imageMetrics(-1<<63, 1<<63-1)},
			InitializerMetrics: &wsman.InitializerMetrics{
				Git:       &wsman.InitializerMetric{Duration: &durationpb.Duration{Seconds: 1<<63 - 1, Nanos: 1<<31 - 1}, Size: 1<<64 - 1},
				Composite: &wsman.InitializerMetric{Duration: &durationpb.Duration{Seconds: -1 << 63}},
			},
			StatusVersion: 1<<64 - 1,
		},
	} {
		raw, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
	}
	f.Add([]byte{}, true)
	f.Add([]byte("\x2a\x02\x4a\x00"), true)

	f.Fuzz(func(t *testing.T, raw []byte, stopped bool) {
		rules := status.Rules{DecidedWhenStopped: stopped}
		var s wsman.WorkspaceStatus
		decodes := proto.Unmarshal(raw, &s) == nil
		c, err := rules.Change(status.Heard{ID: testID, Version: s.GetStatusVersion(), Raw: raw, At: statustest.Epoch})
		if decodes != (err == nil) {
			t.Fatalf("decodes: %t, and yet %v", decodes, err)
		}
		if err != nil {
			var invalid *status.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("not an InvalidError: %v", err)
			}
			return
		}
		texts := []any{c.IDEURL}
		for _, rung := range c.Rungs() {
			texts = append(texts, rung.Failed)
			for _, part := range [][]byte{c.Document, c.Conditions, rung.Kept(), rung.Metrics.JSON()} {
				if part == nil {
					continue
				}
				document, err := statustest.Decode(part)
				if err != nil {
					t.Fatal(err)
				}
				texts = append(texts, document)
			}
		}
		for _, step := range c.PrebuildSteps() {
			for _, text := range []*string{step.Error, step.Snapshot} {
				if text != nil {
					texts = append(texts, *text)
				}
			}
		}
		if printed := fmt.Sprint(texts); strings.Contains(printed, "\x00") {
			t.Fatalf("a NUL character in %q", printed)
		}

		want, got := creatingRow(), creatingRow()
		for _, row := range []*statustest.Row{want, got} {
			row.Version, row.Prebuild = 0, &statustest.Prebuild{State: "queued"}
		}
		statustest.InTurn(want, &s, statustest.Epoch, rules)
		statustest.Apply(got, c)
		if diff := statustest.Diff(got, want); diff != "" {
			t.Fatal(diff)
		}
	})
}

func BenchmarkChange(b *testing.B) {
	h, err := statustest.Heard(realistic(), statustest.Epoch)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(h.Raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (status.Rules{}).Change(h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFold(b *testing.B) {
	h := history{realistic(), realistic()}
	h[1].StatusVersion++
	first, second := h.change(b, status.Rules{}, 0), h.change(b, status.Rules{}, 1)
	b.ReportAllocs()
	for b.Loop() {
		c := *first
		if !c.Fold(second) || len(c.Rungs()) != 2 {
			b.Fatal("not folded")
		}
	}
}
