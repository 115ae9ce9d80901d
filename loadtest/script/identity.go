package script

import (
	"encoding/hex"
	"math/rand/v2"
	"time"
)

// Identity is whom a script is played for. All texts have a fixed width, which
// lets a frame be encoded once and bound to any identity by overwriting.
type Identity struct {
	// Instance and Prebuild are UUIDs; Prebuild is used by prebuilds only.
	Instance, Prebuild [16]byte
	// Workspace is like "amber-falcon-0123456789a"; Owner is a UUID.
	Workspace, Owner string
	// Base is added to the versions of a script. Often above 2^53, as resource
	// versions can be.
	Base uint64
}

// placeholder stands in the statuses of scripts until they are bound.
var placeholder = Identity{
	Instance:  [16]byte{0xb0, 0x0b, 0xad, 0x0c, 0x5e, 0xed, 0x4a, 0x11, 0x8a, 0x11, 0xb0, 0x0b, 0xad, 0x0c, 0x5e, 0xed},
	Workspace: "aaaaa-zzzzzz-aaaaazzzzza",
	Owner:     "0ddba11e-5eed-4a11-8a11-0ddba110ddba",
	Base:      0,
}

var (
	colours = [...]string{"amber", "black", "brown", "coral", "green", "ivory", "lilac", "olive", "white", "azure"}
	animals = [...]string{"falcon", "badger", "magpie", "ocelot", "salmon", "turtle", "weasel", "jaguar", "marten", "osprey"}
)

// NewIdentity gives the identity of one number under a seed: the same for the
// same two, and different for different numbers but for chance.
func NewIdentity(seed uint64, number int) Identity {
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	var id Identity
	id.Instance = newUUID(rng)
	id.Prebuild = newUUID(rng)
	id.Owner = FormatUUID(newUUID(rng))
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	ws := make([]byte, 0, len(placeholder.Workspace))
	ws = append(ws, colours[rng.IntN(len(colours))]...)
	ws = append(ws, '-')
	ws = append(ws, animals[rng.IntN(len(animals))]...)
	ws = append(ws, '-')
	for range 11 {
		ws = append(ws, digits[rng.IntN(len(digits))])
	}
	id.Workspace = string(ws)
	id.Base = 1 + rng.Uint64N(1<<34)
	if rng.IntN(4) == 0 {
		id.Base += 1 << 55
	}
	return id
}

func newUUID(rng *rand.Rand) [16]byte {
	var u [16]byte
	for i, a, b := 0, rng.Uint64(), rng.Uint64(); i < 8; i++ {
		u[i], u[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// FormatUUID writes a UUID as text.
func FormatUUID(u [16]byte) string {
	var b [36]byte
	putUUID(b[:], u)
	return string(b[:])
}

func putUUID(b []byte, u [16]byte) {
	hex.Encode(b[0:8], u[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], u[10:16])
}

// ParseUUID reads a UUID of 36 characters in lower or upper case.
func ParseUUID(s string) (u [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, false
	}
	at := 0
	for _, part := range [...]string{s[0:8], s[9:13], s[14:18], s[19:23], s[24:36]} {
		n, err := hex.Decode(u[at:], []byte(part))
		if err != nil {
			return u, false
		}
		at += n
	}
	return u, true
}

// epoch is when the timestamps inside scripted messages begin.
var epoch = time.Date(2026, 3, 1, 9, 0, 0, 123_000_000, time.UTC)
