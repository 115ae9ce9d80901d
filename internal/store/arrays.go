package store

import (
	"encoding/binary"
	"time"

	"github.com/trestle-bridge/trestle/internal/status"
)

// The types of array elements that are sent, by their numbers in PostgreSQL.
const (
	oidBool        = 16
	oidInt8        = 20
	oidInt4        = 23
	oidText        = 25
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

// postgresEpoch is the zero of PostgreSQL's times, 2000-01-01 UTC, in
// microseconds since 1970.
const postgresEpoch = 946684800 * 1_000_000

// array is an array parameter in the making, in PostgreSQL's binary format. A
// batch has some twenty of them with hundreds of elements, and the general
// encoder of the driver costs more than the statement.
type array struct {
	buf []byte
	n   uint32
}

// The header: dimensions, has nulls, element type, length, lower bound.
const arrayHeader = 20

func newArray(oid uint32, length, elementSize int) array {
	buf := make([]byte, arrayHeader, arrayHeader+length*(4+elementSize))
	binary.BigEndian.PutUint32(buf, 1)
	binary.BigEndian.PutUint32(buf[8:], oid)
	binary.BigEndian.PutUint32(buf[16:], 1)
	return array{buf: buf}
}

// param completes the array. An empty one has no dimension.
func (a *array) param() []byte {
	if a.n == 0 {
		binary.BigEndian.PutUint32(a.buf, 0)
		return a.buf[:12]
	}
	binary.BigEndian.PutUint32(a.buf[12:], a.n)
	return a.buf
}

// reset empties the array, to be filled again.
func (a *array) reset() {
	a.buf, a.n = a.buf[:arrayHeader], 0
	binary.BigEndian.PutUint32(a.buf, 1)
	binary.BigEndian.PutUint32(a.buf[4:], 0) // no nulls
}

func (a *array) element(size int) {
	a.n++
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(size))
}

func (a *array) null() {
	a.n++
	a.buf[7] = 1
	a.buf = append(a.buf, 0xff, 0xff, 0xff, 0xff)
}

func (a *array) int4(v int32) {
	a.element(4)
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(v))
}

func (a *array) int8(v int64) {
	a.element(8)
	a.buf = binary.BigEndian.AppendUint64(a.buf, uint64(v))
}

func (a *array) bool(v bool) {
	a.element(1)
	if v {
		a.buf = append(a.buf, 1)
	} else {
		a.buf = append(a.buf, 0)
	}
}

func (a *array) uuid(v status.InstanceID) {
	a.element(len(v))
	a.buf = append(a.buf, v[:]...)
}

func (a *array) text(v string) {
	a.element(len(v))
	a.buf = append(a.buf, v...)
}

func (a *array) bytes(v []byte) {
	a.element(len(v))
	a.buf = append(a.buf, v...)
}

// textOrNull adds a null for the empty text.
func (a *array) textOrNull(v string) {
	if v == "" {
		a.null()
		return
	}
	a.text(v)
}

// jsonb adds an encoded document, or a null if there is none.
func (a *array) jsonb(v []byte) {
	if v == nil {
		a.null()
		return
	}
	a.element(1 + len(v))
	a.buf = append(a.buf, 1) // the version of the binary format
	a.buf = append(a.buf, v...)
}

// begin begins an element whose content is appended to buf next, and ended by
// end.
func (a *array) begin() (begun int) {
	a.element(0)
	return len(a.buf)
}

// beginJSONB is begin for a document.
func (a *array) beginJSONB() (begun int) {
	begun = a.begin()
	a.buf = append(a.buf, 1)
	return begun
}

func (a *array) end(begun int) {
	binary.BigEndian.PutUint32(a.buf[begun-4:], uint32(len(a.buf)-begun))
}

// time adds a time in microseconds, or a null for the zero time.
func (a *array) time(v time.Time) {
	if v.IsZero() {
		a.null()
		return
	}
	a.int8(v.UnixMicro() - postgresEpoch)
}

// fields reads the columns of one row, in PostgreSQL's binary format, in the
// order in which they are asked for.
type fields [][]byte

func (f *fields) next() []byte {
	value := (*f)[0]
	*f = (*f)[1:]
	return value
}

func (f *fields) int4() int32 {
	if value := f.next(); len(value) == 4 {
		return int32(binary.BigEndian.Uint32(value))
	}
	return 0
}

func (f *fields) int8() int64 {
	if value := f.next(); len(value) == 8 {
		return int64(binary.BigEndian.Uint64(value))
	}
	return 0
}

func (f *fields) bool() bool {
	value := f.next()
	return len(value) == 1 && value[0] == 1
}

func (f *fields) text() string { return string(f.next()) }

func (f *fields) time() time.Time {
	value := f.next()
	if len(value) != 8 {
		return time.Time{}
	}
	return time.UnixMicro(int64(binary.BigEndian.Uint64(value)) + postgresEpoch).UTC()
}

func (f *fields) uuid() (id status.InstanceID) {
	copy(id[:], f.next())
	return id
}
