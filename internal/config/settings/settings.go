// Package settings reads a table of keys out of a file of YAML or JSON, the
// environment and flags, and prints what is in force. It knows nothing of
// what the keys mean.
//
// A flag wins over the environment, the environment over the file, the file
// over what the fields held before. Nothing is guessed: an unknown key, a
// wrong type or a value out of range is a Problem that names its place, the
// key and what is allowed there, and all problems of all sources come back at
// once. No secret gets into a Problem or into what is printed.
//
// A table belongs to whoever made it; nothing here may be used by several
// goroutines at once on the same table.
package settings

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
)

// Key is one setting: its path in the file, the variable and the flag that
// set it too, and the value that it is bound to.
type Key struct {
	Path  string // names joined by dots; the flag's name, too
	Env   string // empty = no variable
	Usage string
	Value Value // nil = taken from the file with a warning, and ignored

	// NoFlag keeps a secret out of the list of processes.
	NoFlag bool
	// NoFile marks what only the environment and a flag can say. Sets are the
	// keys that it stands for.
	NoFile bool
	Sets   []string
}

// maxFileBytes is far above any sensible file; it keeps a wrong path (a log,
// a device) from filling the memory.
const maxFileBytes = 8 << 20

// Input is where the settings come from. The zero value is nowhere.
type Input struct {
	// Path of the file; empty = none.
	Path string
	// LookupEnv finds a variable; nil = there are none. A variable that is
	// set to nothing counts as absent.
	LookupEnv func(name string) (string, bool)
	// Flags are those that AddFlags made; nil = none.
	Flags *pflag.FlagSet
}

// The weights of the sources: a greater one wins.
const (
	FromDefault = iota
	FromFile
	FromEnvironment
	FromFlag
)

// Source is where a value comes from; the zero value is the default.
type Source struct {
	Weight int
	Name   string // the file, or "environment NAME", or "flag --name"
	Line   int    // in the file, counted from 1; 0 = unknown
}

// String is the source in a few words.
func (s Source) String() string {
	switch {
	case s.Weight == FromDefault:
		return "default"
	case s.Line > 0:
		return fmt.Sprintf("%s:%d", s.Name, s.Line)
	}
	return s.Name
}

// Sources says by key where the values in force come from; what is absent is
// the default. The records of a list have entries of their own, as in
// clusters[0] and clusters[0].name.
type Sources map[string]Source

// Read sets the values of the table and says where they come from. The
// values that are the matter of a problem keep what they held.
func Read(table []Key, in Input) (from Sources, warnings, problems []Problem) {
	from = Sources{}
	if in.Path != "" {
		d := document{file: in.Path, sources: from}
		if data, err := readFile(in.Path); err != nil {
			d.problems = append(d.problems, Problem{Source: in.Path, What: "cannot be read: " + err.Error()})
		} else {
			d.read(data, table)
		}
		warnings, problems = d.warnings, d.problems
	}

	set := func(k Key, s Source, given string) {
		if err := k.Value.set(given); err != nil {
			problems = append(problems, Problem{
				Source: s.Name, Key: k.Path,
				What: fmt.Sprintf("%q %v", k.Value.shown(given), err), Allowed: k.Value.allowed(),
			})
			return
		}
		from[k.Path] = s
		for _, other := range k.Sets {
			from[other] = s
		}
	}
	for _, k := range table {
		if in.LookupEnv == nil || k.Env == "" {
			continue
		}
		if given, ok := in.LookupEnv(k.Env); ok && given != "" {
			set(k, Source{Weight: FromEnvironment, Name: "environment " + k.Env}, given)
		}
	}
	for _, k := range table {
		if in.Flags == nil || !k.hasFlag() {
			continue
		}
		if f := in.Flags.Lookup(k.Path); f != nil && f.Changed {
			set(k, Source{Weight: FromFlag, Name: "flag --" + k.Path}, f.Value.String())
		}
	}
	return from, warnings, problems
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		// The path is named by the caller.
		var pathError *os.PathError
		if errors.As(err, &pathError) {
			return nil, pathError.Err
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("is larger than %s", Bytes(maxFileBytes))
	}
	return data, nil
}

func (k Key) hasFlag() bool {
	switch k.Value.(type) {
	case nil, JSON, Records:
		return false
	}
	return !k.NoFlag
}

// AddFlags adds a flag for every key of the table that may be set by one.
func AddFlags(flags *pflag.FlagSet, table []Key) {
	for _, k := range table {
		if !k.hasFlag() {
			continue
		}
		v := &flagValue{kind: flagKind(k.Value)}
		if list, isList := k.Value.plain().([]string); !isList || len(list) > 0 {
			v.text = fmt.Sprint(k.Value.plain())
		}
		usage := k.Usage
		if k.Env != "" {
			usage += " ($" + k.Env + ")"
		}
		f := flags.VarPF(v, k.Path, "", usage)
		if _, isTruth := k.Value.(Truth); isTruth {
			f.NoOptDefVal = "true"
		}
	}
}

// flagValue keeps what was given; Read checks it, together with all else.
type flagValue struct{ text, kind string }

func (v *flagValue) Set(text string) error { v.text = text; return nil }
func (v *flagValue) String() string        { return v.text }
func (v *flagValue) Type() string          { return v.kind }

func flagKind(v Value) string {
	switch v.(type) {
	case Truth:
		return "bool"
	case Whole:
		return "int"
	case Fraction:
		return "number"
	case Seconds:
		return "seconds"
	case Size:
		return "bytes"
	case HostPort:
		return "host:port"
	}
	return "string"
}
