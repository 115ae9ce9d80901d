// Package secret holds values that must not be seen: passwords, private keys,
// tokens, and addresses with a password in them.
//
// Whatever prints, logs or encodes a value of this package gets a stand-in;
// the text itself comes out of Reveal alone, so that a reader finds every
// place where it leaves by searching for that one word. This holds for values
// inside other values too, those in unexported fields included, where fmt
// does not call our methods: the text lies behind a pointer, and what is
// printed there is an address.
//
// Values are immutable: they may be copied and used by any number of
// goroutines at once.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

// Redacted is what is seen in the place of a secret text.
const Redacted = "[redacted]"

// String is a text that shows itself to nobody. The zero value is the empty
// text; it is printed as empty, because that a password is missing is no
// secret and worth knowing.
//
// Hand Reveal's result to a database driver, never the String: drivers print
// what they do not know, and would store the stand-in.
//
// Compare with Equal; == compares identity.
type String struct{ text *string }

// New keeps text as a secret.
func New(text string) String {
	if text == "" {
		return String{}
	}
	return String{text: &text}
}

// Reveal returns the text.
func (s String) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero says whether the text is empty.
func (s String) IsZero() bool { return s.text == nil }

// Equal compares two secrets in a time that tells nothing but their lengths.
func (s String) Equal(other String) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

// String returns the stand-in.
func (s String) String() string {
	if s.text == nil {
		return ""
	}
	return Redacted
}

// GoString returns the stand-in, for %#v.
func (s String) GoString() string { return fmt.Sprintf("secret.String(%q)", s.String()) }

// Format prints the stand-in whatever the verb, %x and %d included.
func (s String) Format(f fmt.State, verb rune) { format(f, verb, s.String(), s.GoString()) }

// LogValue is what slog records.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText encodes the stand-in.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON encodes the stand-in.
func (s String) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalYAML encodes the stand-in.
func (s String) MarshalYAML() (any, error) { return s.String(), nil }

// URL is an address whose password is a secret and whose rest is not: it is
// printed with the password masked, so that a log still says which server is
// meant. It may be a URL or a connection string of keywords and values.
//
// Compare with Equal; == compares identity.
type URL struct{ raw *string }

// NewURL keeps an address.
func NewURL(raw string) URL {
	if raw == "" {
		return URL{}
	}
	return URL{raw: &raw}
}

// Reveal returns the address, password and all.
func (u URL) Reveal() string {
	if u.raw == nil {
		return ""
	}
	return *u.raw
}

// IsZero says whether there is no address.
func (u URL) IsZero() bool { return u.raw == nil }

// Equal compares two addresses, passwords included.
func (u URL) Equal(other URL) bool {
	return subtle.ConstantTimeCompare([]byte(u.Reveal()), []byte(other.Reveal())) == 1
}

// String returns the address with its password masked.
func (u URL) String() string { return Mask(u.Reveal()) }

// GoString returns the masked address, for %#v.
func (u URL) GoString() string { return fmt.Sprintf("secret.URL(%q)", u.String()) }

// Format prints the masked address whatever the verb.
func (u URL) Format(f fmt.State, verb rune) { format(f, verb, u.String(), u.GoString()) }

// LogValue is what slog records.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// MarshalText encodes the masked address.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// MarshalJSON encodes the masked address.
func (u URL) MarshalJSON() ([]byte, error) { return json.Marshal(u.String()) }

// MarshalYAML encodes the masked address.
func (u URL) MarshalYAML() (any, error) { return u.String(), nil }

// format prints shown with the width and flags that were asked for; verbs
// that make no sense for a text print it as %v does.
func format(f fmt.State, verb rune, shown, source string) {
	switch {
	case verb == 'v' && f.Flag('#'):
		fmt.Fprint(f, source)
	case verb == 'q', verb == 'x', verb == 'X':
		fmt.Fprintf(f, fmt.FormatString(f, verb), shown)
	default:
		fmt.Fprintf(f, fmt.FormatString(f, 's'), shown)
	}
}
