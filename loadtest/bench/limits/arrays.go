package limits

import "encoding/binary"

// The types of array elements, by their numbers in PostgreSQL.
const (
	oidInt8        = 20
	oidText        = 25
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

// jsonbVersion is the first byte of a jsonb in binary.
const jsonbVersion = 1

// newArray begins an array in PostgreSQL's binary format. The limit must be
// PostgreSQL's and not that of an encoder.
func newArray(oid uint32, length, elementSize int) []byte {
	b := make([]byte, 20, 20+length*(4+elementSize))
	binary.BigEndian.PutUint32(b, 1)
	binary.BigEndian.PutUint32(b[8:], oid)
	binary.BigEndian.PutUint32(b[12:], uint32(length))
	binary.BigEndian.PutUint32(b[16:], 1)
	return b
}

func appendElement(b, element []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(element)))
	return append(b, element...)
}

// appendNull also says in the header that there are nulls.
func appendNull(b []byte) []byte {
	b[7] = 1
	return append(b, 0xff, 0xff, 0xff, 0xff)
}

func appendInt8(b []byte, v int64) []byte { return appendElement(b, int8Bytes(v)) }

func appendJSONB(b, document []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(document)+1))
	b = append(b, jsonbVersion)
	return append(b, document...)
}

func int8Bytes(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
