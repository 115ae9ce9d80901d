package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/internal/access"
)

// tokenCommand makes tokens. It asks no replica.
func (p *program) tokenCommand() *cobra.Command {
	role := ""
	c := p.reading(&cobra.Command{
		Use:   "token",
		Short: "Make a token for somebody, and its line for the replicas' file of tokens",
		Long: `Make a token for somebody, and its line for the replicas' file of tokens
(clusterService.tokenFile).

The token is shown this once: the line has only its hash. Replicas take it
within seconds after the line was added, and for as long as it stands there.`,
	}, []argument{{"NAME", nil}}, func(_ *cobra.Command, args []string) error {
		parsed, err := access.ParseRole(role)
		if err != nil {
			return usage("--role %q %v", role, err)
		}
		text, token, err := access.NewToken(args[0], parsed)
		if err != nil {
			return usage("%v", err)
		}
		if p.forPeople() {
			_, err := fmt.Fprintf(p.streams.out, "The token, for %s alone (trestlectl --token-file):\n\n  %s\n\nThe line for the file of tokens:\n\n  %s\n", args[0], text.Reveal(), token.Line())
			return err
		}
		raw, err := json.Marshal(struct {
			Token string `json:"token"`
			Line  string `json:"line"`
		}{text.Reveal(), token.Line()})
		if err != nil {
			return err
		}
		return p.printJSON(raw)
	})
	c.Flags().StringVar(&role, "role", "viewer", "viewer, who may look, or operator, who may change everything")
	complete(c, "role", "viewer", "operator")
	return c
}
