package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// cliDocs is written anew with -update; make generate does.
const cliDocs = "../../docs/cli.md"

func update() *bool { return flag.Bool("update", false, "write docs/cli.md anew") }

var updating = update()

// docs/cli.md says what the commands say of themselves.
func TestDocs(t *testing.T) {
	p := &program{lookupEnv: os.LookupEnv}
	root := p.root()
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	var out bytes.Buffer
	out.WriteString("# trestlectl\n\nGenerated from the commands by `make generate`. How to use them: [operating.md](operating.md).\n\n")
	var write func(*cobra.Command)
	write = func(c *cobra.Command) {
		if f := c.Flags().Lookup("author"); f != nil {
			f.DefValue = "you@this-machine"
		}
		var page bytes.Buffer
		link := func(file string) string {
			return "#" + strings.ReplaceAll(strings.TrimSuffix(file, ".md"), "_", "-")
		}
		if err := doc.GenMarkdownCustom(c, &page, link); err != nil {
			t.Fatal(err)
		}
		out.Write(page.Bytes())
		for _, below := range c.Commands() {
			if below.IsAvailableCommand() {
				write(below)
			}
		}
	}
	write(root)
	if *updating {
		if err := os.WriteFile(cliDocs, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	stored, err := os.ReadFile(cliDocs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stored, out.Bytes()) {
		t.Error("docs/cli.md is not what the commands say of themselves: run make generate and commit")
	}
}
