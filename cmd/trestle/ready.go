package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	readyTimeout = 10 * time.Second // of one request
	readyPause   = time.Second      // between two
	readyBytes   = 64 << 10
)

// ready asks a replica whether it is ready: for images without a shell.
func (p *program) ready() *cobra.Command {
	var patience time.Duration
	c := &cobra.Command{
		Use:   "ready [URL]",
		Short: "Ask a replica, by its http.address, whether it may receive clusters; exit code 1 if not",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p.started = true
			base := "http://localhost:9500"
			if len(args) == 1 {
				base = strings.TrimSuffix(args[0], "/")
			}
			ctx, cancel := context.WithTimeout(c.Context(), max(patience, readyTimeout))
			defer cancel()
			for deadline := time.Now().Add(patience); ; {
				answer, err := askReady(ctx, base+"/readyz")
				if err == nil || !time.Now().Add(readyPause).Before(deadline) {
					fmt.Fprint(p.streams.out, answer)
					return err
				}
				select {
				case <-time.After(readyPause):
				case <-ctx.Done():
					return errors.Join(ctx.Err(), err)
				}
			}
		},
	}
	c.Flags().DurationVar(&patience, "wait", 0, "how long to go on asking until it is ready")
	return c
}

// askReady gives what the page says, and an error unless that is yes.
func askReady(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask whether the replica is ready: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, readyBytes))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return string(text), fmt.Errorf("%s answers %s: the lines above say what is missing", url, response.Status)
	}
	return string(text), nil
}
