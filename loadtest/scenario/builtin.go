package scenario

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
)

//go:embed builtin/*.yaml
var files embed.FS

// Source is the YAML of a built-in scenario.
func Source(name string) ([]byte, error) {
	text, err := files.ReadFile("builtin/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("there is no scenario %q; there are %s", name, strings.Join(Names(), ", "))
	}
	return text, nil
}

// Builtin is the built-in scenario of a name.
func Builtin(name string) (*Scenario, error) {
	text, err := Source(name)
	if err != nil {
		return nil, err
	}
	return Parse("built-in "+name, text)
}

// Names are those of the built-in scenarios, sorted.
func Names() []string {
	entries, err := files.ReadDir("builtin")
	if err != nil {
		panic(err) // the folder is embedded
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(path.Base(e.Name()), ".yaml")
	}
	slices.Sort(names)
	return names
}
