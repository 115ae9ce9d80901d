package sim

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of wsman.SubscribeResponse and wsman.WorkspaceStatus.
const (
	fieldStatus  = 1
	fieldHeader  = 3
	fieldVersion = 10
)

// A Message is an encoded wsman.SubscribeResponse. Its bytes are shared by all
// subscribers and by snapshots and never change once they have been handed
// over, so a Message may be published again, by any number of clusters.
type Message struct {
	// status is the field "status" of the response, tag and length included.
	// wsman.GetWorkspacesResponse has the same field under the same number, so
	// that a snapshot is nothing but the statuses of all instances in a row.
	status mem.BufferSlice
	// header is what follows it in an update, but not in a snapshot.
	header mem.BufferSlice
}

// NewMessage makes a message of bytes that are sent as they are, right or
// wrong. The bytes belong to the message from now on.
func NewMessage(response []byte) Message {
	return Message{status: mem.BufferSlice{mem.SliceBuffer(response)}}
}

// NewStatus makes a message of an encoded wsman.WorkspaceStatus.
func NewStatus(status []byte) Message {
	return NewMessage(AppendStatus(make([]byte, 0, len(status)+protowire.SizeVarint(uint64(len(status)))+1), status))
}

// AppendStatus appends an encoded wsman.WorkspaceStatus as a response.
func AppendStatus(b, status []byte) []byte {
	b = protowire.AppendTag(b, fieldStatus, protowire.BytesType)
	return protowire.AppendBytes(b, status)
}

// WithHeader gives the message with the tracing headers of an update. They are
// part of the update, not of the state: snapshots do not have them.
func (m Message) WithHeader(header map[string]string) Message {
	var b []byte
	for k, v := range header {
		var entry []byte
		entry = protowire.AppendTag(entry, 1, protowire.BytesType)
		entry = protowire.AppendString(entry, k)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		entry = protowire.AppendString(entry, v)
		b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
		b = protowire.AppendBytes(b, entry)
	}
	m.header = mem.BufferSlice{mem.SliceBuffer(b)}
	return m
}

// Len is the size on the wire in bytes, without gRPC's frame.
func (m Message) Len() int { return m.status.Len() + m.header.Len() }

// Bytes gives a copy of the message as it is on the wire.
func (m Message) Bytes() []byte {
	return append(m.status.Materialize(), m.header.Materialize()...)
}

// A Stem is one status whose version alone changes. Its messages share all
// other bytes, which makes them about as cheap as a message can be: a million
// repeats cost the generator next to nothing beside sending them.
//
// The version is the last field of each message; protobuf allows any order.
// A Stem is for one goroutine at a time; its messages are for all.
type Stem struct {
	status []byte
	// heads are all bytes before the version, by the version's length, because
	// the length of the status in front of it depends on that.
	heads [11]mem.Buffer
}

// NewStem takes an encoded wsman.WorkspaceStatus that has no status_version.
func NewStem(status []byte) *Stem { return &Stem{status: status} }

// At is the message of one version. Version 0 is left out, as protobuf does.
func (s *Stem) At(version uint64) Message {
	n := 0
	if version != 0 {
		n = protowire.SizeVarint(version)
	}
	if s.heads[n] == nil {
		total := len(s.status)
		if n > 0 {
			total += protowire.SizeTag(fieldVersion) + n
		}
		head := protowire.AppendTag(nil, fieldStatus, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(total))
		s.heads[n] = mem.SliceBuffer(append(head, s.status...))
	}
	if n == 0 {
		return Message{status: mem.BufferSlice{s.heads[0]}}
	}
	tail := protowire.AppendTag(make([]byte, 0, n+1), fieldVersion, protowire.VarintType)
	return Message{status: mem.BufferSlice{s.heads[n], mem.SliceBuffer(protowire.AppendVarint(tail, version))}}
}

// snapshot is an encoded wsman.GetWorkspacesResponse.
type snapshot struct{ statuses mem.BufferSlice }

// codec sends Messages and snapshots as the bytes they are, and everything else
// as protobuf.
type codec struct{ encoding.CodecV2 }

func newCodec() (codec, error) {
	base := encoding.GetCodecV2(proto.Name)
	if base == nil {
		return codec{}, fmt.Errorf("no gRPC codec named %q", proto.Name)
	}
	return codec{base}, nil
}

// Marshal implements encoding.CodecV2. The buffers are plain slices, which gRPC
// neither changes nor recycles.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *Message:
		if len(v.header) == 0 {
			return v.status, nil
		}
		return append(append(make(mem.BufferSlice, 0, 4), v.status...), v.header...), nil
	case *snapshot:
		return v.statuses, nil
	default:
		return c.CodecV2.Marshal(v)
	}
}
