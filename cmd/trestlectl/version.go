package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Set by the linker (-X main.version=...); what it leaves empty is taken from
// what the Go toolchain recorded.
var version, revision string

func (p *program) version() *cobra.Command {
	return p.reading(&cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary; trestlectl replicas shows those of the replicas",
	}, nil, func(*cobra.Command, []string) error {
		v, r := version, revision
		if info, ok := debug.ReadBuildInfo(); ok {
			v = cmp.Or(v, info.Main.Version)
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					r = cmp.Or(r, s.Value)
				}
			}
		}
		v, r = cmp.Or(strings.Trim(v, "()"), "devel"), cmp.Or(r, "unknown")
		if p.forPeople() {
			_, err := fmt.Fprintf(p.streams.out, "trestlectl %s\nrevision %s\n%s %s/%s\n", v, r, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		}
		raw, err := json.Marshal(struct {
			Version  string `json:"version"`
			Revision string `json:"revision"`
			Go       string `json:"go"`
		}{v, r, runtime.Version()})
		if err != nil {
			return err
		}
		return p.printJSON(raw)
	})
}
