package upstream

import (
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// keepScratch is the largest scratch that a message keeps for the next one, so
// that one giant update does not hold its size for ever.
const keepScratch = 64 << 10

// message receives one encoded message. It is reused from one to the next; the
// bytes are valid until then. It is not safe for concurrent use.
type message struct {
	bytes   []byte
	held    mem.Buffer // whose data bytes is, or nil
	scratch []byte
}

// take holds data until release, without copying if it came in one buffer.
// The caller frees its own reference to data afterwards.
func (m *message) take(data mem.BufferSlice) {
	m.release()
	switch len(data) {
	case 0:
	case 1:
		data[0].Ref()
		m.held, m.bytes = data[0], data[0].ReadOnlyData()
	default:
		size := data.Len()
		if cap(m.scratch) < size {
			m.scratch = make([]byte, size)
		}
		m.bytes = m.scratch[:size]
		data.CopyTo(m.bytes)
	}
}

func (m *message) release() {
	if m.held != nil {
		m.held.Free()
		m.held = nil
	}
	if cap(m.scratch) > keepScratch {
		m.scratch = nil
	}
	m.bytes = nil
}

// codec hands the bytes of a response to a *message; all else it leaves to
// protobuf's own codec.
type codec struct {
	encoding.CodecV2
}

func newCodec() codec {
	return codec{encoding.GetCodecV2(grpcproto.Name)}
}

// Unmarshal is called by gRPC with buffers that it frees as soon as Unmarshal
// returns, so take holds references of its own.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*message); ok {
		m.take(data)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
