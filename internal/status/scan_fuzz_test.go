package status

import (
	"errors"
	"math"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// seeds gives encodings that cover what the scanner tells apart.
func seeds(t testing.TB) [][]byte {
	whole := encode(t, scanned())
	bare := encode(t, &wsman.WorkspaceStatus{
		Id: scannedID, Metadata: &wsman.WorkspaceMetadata{}, Spec: &wsman.WorkspaceSpec{}, Conditions: &wsman.WorkspaceConditions{},
	})
	join := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	return [][]byte{
		nil,
		whole,
		bare,
		whole[:len(whole)/2],
		join(bare, whole),
		join(whole, bare),
		join(bare, protowire.AppendVarint(protowire.AppendTag(nil, 10, protowire.VarintType), 1<<63)),
		join(bare, protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), []byte("git"))),
		join(bare, protowire.AppendGroup(protowire.AppendTag(nil, 12, protowire.StartGroupType), 12, whole)),
		join(bare, protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 5)),
		join(bare, []byte{0x8a, 0x00, 0x00}), // a tag that is longer than it needs to be
	}
}

// FuzzScan holds the scanner against generated decoding.
func FuzzScan(f *testing.F) {
	all := seeds(f)
	for i, a := range all {
		f.Add(a, all[(i+1)%len(all)])
		f.Add(a, a)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		one, oneOK := agree(t, a)
		two, twoOK := agree(t, b)
		if !oneOK || !twoOK {
			return
		}
		// As an encoder writes them, statuses are equal if and only if their
		// hashes are.
		h1, h2 := canonical(t, one), canonical(t, two)
		one.StatusVersion, two.StatusVersion = 0, 0
		if equal := proto.Equal(one, two); equal != (h1 == h2) {
			t.Fatalf("equal: %v, hashes %x and %x", equal, h1, h2)
		}
		// A repeat differs in its version alone.
		one.StatusVersion = 99
		if h := canonical(t, one); h != h1 {
			t.Fatalf("another version hashes to %x, not %x", h, h1)
		}
	})
}

// agree scans and decodes, and fails the test where the two do not agree. It
// gives the decoded status without unknown fields if both accept it.
func agree(t *testing.T, raw []byte) (*wsman.WorkspaceStatus, bool) {
	h, scanErr := Scan(raw)
	var s wsman.WorkspaceStatus
	decodeErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, &s)
	var invalid *InvalidError
	if scanErr != nil && !errors.As(scanErr, &invalid) {
		t.Fatalf("an error without a reason: %v", scanErr)
	}
	if decodeErr != nil {
		return nil, false // the scanner looks less deeply
	}
	id, idErr := ParseInstanceID(s.GetId())
	want := Reason("")
	switch {
	case s.GetId() == "":
		want = ReasonNoID
	case idErr != nil:
		want = ReasonNotUUID
	case s.Metadata == nil:
		want = ReasonNoMetadata
	case s.Spec == nil:
		want = ReasonNoSpec
	case s.Conditions == nil:
		want = ReasonNoConditions
	case s.GetStatusVersion() > math.MaxInt64:
		want = ReasonVersion
	}
	if want != "" {
		if invalid == nil || invalid.Reason != want {
			t.Fatalf("scanned: %v, decoded: %s", scanErr, want)
		}
		return nil, false
	}
	if scanErr != nil {
		t.Fatalf("decoding accepts what the scanner refuses: %v", scanErr)
	}
	if h.ID != id || h.Version != s.GetStatusVersion() {
		t.Fatalf("scanned %s at %d, decoded %s at %d", h.ID, h.Version, id, s.GetStatusVersion())
	}
	return &s, true
}

func canonical(t *testing.T, s *wsman.WorkspaceStatus) uint64 {
	raw, err := proto.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return mustScan(t, raw).Hash
}

// FuzzScanEnvelope holds the envelope against generated decoding.
func FuzzScanEnvelope(f *testing.F) {
	for _, status := range seeds(f) {
		one := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), status)
		f.Add(status)
		f.Add(one)
		f.Add(append(one[:len(one):len(one)], one...))
	}
	f.Add(encode(f, &wsman.SubscribeResponse{Status: scanned(), Header: map[string]string{"traceparent": "t", "uber-trace-id": "u"}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, scanErr := ScanEnvelope(raw)
		trace := e.Trace()
		var r wsman.SubscribeResponse
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &r); err != nil {
			return
		}
		if scanErr != nil {
			t.Fatalf("decoding accepts what the scanner refuses: %v", scanErr)
		}
		var s wsman.WorkspaceStatus
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Status, &s); err != nil {
			t.Fatal(err)
		}
		if r.Status != nil && !proto.Equal(&s, r.Status) || r.Status == nil && e.Status != nil {
			t.Fatalf("the status is another")
		}
		if want := r.GetHeader()["traceparent"]; want != "" && len(r.GetHeader()) == 1 && trace != want {
			t.Fatalf("trace %q, want %q", trace, want)
		}
	})
}
