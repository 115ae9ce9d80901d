package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trestle-bridge/trestle/internal/secret"
)

// Bytes is a size in bytes. It is written as a whole number, or with one of
// the units KiB, MiB and GiB.
type Bytes int64

// The units of sizes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String writes the size in the largest unit that leaves no fraction.
func (b Bytes) String() string {
	switch {
	case b == 0:
	case b%GiB == 0:
		return strconv.FormatInt(int64(b/GiB), 10) + "GiB"
	case b%MiB == 0:
		return strconv.FormatInt(int64(b/MiB), 10) + "MiB"
	case b%KiB == 0:
		return strconv.FormatInt(int64(b/KiB), 10) + "KiB"
	}
	return strconv.FormatInt(int64(b), 10)
}

// A Value is one setting, bound to the field that it sets. The kinds of this
// package are all there are.
type Value interface {
	// set takes a text from any source; an error leaves the field alone.
	// What the error says follows the quoted text: "is not a whole number".
	set(text string) error
	// allowed says what set takes, as the end of "allowed is".
	allowed() string
	// types are the YAML types in which the value may be written.
	types() []string
	// plain is the value as set would take it, secrets masked.
	plain() any
	// shown is text as it may be seen in an error.
	shown(text string) string
}

const (
	yamlText   = "!!str"
	yamlWhole  = "!!int"
	yamlNumber = "!!float"
	yamlTruth  = "!!bool"
)

// ErrNotAllowed is what a check returns that has no more to say than what is
// allowed instead.
var ErrNotAllowed = errors.New("is not allowed")

// open is the part of the values that hide nothing.
type open struct{}

func (open) shown(text string) string { return text }

// Text is any string that passes its check.
type Text struct {
	open
	To    *string
	What  string             // what is allowed, in words
	Check func(string) error // nil = anything; the error follows the quoted text
}

func (v Text) set(s string) error {
	if s == "" && *v.To == "" {
		return nil // what is empty may be written as empty, whatever the check
	}
	if v.Check != nil {
		if err := v.Check(s); err != nil {
			return err
		}
	}
	*v.To = s
	return nil
}

func (v Text) allowed() string { return v.What }
func (v Text) types() []string { return []string{yamlText} }
func (v Text) plain() any      { return *v.To }

// Choice is one of a few words.
type Choice struct {
	open
	To   *string
	From []string
}

func (v Choice) set(s string) error {
	if !slices.Contains(v.From, s) {
		return ErrNotAllowed
	}
	*v.To = s
	return nil
}

func (v Choice) allowed() string { return "one of " + strings.Join(v.From, ", ") }
func (v Choice) types() []string { return []string{yamlText} }
func (v Choice) plain() any      { return *v.To }

// Level is a level of the log.
type Level struct {
	open
	To *slog.Level
}

var levels = [...]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}

func (v Level) set(s string) error {
	for _, l := range levels {
		if strings.EqualFold(s, l.String()) {
			*v.To = l
			return nil
		}
	}
	return ErrNotAllowed
}

func (v Level) allowed() string { return "one of debug, info, warn, error" }
func (v Level) types() []string { return []string{yamlText} }
func (v Level) plain() any      { return strings.ToLower(v.To.String()) }

// Truth is true or false.
type Truth struct {
	open
	To *bool
}

func (v Truth) set(s string) error {
	switch s {
	case "true":
		*v.To = true
	case "false":
		*v.To = false
	default:
		return errors.New("is neither true nor false")
	}
	return nil
}

func (v Truth) allowed() string { return "true or false" }
func (v Truth) types() []string { return []string{yamlTruth} }
func (v Truth) plain() any      { return *v.To }

// Whole is a whole number.
type Whole struct {
	open
	To       *int
	Min, Max int
}

func (v Whole) set(s string) error {
	n, err := strconv.Atoi(s)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return errors.New("is out of range")
	case err != nil:
		return errors.New("is not a whole number")
	case n < v.Min || n > v.Max:
		return errors.New("is out of range")
	}
	*v.To = n
	return nil
}

func (v Whole) allowed() string { return fmt.Sprintf("a whole number from %d to %d", v.Min, v.Max) }
func (v Whole) types() []string { return []string{yamlWhole} }
func (v Whole) plain() any      { return *v.To }

// Fraction is a number that need not be whole.
type Fraction struct {
	open
	To       *float64
	Min, Max float64
}

func (v Fraction) set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) {
		return errors.New("is not a number")
	}
	if f < v.Min || f > v.Max {
		return errors.New("is out of range")
	}
	*v.To = f
	return nil
}

func (v Fraction) allowed() string { return fmt.Sprintf("a number from %v to %v", v.Min, v.Max) }
func (v Fraction) types() []string { return []string{yamlWhole, yamlNumber} }
func (v Fraction) plain() any      { return *v.To }

// Seconds is a time that is written as a number of seconds; fractions of a
// second are taken unless only whole ones make sense.
type Seconds struct {
	open
	To       *time.Duration
	Min, Max float64
	Whole    bool
}

func (v Seconds) set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(f):
		return errors.New("is not a number of seconds")
	case f < v.Min || f > v.Max:
		return errors.New("is out of range")
	case v.Whole && f != math.Trunc(f):
		return errors.New("is not a whole number of seconds")
	}
	*v.To = time.Duration(math.Round(f * float64(time.Second)))
	return nil
}

func (v Seconds) allowed() string {
	number := "a number"
	if v.Whole {
		number = "a whole number"
	}
	return fmt.Sprintf("%s of seconds from %v to %v", number, v.Min, v.Max)
}

func (v Seconds) types() []string { return []string{yamlWhole, yamlNumber} }

func (v Seconds) plain() any {
	if *v.To%time.Second == 0 {
		return int(*v.To / time.Second)
	}
	return v.To.Seconds()
}

// Size is a number of bytes.
type Size struct {
	open
	To       *Bytes
	Min, Max Bytes
}

func (v Size) set(s string) error {
	digits, unit := s, Bytes(1)
	for name, factor := range map[string]Bytes{"KiB": KiB, "MiB": MiB, "GiB": GiB} {
		if number, has := strings.CutSuffix(s, name); has {
			digits, unit = strings.TrimSpace(number), factor
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return errors.New("is not a size")
	}
	// The bound is divided, not the number multiplied: that could overflow.
	if err != nil || n < 0 || Bytes(n) > v.Max/unit || Bytes(n)*unit < v.Min {
		return errors.New("is out of range")
	}
	*v.To = Bytes(n) * unit
	return nil
}

func (v Size) allowed() string {
	return fmt.Sprintf("a size from %s to %s, in bytes or with KiB, MiB or GiB", v.Min, v.Max)
}

func (v Size) types() []string { return []string{yamlText, yamlWhole} }
func (v Size) plain() any      { return v.To.String() }

// Hidden is a password.
type Hidden struct{ To *secret.String }

func (v Hidden) set(s string) error { *v.To = secret.New(s); return nil }
func (Hidden) allowed() string      { return "a text" }
func (Hidden) types() []string      { return []string{yamlText} }
func (v Hidden) plain() any         { return v.To.String() }
func (Hidden) shown(s string) string {
	return secret.New(s).String()
}

// Masked is an address that may hold a password.
type Masked struct {
	To    *secret.URL
	What  string
	Check func(string) error
}

func (v Masked) set(s string) error {
	if s == "" && v.To.IsZero() {
		return nil
	}
	if err := v.Check(s); err != nil {
		return err
	}
	*v.To = secret.NewURL(s)
	return nil
}

func (v Masked) allowed() string       { return v.What }
func (v Masked) types() []string       { return []string{yamlText} }
func (v Masked) plain() any            { return v.To.String() }
func (v Masked) shown(s string) string { return secret.Mask(s) }

// List is several texts: a sequence in the file, separated by commas
// elsewhere.
type List struct {
	open
	To    *[]string
	What  string
	Check func(string) error
}

func (v List) set(s string) error { return v.setAll(strings.Split(s, ",")) }

func (v List) setAll(items []string) error {
	var clean []string // none at all is the same as an empty list
	for _, item := range items {
		item = strings.TrimSpace(item)
		if err := v.Check(item); err != nil {
			return err
		}
		if slices.Contains(clean, item) {
			return errors.New("names the same twice")
		}
		clean = append(clean, item)
	}
	*v.To = clean
	return nil
}

func (v List) allowed() string { return v.What }
func (v List) types() []string { return []string{yamlText} }
func (v List) plain() any      { return *v.To }

// HostPort is an address that sets two fields at once.
type HostPort struct {
	open
	Host  *string
	Port  *int
	What  string
	Check func(string) error
}

func (v HostPort) set(s string) error {
	if err := v.Check(s); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("is not host:port")
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return errors.New("has a port that is none")
	}
	*v.Host, *v.Port = host, number
	return nil
}

func (v HostPort) allowed() string { return v.What }
func (v HostPort) types() []string { return []string{yamlText} }
func (v HostPort) plain() any      { return net.JoinHostPort(*v.Host, strconv.Itoa(*v.Port)) }

// JSON is whatever JSON can say, kept as JSON. It stands in the file alone.
type JSON struct {
	fileOnly
	To *json.RawMessage
}

func (v JSON) allowed() string { return "any JSON" }
func (v JSON) plain() any {
	// Read as YAML, which keeps whole numbers whole.
	var free any
	if len(*v.To) == 0 || yaml.Unmarshal(*v.To, &free) != nil {
		return nil
	}
	return free
}

// Records is a list of mappings, each with keys of its own. It stands in the
// file alone.
type Records struct {
	fileOnly
	// Append adds a record with its defaults, and returns the keys bound to
	// it until the next call.
	Append func() []Key
	// Rows are the keys of all records.
	Rows func() [][]Key
}

func (v Records) allowed() string { return "a list of mappings" }
func (v Records) plain() any      { return v.Rows() }

// fileOnly is the part of the values that are no scalars.
type fileOnly struct{ open }

func (fileOnly) set(string) error { return errors.New("can stand in the file alone") }
func (fileOnly) types() []string  { return nil }
