package status

import (
	"fmt"
	"sync"
	"unicode/utf8"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/trestle-bridge/trestle/proto/wsman"
)

// decodeAny is generated decoding, for everything that quickly does not know.
func decodeAny(h Heard) (*wsman.WorkspaceStatus, error) {
	s := new(wsman.WorkspaceStatus)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(h.Raw, s); err != nil {
		return nil, &InvalidError{Reason: ReasonMalformed, Err: fmt.Errorf("decode the status of %s: %w", h.ID, err)}
	}
	return s, nil
}

// decoded is a status with the messages that it mostly has in one piece.
// Generated decoding makes some thirty allocations of the same, which together with
// their collection cost more than all else that is done with an update.
//
// Its texts are the bytes of the encoded status: what is kept of them has to be
// copied.
type decoded struct {
	status     wsman.WorkspaceStatus
	metadata   wsman.WorkspaceMetadata
	metrics    wsman.WorkspaceMetadata_Metrics
	image      wsman.WorkspaceMetadata_ImageInfo
	spec       wsman.WorkspaceSpec
	conditions wsman.WorkspaceConditions
	activity   timestamppb.Timestamp
	runtime    wsman.WorkspaceRuntimeInfo
	auth       wsman.WorkspaceAuthentication
}

var decodedPool = sync.Pool{New: func() any { return new(decoded) }}

func newDecoded() *decoded { return decodedPool.Get().(*decoded) }

// free gives d to the next who decodes.
func (d *decoded) free() {
	*d = decoded{}
	decodedPool.Put(d)
}

// quickly decodes a status as encoders write it. It reports false, and leaves
// d as it may be, for whatever is out of the ordinary: messages in several
// parts, fields of another type than theirs, malformed ones. Generated decoding
// then says what is to be made of it.
//
// Only the fields that Change looks at are filled in; the others are checked.
func (d *decoded) quickly(raw []byte) bool {
	r := reader{rest: raw, shape: &statusShape}
	for r.next() {
		switch r.number {
		case fieldMetadata:
			d.status.Metadata = &d.metadata
			r.fail(!d.decodeMetadata(r.value))
		case fieldSpec:
			d.status.Spec = &d.spec
			r.fail(!d.decodeSpec(r.value))
		case fieldPhase:
			d.status.Phase = wsman.WorkspacePhase(r.varint)
		case fieldConditions:
			d.status.Conditions = &d.conditions
			r.fail(!d.decodeConditions(r.value))
		case fieldMessage:
			d.status.Message = inPlace(r.value)
		case fieldRuntime:
			d.status.Runtime = &d.runtime
			r.fail(!d.decodeRuntime(r.value))
		case fieldAuth:
			d.status.Auth = &d.auth
			r.fail(!d.decodeAuth(r.value))
		case fieldVersion:
			d.status.StatusVersion = r.varint
		case fieldInitializerMetrics:
			d.status.InitializerMetrics = new(wsman.InitializerMetrics)
			r.fail(!decodeInitializer(r.value, d.status.InitializerMetrics))
		}
	}
	return !r.bad
}

// inPlace gives a text that is these bytes, without a copy. It lasts as long as
// nobody writes to them.
func inPlace(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (d *decoded) decodeMetadata(raw []byte) bool {
	r := reader{rest: raw, shape: &metadataShape}
	for r.next() {
		switch r.number {
		case 3:
			r.fail(!valid(r.value, &timeShape))
		case fieldMetadataAnnotations:
			r.fail(!valid(r.value, &entryShape))
		case 7:
			d.metadata.Metrics = &d.metrics
			metrics := reader{rest: r.value, shape: &metricsShape}
			for metrics.next() {
				d.metrics.Image = &d.image
				image := reader{rest: metrics.value, shape: &imageShape}
				for image.next() {
					if image.number == 1 {
						d.image.TotalSize = int64(image.varint)
					} else {
						d.image.WorkspaceImageSize = int64(image.varint)
					}
				}
				r.fail(image.bad)
			}
			r.fail(metrics.bad)
		}
	}
	return !r.bad
}

func (d *decoded) decodeSpec(raw []byte) bool {
	r := reader{rest: raw, shape: &specShape}
	for r.next() {
		switch r.number {
		case 4:
			d.spec.Url = inPlace(r.value)
		case 5:
			port := new(wsman.PortSpec)
			d.spec.ExposedPorts = append(d.spec.ExposedPorts, port)
			r.fail(!d.decodePort(r.value, port))
		case 6:
			d.spec.Type = wsman.WorkspaceType(r.varint)
		case 7:
			d.spec.Timeout = inPlace(r.value)
		case 8:
			r.fail(!valid(r.value, &ideImageShape))
		}
	}
	return !r.bad
}

func (d *decoded) decodePort(raw []byte, p *wsman.PortSpec) bool {
	r := reader{rest: raw, shape: &portShape}
	for r.next() {
		switch r.number {
		case 1:
			p.Port = uint32(r.varint)
		case 3:
			p.Visibility = wsman.PortVisibility(r.varint)
		case 4:
			p.Url = inPlace(r.value)
		case 5:
			p.Protocol = wsman.PortProtocol(r.varint)
		}
	}
	return !r.bad
}

func (d *decoded) decodeConditions(raw []byte) bool {
	c := &d.conditions
	r := reader{rest: raw, shape: &conditionsShape}
	for r.next() {
		switch r.number {
		case 1:
			c.Failed = inPlace(r.value)
		case 2:
			c.Timeout = inPlace(r.value)
		case 3:
			c.PullingImages = wsman.WorkspaceConditionBool(r.varint)
		case 5:
			c.Snapshot = inPlace(r.value)
		case 7:
			c.Deployed = wsman.WorkspaceConditionBool(r.varint)
		case 9:
			c.FirstUserActivity = &d.activity
			at := reader{rest: r.value, shape: &timeShape}
			for at.next() {
				if at.number == 1 {
					d.activity.Seconds = int64(at.varint)
				} else {
					d.activity.Nanos = int32(at.varint)
				}
			}
			r.fail(at.bad)
		case 10:
			c.HeadlessTaskFailed = inPlace(r.value)
		case 11:
			c.StoppedByRequest = wsman.WorkspaceConditionBool(r.varint)
		}
	}
	return !r.bad
}

func (d *decoded) decodeRuntime(raw []byte) bool {
	r := reader{rest: raw, shape: &runtimeShape}
	for r.next() {
		switch r.number {
		case 1:
			d.runtime.NodeName = inPlace(r.value)
		case 2:
			d.runtime.PodName = inPlace(r.value)
		case 3:
			d.runtime.NodeIp = inPlace(r.value)
		}
	}
	return !r.bad
}

func (d *decoded) decodeAuth(raw []byte) bool {
	r := reader{rest: raw, shape: &authShape}
	for r.next() {
		if r.number == 2 {
			d.auth.OwnerToken = inPlace(r.value)
		}
	}
	return !r.bad
}

func decodeInitializer(raw []byte, m *wsman.InitializerMetrics) bool {
	r := reader{rest: raw, shape: &initializerShape}
	for r.next() {
		metric := new(wsman.InitializerMetric)
		switch r.number {
		case 1:
			m.Git = metric
		case 2:
			m.FileDownload = metric
		case 3:
			m.Snapshot = metric
		case 4:
			m.Backup = metric
		case 5:
			m.Prebuild = metric
		case 6:
			m.Composite = metric
		}
		of := reader{rest: r.value, shape: &metricShape}
		for of.next() {
			if of.number == 2 {
				metric.Size = of.varint
				continue
			}
			metric.Duration = new(durationpb.Duration)
			took := reader{rest: of.value, shape: &timeShape}
			for took.next() {
				if took.number == 1 {
					metric.Duration.Seconds = int64(took.varint)
				} else {
					metric.Duration.Nanos = int32(took.varint)
				}
			}
			of.fail(took.bad)
		}
		r.fail(of.bad)
	}
	return !r.bad
}

// valid says whether a message that nobody looks into is what it should be.
func valid(raw []byte, s *shape) bool {
	r := reader{rest: raw, shape: s}
	for r.next() {
	}
	return !r.bad
}

// form is what a field looks like on the wire.
type form uint8

const (
	unknown form = iota
	varint
	text    // UTF-8
	texts   // any number of them
	message // at most one: several would be merged
	messages
)

// shape gives the form of each field of a message by its number.
type shape [16]form

var (
	statusShape = shape{
		fieldID: text, fieldMetadata: message, fieldSpec: message, fieldPhase: varint, fieldConditions: message, fieldMessage: text,
		fieldRuntime: message, fieldAuth: message, fieldVersion: varint, fieldInitializerMetrics: message,
	}
	metadataShape    = shape{1: text, 2: text, 3: message, fieldMetadataAnnotations: messages, 5: text, 6: text, 7: message}
	metricsShape     = shape{1: message}
	imageShape       = shape{1: varint, 2: varint}
	entryShape       = shape{fieldEntryKey: text, fieldEntryValue: text}
	specShape        = shape{1: text, 2: varint, 4: text, 5: messages, 6: varint, 7: text, 8: message, 9: text, 10: texts, 11: text}
	ideImageShape    = shape{1: text, 3: text}
	portShape        = shape{1: varint, 3: varint, 4: text, 5: varint}
	conditionsShape  = shape{1: text, 2: text, 3: varint, 5: text, 6: varint, 7: varint, 8: varint, 9: message, 10: text, 11: varint, 13: varint}
	runtimeShape     = shape{1: text, 2: text, 3: text}
	authShape        = shape{1: varint, 2: text}
	initializerShape = shape{1: message, 2: message, 3: message, 4: message, 5: message, 6: message}
	metricShape      = shape{1: message, 2: varint}
	timeShape        = shape{1: varint, 2: varint} // of a Timestamp and of a Duration
)

// reader takes a message apart, field by field.
type reader struct {
	rest  []byte
	shape *shape
	seen  uint32 // a bit for each field
	bad   bool   // out of the ordinary

	number protowire.Number
	value  []byte // of a text or a message
	varint uint64
}

// fail makes the message bad if part of it is.
func (r *reader) fail(bad bool) { r.bad = r.bad || bad }

// next goes to the next field that the shape knows; others are passed over.
func (r *reader) next() bool {
	for len(r.rest) > 0 && !r.bad {
		number, kind, from, length := field(r.rest)
		if length < 0 || kind == protowire.StartGroupType || kind == protowire.EndGroupType {
			r.bad = true
			return false
		}
		value := r.rest[from:length]
		r.rest = r.rest[length:]
		if number >= protowire.Number(len(r.shape)) || r.shape[number] == unknown {
			continue
		}
		of := r.shape[number]
		if kind != protowire.BytesType && of != varint || of == varint && kind != protowire.VarintType {
			r.bad = true
			return false
		}
		if r.seen&(1<<number) != 0 && of != texts && of != messages {
			r.bad = true
			return false
		}
		r.seen |= 1 << number
		r.number, r.value = number, value
		switch of {
		case varint:
			if len(value) == 1 {
				r.varint = uint64(value[0])
			} else {
				r.varint, _ = protowire.ConsumeVarint(value) // field has looked at it
			}
		case text, texts:
			if !utf8.Valid(value) {
				r.bad = true
				return false
			}
		}
		return true
	}
	return false
}
