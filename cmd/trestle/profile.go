package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// profiles are files for profiles of one run: for benchmarks, which begin and
// end with the process. What runs for long is better asked while it runs.
type profiles struct{ cpu, heap string }

func (p *profiles) addFlags(c *cobra.Command) {
	for _, f := range []struct {
		to          *string
		name, usage string
	}{
		{&p.cpu, "cpuprofile", "write a CPU profile of the whole run to this file"},
		{&p.heap, "memprofile", "write a heap profile to this file at the end"},
	} {
		c.Flags().StringVar(f.to, f.name, "", f.usage)
		// The flag exists: it was made in the line before.
		_ = c.Flags().MarkHidden(f.name)
	}
}

// around runs f and writes the profiles that are wanted.
func (p *profiles) around(f func() error) error {
	stop := func() error { return nil }
	if p.cpu != "" {
		file, err := os.Create(p.cpu)
		if err != nil {
			return fmt.Errorf("profile the CPU: %w", err)
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return errors.Join(fmt.Errorf("profile the CPU: %w", err), file.Close())
		}
		stop = func() error {
			pprof.StopCPUProfile()
			return file.Close()
		}
	}
	err := errors.Join(f(), stop())
	if p.heap != "" {
		err = errors.Join(err, writeHeap(p.heap))
	}
	return err
}

// writeHeap writes what was in use at the last collection: in the midst of the
// run, as a collection now would find nothing any more.
func writeHeap(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("profile the heap: %w", err)
	}
	return errors.Join(pprof.Lookup("heap").WriteTo(file, 0), file.Close())
}
