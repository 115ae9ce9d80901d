package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// Set by the linker (-X main.version=...); what it leaves empty is taken from
// what the Go toolchain recorded.
var version, revision string

// build says which version this is, and of which revision of the source
// ("unknown" where nothing was recorded).
func build() (v, r string) {
	v, r = version, revision
	info, ok := debug.ReadBuildInfo()
	if ok && v == "" {
		v = info.Main.Version
	}
	if ok && r == "" {
		modified := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				r = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = "-modified"
			}
		}
		if r != "" {
			r += modified
		}
	}
	if r == "" {
		r = "unknown"
	}
	if v == "" || v == "(devel)" {
		v = "devel"
		// Two builds without a version are told apart by their source.
		if r != "unknown" {
			v += "-" + r[:min(12, len(r))]
		}
	}
	return v, r
}

func printVersion(w io.Writer) error {
	v, r := build()
	_, err := fmt.Fprintf(w, "trestle %s\nrevision %s\n%s %s/%s\n", v, r, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
