package status

import (
	"encoding/hex"
	"errors"
	"log/slog"
)

// InstanceID is the UUID of an instance. It is comparable and cheap to hash.
type InstanceID [16]byte

// ErrNotUUID is the error of an instance id that is no UUID.
var ErrNotUUID = errors.New("not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")

// ParseInstanceID reads the form with four hyphens, in either case. It does
// not allocate.
func ParseInstanceID[T string | []byte](s T) (InstanceID, error) {
	var id InstanceID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return InstanceID{}, ErrNotUUID
	}
	at := 0
	for i := range id {
		if at == 8 || at == 13 || at == 18 || at == 23 {
			at++
		}
		high, low := nibble[s[at]], nibble[s[at+1]]
		if high|low > 0xf {
			return InstanceID{}, ErrNotUUID
		}
		id[i] = high<<4 | low
		at += 2
	}
	return id, nil
}

// String gives the lower-case form with four hyphens.
func (id InstanceID) String() string {
	var text [36]byte
	hex.Encode(text[0:8], id[0:4])
	hex.Encode(text[9:13], id[4:6])
	hex.Encode(text[14:18], id[6:8])
	hex.Encode(text[19:23], id[8:10])
	hex.Encode(text[24:36], id[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// LogValue is String: a log in JSON would show the bytes as numbers.
func (id InstanceID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// nibble maps an ASCII hexadecimal digit to its value and all else to 0xff.
var nibble = func() (table [256]byte) {
	for i := range table {
		table[i] = 0xff
	}
	for i := range byte(10) {
		table['0'+i] = i
	}
	for i := range byte(6) {
		table['a'+i], table['A'+i] = 10+i, 10+i
	}
	return table
}()
