package status

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"
)

// Heard is one status as it was heard: still encoded.
type Heard struct {
	ID InstanceID
	// Version orders the updates of this instance; 0 is unversioned.
	Version uint64
	// Hash is of all declared fields but the version. Equal hashes mean equal
	// statuses; unequal ones may still mean equal statuses where an encoder
	// has written the same thing in two ways.
	Hash uint64
	// Raw is the encoded wsman.WorkspaceStatus. It is valid only during the
	// call that hands it over.
	Raw []byte
	// At is when the status was heard.
	At time.Time
	// Snapshot says that it was heard in a snapshot, not on the stream.
	Snapshot bool
	// Trace is the W3C traceparent or the uber-trace-id of the update; empty
	// unless tracing is on and the update had one.
	Trace string
}

// String names the status without its content, which holds the owner's token.
func (h Heard) String() string {
	return fmt.Sprintf("status of %s at version %d (%d bytes)", h.ID, h.Version, len(h.Raw))
}

// Format is String for every verb.
func (h Heard) Format(f fmt.State, _ rune) { io.WriteString(f, h.String()) }

// LogValue is String.
func (h Heard) LogValue() slog.Value { return slog.StringValue(h.String()) }

// MarshalText is String, also for encoding/json.
func (h Heard) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Reason says why a status is invalid. The set is bounded: it is fit to be a
// metric's label.
type Reason string

// The reasons for which a status is invalid.
const (
	ReasonMalformed    Reason = "malformed"
	ReasonNoID         Reason = "no_id"
	ReasonNotUUID      Reason = "id_not_uuid"
	ReasonNoMetadata   Reason = "no_metadata"
	ReasonNoSpec       Reason = "no_spec"
	ReasonNoConditions Reason = "no_conditions"
	ReasonVersion      Reason = "version_out_of_range"
	// ReasonTooLarge is for a status beyond the limit of one update. Scan
	// knows no limit; who receives does.
	ReasonTooLarge Reason = "too_large"
)

// Reasons lists every reason, so that metrics can start at zero.
func Reasons() []Reason {
	return []Reason{
		ReasonMalformed, ReasonNoID, ReasonNotUUID, ReasonNoMetadata,
		ReasonNoSpec, ReasonNoConditions, ReasonVersion, ReasonTooLarge,
	}
}

// InvalidError is the error of a status that cannot be used.
type InvalidError struct {
	Reason Reason
	Err    error
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid status (%s): %v", e.Reason, e.Err)
}

func (e *InvalidError) Unwrap() error { return e.Err }

func invalid(reason Reason, format string, args ...any) error {
	return &InvalidError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Field numbers of wsman.WorkspaceStatus and of what lies around it.
const (
	fieldID                 = 1
	fieldMetadata           = 2
	fieldSpec               = 3
	fieldPhase              = 4
	fieldConditions         = 5
	fieldMessage            = 6
	fieldRuntime            = 8
	fieldAuth               = 9
	fieldVersion            = 10
	fieldInitializerMetrics = 11

	fieldMetadataAnnotations = 4

	fieldEnvelopeStatus = 1
	fieldEnvelopeHeader = 3

	fieldEntryKey   = 1
	fieldEntryValue = 2
)

// statusTypes gives the wire type of each declared field of a WorkspaceStatus
// and undeclared for the others. A field with another type than its own is
// unknown to protobuf, so it is unknown here.
var statusTypes = func() (types [fieldInitializerMetrics + 1]protowire.Type) {
	for i := range types {
		types[i] = undeclared
	}
	for _, n := range []int{fieldID, fieldMetadata, fieldSpec, fieldConditions, fieldMessage, fieldRuntime, fieldAuth, fieldInitializerMetrics} {
		types[n] = protowire.BytesType
	}
	types[fieldPhase], types[fieldVersion] = protowire.VarintType, protowire.VarintType
	return types
}()

const undeclared protowire.Type = -1

// field reads the field that raw begins with: its number, its type, where its
// value lies for the types that have one, and its length in all. A negative
// length says that raw is malformed.
func field(raw []byte) (number protowire.Number, kind protowire.Type, from, length int) {
	tag, n := uint64(0), 1
	switch {
	case len(raw) == 0:
		return 0, 0, 0, -1
	case raw[0] < 0x80:
		tag = uint64(raw[0])
	default:
		if tag, n = protowire.ConsumeVarint(raw); n < 0 {
			return 0, 0, 0, -1
		}
	}
	if tag>>3 < uint64(protowire.MinValidNumber) || tag>>3 > uint64(protowire.MaxValidNumber) {
		return 0, 0, 0, -1
	}
	number, kind = protowire.Number(tag>>3), protowire.Type(tag&7)
	if kind != protowire.BytesType {
		m := protowire.ConsumeFieldValue(number, kind, raw[n:])
		if m < 0 {
			return 0, 0, 0, -1
		}
		return number, kind, n, n + m
	}
	size, m := uint64(0), 1
	if n < len(raw) && raw[n] < 0x80 {
		size = uint64(raw[n])
	} else if size, m = protowire.ConsumeVarint(raw[n:]); m < 0 {
		return 0, 0, 0, -1
	}
	n += m
	if size > uint64(len(raw)-n) {
		return 0, 0, 0, -1
	}
	return number, kind, n, n + int(size)
}

// Scan reads what tells one status from another out of its encoded form, in
// one pass and without allocating unless it fails. It fills ID, Version, Hash
// and Raw. Its errors are *InvalidError; if the id is good and something else
// is not, ID is filled all the same.
//
// It agrees with generated decoding on the id and the version of whatever
// generated decoding accepts: of a scalar that comes twice the last one
// counts, unknown fields and groups are skipped, a message field is there if
// it comes at all. It looks into no message but the metadata, so it accepts
// some statuses that decoding refuses afterwards: texts that are not UTF-8,
// or a malformed message inside.
//
// The hash leaves out the version and top-level fields that are not declared,
// and takes the annotations, a map whose entries come in random order, as a
// set. Undeclared fields inside messages count: a deeper pass would cost more
// than the rare write that it saves.
func Scan(raw []byte) (Heard, error) {
	var (
		id        []byte
		version   uint64
		seen      uint32 // a bit for each declared field
		digest    xxhash.Digest
		run       int // where the bytes begin that are not hashed yet
		rest, end = raw, 0
	)
	digest.Reset()
	for len(rest) > 0 {
		number, kind, from, length := field(rest)
		if length < 0 {
			return Heard{}, invalid(ReasonMalformed, "malformed at byte %d of %d", end, len(raw))
		}
		value := rest[from:length]
		start := end
		end += length
		rest = rest[length:]

		if number >= protowire.Number(len(statusTypes)) || statusTypes[number] != kind {
			digest.Write(raw[run:start])
			run = end
			continue
		}
		seen |= 1 << number
		switch number {
		case fieldID:
			id = value
		case fieldVersion:
			version, _ = protowire.ConsumeVarint(value)
			digest.Write(raw[run:start])
			run = end
		case fieldMetadata:
			digest.Write(raw[run : start+from])
			run = end
			if !hashMetadata(&digest, value) {
				return Heard{}, invalid(ReasonMalformed, "malformed metadata of %q", short(id))
			}
		}
	}
	digest.Write(raw[run:])

	h := Heard{Version: version, Hash: digest.Sum64(), Raw: raw}
	if len(id) == 0 {
		return Heard{}, invalid(ReasonNoID, "no id")
	}
	var err error
	if h.ID, err = ParseInstanceID(id); err != nil {
		return Heard{}, invalid(ReasonNotUUID, "id %q: %w", short(id), err)
	}
	switch {
	case seen&(1<<fieldMetadata) == 0:
		return Heard{ID: h.ID}, invalid(ReasonNoMetadata, "no metadata of %s", h.ID)
	case seen&(1<<fieldSpec) == 0:
		return Heard{ID: h.ID}, invalid(ReasonNoSpec, "no spec of %s", h.ID)
	case seen&(1<<fieldConditions) == 0:
		return Heard{ID: h.ID}, invalid(ReasonNoConditions, "no conditions of %s", h.ID)
	case version > math.MaxInt64:
		return Heard{ID: h.ID}, invalid(ReasonVersion, "version %d of %s is above %d", version, h.ID, int64(math.MaxInt64))
	}
	return h, nil
}

// hashMetadata hashes an encoded WorkspaceMetadata: what is not an annotation
// in its order, then the sum of the annotations' hashes. It reports false if
// the metadata is malformed.
//
// The bytes before it in the digest hold the metadata's length, so that what
// belongs to it and what follows it cannot be confused.
func hashMetadata(digest *xxhash.Digest, raw []byte) bool {
	var annotations uint64
	run, end := 0, 0
	for end < len(raw) {
		number, kind, from, length := field(raw[end:])
		if length < 0 {
			return false
		}
		if number == fieldMetadataAnnotations && kind == protowire.BytesType {
			annotations += xxhash.Sum64(raw[end+from : end+length])
			digest.Write(raw[run:end])
			run = end + length
		}
		end += length
	}
	digest.Write(raw[run:])
	var sum [8]byte
	binary.LittleEndian.PutUint64(sum[:], annotations)
	digest.Write(sum[:])
	return true
}

// short bounds what an error quotes of an id.
func short(id []byte) []byte {
	return id[:min(len(id), 64)]
}

// Envelope is an encoded wsman.SubscribeResponse, taken apart.
type Envelope struct {
	// Status is the encoded WorkspaceStatus: a part of what ScanEnvelope was
	// given, or nil if there is none.
	Status []byte

	raw       []byte
	hasHeader bool
}

// ErrMalformedEnvelope is the cause of the InvalidError of an envelope that is
// no protobuf message.
var ErrMalformedEnvelope = errors.New("malformed message around a status")

// ScanEnvelope finds the status in an encoded SubscribeResponse. It allocates
// only if the status comes in several parts, which protobuf merges, or if it
// fails; its errors are *InvalidError.
func ScanEnvelope(raw []byte) (Envelope, error) {
	e := Envelope{raw: raw}
	found := false
	for rest := raw; len(rest) > 0; {
		number, kind, from, length := field(rest)
		if length < 0 {
			return Envelope{}, &InvalidError{Reason: ReasonMalformed, Err: ErrMalformedEnvelope}
		}
		if kind == protowire.BytesType {
			switch number {
			case fieldEnvelopeStatus:
				if part := rest[from:length]; found {
					// To merge messages is to decode one after the other.
					e.Status = append(e.Status[:len(e.Status):len(e.Status)], part...)
				} else {
					e.Status, found = part, true
				}
			case fieldEnvelopeHeader:
				e.hasHeader = true
			}
		}
		rest = rest[length:]
	}
	return e, nil
}

// Trace gives the trace context in the header: the traceparent, else the
// uber-trace-id, else nothing. It allocates only what it returns. The value is
// as it was sent: not checked.
func (e Envelope) Trace() string {
	if !e.hasHeader {
		return ""
	}
	var w3c, jaeger []byte
	for rest := e.raw; len(rest) > 0; {
		number, kind, from, length := field(rest)
		if length < 0 {
			break
		}
		if number == fieldEnvelopeHeader && kind == protowire.BytesType {
			switch key, value := mapEntry(rest[from:length]); {
			case bytes.EqualFold(key, []byte("traceparent")):
				w3c = value
			case bytes.EqualFold(key, []byte("uber-trace-id")):
				jaeger = value
			}
		}
		rest = rest[length:]
	}
	if len(w3c) > 0 {
		return string(w3c)
	}
	return string(jaeger)
}

// mapEntry reads an entry of a map of texts.
func mapEntry(raw []byte) (key, value []byte) {
	for len(raw) > 0 {
		number, kind, from, length := field(raw)
		if length < 0 {
			break
		}
		if kind == protowire.BytesType {
			switch number {
			case fieldEntryKey:
				key = raw[from:length]
			case fieldEntryValue:
				value = raw[from:length]
			}
		}
		raw = raw[length:]
	}
	return key, value
}
