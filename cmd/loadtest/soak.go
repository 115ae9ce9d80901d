package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/trestle-bridge/trestle/loadtest/scenario"
)

func soakCommand(started *bool, s *signals) *cobra.Command {
	r := &running{signals: s, brief: true, changed: func(string) bool { return false }}
	var first int
	c := &cobra.Command{
		Use:   "soak",
		Short: "Play scenarios drawn from a seed, one after the other, until the time is over",
		Long: `Draws scenarios from a seed (shapes of work, and faults with their times and
targets) and plays each against a fleet of its own, until the time is over or one
has not held. That one is written to the folder of results as YAML, with its
recording, to be played again: loadtest run FILE --seed N.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r.changed = func(name string) bool { return c.Flags().Changed(name) }
			switch {
			case r.duration <= 0:
				return errors.New("--duration must be more than 0")
			case r.rate < 10 || r.rate > 200_000:
				return errors.New("--rate must be from 10 to 200,000")
			case first < 1:
				return errors.New("--first must be from 1")
			}
			if err := r.complete(nil); err != nil {
				return err
			}
			*started = true
			s.orderly.Store(true)
			return r.soak(c.Context(), first)
		},
	}
	r.common(c)
	c.Flags().DurationVar(&r.duration, "duration", 10*time.Minute, "until when a scenario is begun")
	c.Flags().Float64Var(&r.rate, "rate", 500, "most updates a second")
	c.Flags().IntVar(&first, "first", 1, "number of the first scenario to play of those that the seed draws")
	return c
}

// soak plays what the seed draws, from a number on.
func (r *running) soak(ctx context.Context, number int) error {
	if err := os.MkdirAll(r.results, 0o755); err != nil {
		return fmt.Errorf("make the folder of results: %w", err)
	}
	logs, err := r.logFolder()
	if err != nil {
		return err
	}
	seed, end := r.seed, time.Now().Add(r.duration)
	played := 0
	for ; time.Now().Before(end) && !r.signals.interrupted(); number++ {
		s := scenario.Random(rand.New(rand.NewPCG(seed, uint64(number))), number, r.rate)
		r.seed = seed + uint64(number)
		held, err := r.one(ctx, s, logs)
		if r.signals.interrupted() {
			break
		}
		if err == nil && !held {
			err = errBroken
		}
		if err != nil {
			path := filepath.Join(r.results, s.Name+".yaml")
			text, yamlErr := s.Marshal()
			if yamlErr == nil {
				yamlErr = os.WriteFile(path, text, 0o644)
			}
			return errors.Join(fmt.Errorf("number %d of seed %d; again: loadtest run %s --seed %d: %w", number, seed, path, r.seed, err), yamlErr)
		}
		played++
	}
	fmt.Fprintf(os.Stderr, "%d scenarios of seed %d held\n", played, seed)
	return nil
}
