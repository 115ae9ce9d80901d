package script

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// A Frame is one message of a script, for any identity. It is encoded once;
// binding it to an identity copies its bytes and overwrites the ids in them.
// Frames do not change and are safe for concurrent use.
type Frame struct {
	// body is the encoded status of the placeholder without its version, or
	// bytes that are no status at all.
	body    []byte
	patches []patch
	garbage bool
}

type patch struct {
	at   int
	kind patchKind
}

type patchKind byte

const (
	patchInstance patchKind = iota
	patchWorkspace
	patchOwner
)

// NewFrame makes a frame of a status in which the ids of Placeholder stand for
// those of the identity. The status_version is ignored; the rest is copied.
func NewFrame(status *wsman.WorkspaceStatus) (*Frame, error) {
	status = proto.CloneOf(status)
	status.StatusVersion = 0
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("encode a frame: %w", err)
	}
	f := &Frame{body: body}
	f.find(FormatUUID(placeholder.Instance), patchInstance)
	f.find(placeholder.Workspace, patchWorkspace)
	f.find(placeholder.Owner, patchOwner)
	slices.SortFunc(f.patches, func(a, b patch) int { return cmp.Compare(a.at, b.at) })
	return f, nil
}

// Garbage makes a frame of bytes that are sent in place of a whole response.
func Garbage(response []byte) *Frame { return &Frame{body: response, garbage: true} }

func (f *Frame) find(text string, kind patchKind) {
	for at := 0; ; {
		i := bytes.Index(f.body[at:], []byte(text))
		if i < 0 {
			return
		}
		f.patches = append(f.patches, patch{at + i, kind})
		at += i + len(text)
	}
}

// Status is the encoded wsman.WorkspaceStatus for an identity, without a
// version.
func (f *Frame) Status(id *Identity) []byte {
	return f.bind(make([]byte, 0, len(f.body)), id)
}

// Response is the encoded wsman.SubscribeResponse for an identity, with the
// version as the last field of its status; version 0 is left out.
func (f *Frame) Response(id *Identity, version uint64) []byte {
	if f.garbage {
		return f.body
	}
	const statusField, versionField = 1, 10
	size := len(f.body)
	if version != 0 {
		size += protowire.SizeTag(versionField) + protowire.SizeVarint(version)
	}
	b := make([]byte, 0, 1+protowire.SizeVarint(uint64(size))+size)
	b = protowire.AppendTag(b, statusField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = f.bind(b, id)
	if version != 0 {
		b = protowire.AppendTag(b, versionField, protowire.VarintType)
		b = protowire.AppendVarint(b, version)
	}
	return b
}

// Decode is what a client reads of Response; nil for bytes that are none.
func (f *Frame) Decode(id *Identity, version uint64) *wsman.WorkspaceStatus {
	var r wsman.SubscribeResponse
	if err := proto.Unmarshal(f.Response(id, version), &r); err != nil {
		return nil
	}
	return r.GetStatus()
}

func (f *Frame) bind(b []byte, id *Identity) []byte {
	start := len(b)
	b = append(b, f.body...)
	for _, p := range f.patches {
		at := b[start+p.at:]
		switch p.kind {
		case patchInstance:
			putUUID(at, id.Instance)
		case patchWorkspace:
			copy(at, id.Workspace)
		case patchOwner:
			copy(at, id.Owner)
		}
	}
	return b
}
