package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/loadtest/script"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

// Reading is what a reader has read of a stream.
type Reading struct {
	Messages int `json:"messages"`
	// Took is from the first message to the last.
	Took time.Duration `json:"took_ns"`
	// CPU is the reader's, user and system, and Allocations its allocations, in
	// that time.
	CPU         time.Duration `json:"cpu_ns"`
	Allocations uint64        `json:"allocations"`
}

// Rate is in messages per second.
func (r Reading) Rate() float64 { return float64(r.Messages) / r.Took.Seconds() }

// discard hands out messages without looking at them.
type discard struct{ encoding.CodecV2 }

func (discard) Unmarshal(mem.BufferSlice, any) error { return nil }

// Read subscribes to a cluster and reads a number of messages, with the
// bridge's settings of gRPC: thrown away undecoded, or decoded by generated
// code. Run it in a process of its own: its figures are the process's.
func Read(ctx context.Context, address string, messages int, decode bool) (Reading, error) {
	const window = 512 << 10
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithReadBufferSize(64 << 10),
	}
	if !decode {
		options = append(options, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(discard{encoding.GetCodecV2(proto.Name)})))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return Reading{}, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := wsman.NewWorkspaceManagerClient(conn).Subscribe(ctx, &wsman.SubscribeRequest{})
	if err != nil {
		return Reading{}, fmt.Errorf("subscribe to %s: %w", address, err)
	}
	var first time.Time
	var cpu time.Duration
	var before, after runtime.MemStats
	message := new(wsman.SubscribeResponse)
	for n := range messages {
		// RecvMsg resets the message and decodes into it.
		if err := stream.RecvMsg(message); errors.Is(err, io.EOF) {
			return Reading{}, fmt.Errorf("the stream ended after %d messages", n)
		} else if err != nil {
			return Reading{}, fmt.Errorf("read the stream of %s: %w", address, err)
		}
		if n == 0 {
			runtime.ReadMemStats(&before)
			first, cpu = time.Now(), OwnCPU()
		}
	}
	took := time.Since(first)
	cpu = OwnCPU() - cpu
	runtime.ReadMemStats(&after)
	return Reading{Messages: messages, Took: took, CPU: cpu, Allocations: after.Mallocs - before.Mallocs}, nil
}

// Flood serves messages that differ in version alone, as many as are asked for,
// to the first who subscribes. listening is called with the address.
func Flood(ctx context.Context, messages, instances int, listening func(address string)) error {
	cluster, err := sim.New(sim.Config{Name: "raw", NeverDrop: true})
	if err != nil {
		return err
	}
	defer cluster.Close()
	stems, ids, err := floodStems(instances)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return cluster.Run(ctx) })
	g.Go(func() error {
		defer cancel()
		listening(cluster.Addr())
		if err := cluster.AwaitSubscribers(ctx, 1); err != nil {
			return err
		}
		batch := make([]sim.Update, 0, 64)
		for i := range messages {
			n := i % instances
			batch = append(batch, sim.Update{ID: ids[n], Message: stems[n].At(uint64(1<<34 + i)), Effect: sim.Live})
			if len(batch) == cap(batch) || i == messages-1 {
				if err := cluster.Publish(ctx, batch...); err != nil {
					return err
				}
				batch = batch[:0]
			}
		}
		// The reader leaves when it has read all.
		return cluster.Await(ctx, func(s sim.Stats) bool { return s.Subscribers == 0 })
	})
	return g.Wait()
}

func floodStems(instances int) ([]*sim.Stem, [][16]byte, error) {
	library, err := script.NewLibrary(1)
	if err != nil {
		return nil, nil, fmt.Errorf("write scripts: %w", err)
	}
	var stems []*sim.Stem
	var ids [][16]byte
	for n := range instances {
		id := script.NewIdentity(1, n)
		stems = append(stems, sim.NewStem(library.Flood.Steps[script.FloodStep].Frame.Status(&id)))
		ids = append(ids, id.Instance)
	}
	return stems, ids, nil
}

// Scan gives the time that it takes to find id, version and hash in a message.
func Scan(messages int) (time.Duration, error) {
	library, err := script.NewLibrary(1)
	if err != nil {
		return 0, fmt.Errorf("write scripts: %w", err)
	}
	var raw [][]byte
	for n := range 512 {
		id := script.NewIdentity(1, n)
		s := library.Plain[n%len(library.Plain)]
		step := &s.Steps[n%len(s.Steps)]
		raw = append(raw, step.Response(&id))
	}
	start := time.Now()
	for i := range messages {
		envelope, err := status.ScanEnvelope(raw[i%len(raw)])
		if err != nil {
			return 0, fmt.Errorf("scan a scripted message: %w", err)
		}
		if _, err := status.Scan(envelope.Status); err != nil {
			return 0, fmt.Errorf("scan a scripted status: %w", err)
		}
	}
	return time.Since(start) / time.Duration(messages), nil
}
