package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"sync"

	"github.com/trestle-bridge/trestle/loadtest"
	"github.com/trestle-bridge/trestle/loadtest/bench/limits"
	"github.com/trestle-bridge/trestle/loadtest/bench/report"
)

// floodInstances share the messages of a flood.
const floodInstances = 500

// repeats is P4.
func (b *bench) repeats(ctx context.Context) error {
	return b.flood(ctx, "P4", "repeats", loadtest.Repeats)
}

// stale is P5.
func (b *bench) stale(ctx context.Context) error {
	return b.flood(ctx, "P5", "stale messages", loadtest.Stale)
}

// flood sends messages that must change nothing, between two measurements of
// what a stream that is thrown away undecoded can do.
func (b *bench) flood(ctx context.Context, id, what string, shape loadtest.Shape) error {
	messages := quick(b, 1_000_000, 100_000)
	before, err := b.rawRead(ctx, messages, false)
	if err != nil {
		return err
	}
	l, err := b.run(ctx, id, loadtest.Work{Shape: shape, Seed: 14, Instances: floodInstances, Messages: messages})
	if err != nil {
		return err
	}
	after, err := b.rawRead(ctx, messages, false)
	if err != nil {
		return err
	}
	raw := (before.Rate() + after.Rate()) / 2
	perMessage := func(allocations float64) float64 { return allocations / float64(messages) }
	b.add(id, fmt.Sprintf("%d %s, against a stream thrown away undecoded", messages, what), float64(messages)/l.Duration.Seconds(), "messages/s", raw, &report.Target{Of: report.OfRatio, AtLeast: 0.7})
	b.add(id, "statements while they came in (some go on by themselves: looks at the outbox)", l.did.statements, "", 0, &report.Target{Of: report.OfFigure, AtMost: 20})
	// gRPC allocates for each message; the bridge must not.
	b.add(id, "allocations a message beyond those of the raw stream", max(0, perMessage(l.did.allocations)-perMessage(float64(after.Allocations))), "", 0, &report.Target{Of: report.OfFigure, AtMost: 0.05})
	b.add(id, "allocations a message in all", perMessage(l.did.allocations), "", 0, nil)
	b.add(id, "processor time of the service for 1,000 messages", l.took.service.Seconds()*1000/float64(messages), "CPU-s", after.CPU.Seconds()*1000/float64(messages), nil)
	if b.rawStream != 0 {
		return nil
	}
	b.rawStream = raw
	decoded, err := b.rawRead(ctx, messages, true)
	if err != nil {
		return err
	}
	scan, err := limits.Scan(quick(b, 5_000_000, 500_000))
	if err != nil {
		return err
	}
	b.add("L3", "raw stream, thrown away undecoded", raw, "messages/s", 0, nil)
	b.add("L3", "its allocations a message, in the reader", perMessage(float64(after.Allocations)), "", 0, nil)
	b.add("L4", "the same stream, decoded by generated code", decoded.Rate(), "messages/s", raw, nil)
	b.add("L5", "id, version and hash from the raw bytes", float64(scan.Nanoseconds())/1000, "µs", 0, nil)
	return nil
}

// rawRead has another process read a stream, as the service is another process.
func (b *bench) rawRead(ctx context.Context, messages int, decode bool) (reading limits.Reading, err error) {
	what := "raw stream, undecoded"
	if decode {
		what = "raw stream, decoded"
	}
	b.line.begin(what)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reader sync.WaitGroup
	var readErr error
	err = limits.Flood(ctx, messages, floodInstances, func(address string) {
		reader.Go(func() {
			if readErr = b.reader(ctx, address, messages, decode, &reading); readErr != nil {
				cancel() // nobody will come and read
			}
		})
	})
	reader.Wait()
	if readErr != nil {
		return limits.Reading{}, readErr
	}
	return reading, err
}

func (b *bench) reader(ctx context.Context, address string, messages int, decode bool, into *limits.Reading) error {
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, b.cfg.Loadtest, "read", "--address", address,
		"--messages", strconv.Itoa(messages), "--decode="+strconv.FormatBool(decode))
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("read a raw stream: %w: %s", err, complaints.Bytes())
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("read the figures of a raw stream: %w", err)
	}
	return nil
}
