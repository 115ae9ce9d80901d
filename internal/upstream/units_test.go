package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/status"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestRetry(t *testing.T) {
	timing := Timing{}.withDefaults()
	near := func(got, want time.Duration) bool { return got >= want*3/4 && got <= want*5/4 }
	now := time.Now()
	r := retry{timing: timing}

	// A stream that was one comes back at once; one that ends again and again
	// does not come back as fast as it can.
	good := ending{spoke: true, why: reasonDropped}
	if d := r.after(good, now); d != 0 {
		t.Errorf("the first drop waits %v", d)
	}
	if d := r.after(good, now.Add(10*time.Millisecond)); !near(d, timing.MinBackoff) {
		t.Errorf("the second within a second waits %v", d)
	}
	if d := r.after(good, now.Add(2*time.Second)); d != 0 {
		t.Errorf("one later waits %v", d)
	}
	for _, end := range []ending{{why: reasonFull}, {why: reasonSilent}, {lasted: time.Hour, why: reasonUnavailable}} {
		now = now.Add(time.Minute)
		if d := r.after(end, now); d != 0 {
			t.Errorf("%s waits %v", end.why, d)
		}
	}

	for why, limit := range map[reason]time.Duration{
		reasonUnavailable: maxConnectBackoff, reasonOther: timing.MaxBackoff, reasonTLS: timing.MaxBackoff,
		reasonTooLarge: timing.MaxBackoff, reasonClosed: timing.MaxBackoff,
	} {
		r := retry{timing: timing}
		for i := range 100 {
			want := min(timing.MinBackoff<<min(i, 20), limit)
			if d := r.after(ending{why: why, spoke: why == reasonTooLarge}, now); !near(d, want) {
				t.Fatalf("%s: failure %d waits %v, want about %v", why, i, d, want)
			}
		}
	}
}

func TestSilence(t *testing.T) {
	a, b := status.InstanceID{1}, status.InstanceID{2}
	type snap struct {
		before, after uint64 // messages heard when it began and ended
		quiet         bool
		versions      map[status.InstanceID]uint64
		want          verdict
	}
	for name, snaps := range map[string][]snap{
		"nothing happens": {
			{0, 0, true, map[status.InstanceID]uint64{a: 1}, alive},
			{0, 0, true, map[status.InstanceID]uint64{a: 1}, alive},
			{0, 0, true, map[status.InstanceID]uint64{a: 1}, alive},
		},
		"what goes proves nothing": {
			{0, 0, true, map[status.InstanceID]uint64{a: 1, b: 1}, alive},
			{0, 0, true, map[status.InstanceID]uint64{a: 1}, alive},
			{0, 0, true, map[status.InstanceID]uint64{}, alive},
		},
		"unversioned proves nothing": {
			{0, 0, true, map[status.InstanceID]uint64{a: 0}, alive},
			{0, 0, true, map[status.InstanceID]uint64{a: 0, b: 0}, alive},
		},
		"a change that the stream does not bring": {
			{7, 7, true, map[status.InstanceID]uint64{a: 1}, alive},
			{7, 7, true, map[status.InstanceID]uint64{a: 2}, suspect},
			{7, 7, true, map[status.InstanceID]uint64{a: 2}, dead},
		},
		"an instance that the stream does not bring": {
			{7, 7, true, map[status.InstanceID]uint64{a: 1}, alive},
			{7, 7, true, map[status.InstanceID]uint64{a: 1, b: 5}, suspect},
			{7, 7, true, map[status.InstanceID]uint64{a: 1, b: 5}, dead},
		},
		"a change that was on its way": {
			{7, 7, true, map[status.InstanceID]uint64{a: 1}, alive},
			{7, 7, true, map[status.InstanceID]uint64{a: 2}, suspect},
			{8, 8, false, map[status.InstanceID]uint64{a: 2}, alive},
			{8, 8, true, map[status.InstanceID]uint64{a: 2}, alive},
			{8, 8, true, map[status.InstanceID]uint64{a: 2}, alive},
		},
		"a change that comes while we look": {
			{7, 7, true, map[status.InstanceID]uint64{a: 1}, alive},
			{7, 8, true, map[status.InstanceID]uint64{a: 2}, alive},
		},
		"a busy stream keeps no record": {
			{7, 7, false, map[status.InstanceID]uint64{a: 1}, alive},
			{7, 7, true, map[status.InstanceID]uint64{a: 2}, alive},
			{7, 7, true, map[status.InstanceID]uint64{a: 2}, alive},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s silence
			for i, snap := range snaps {
				l := s.look(snap.before, snap.quiet)
				if (l.record != nil) != snap.quiet {
					t.Errorf("snapshot %d keeps a record: %v", i, l.record != nil)
				}
				for id, version := range snap.versions {
					l.see(id, version)
				}
				if got := s.judge(l, snap.after); got != snap.want {
					t.Fatalf("snapshot %d: verdict %d, want %d", i, got, snap.want)
				}
			}
		})
	}
}

func TestPlan(t *testing.T) {
	timing := Timing{}.withDefaults()
	now := time.Now()
	p := plan{timing: timing}
	p.begin(now)
	if d := p.wait(now, now); d != 0 {
		t.Errorf("the first waits %v", d)
	}
	p.taken, p.last = 2, now
	if d := p.wait(now, time.Time{}); d != timing.Silence {
		t.Errorf("a quiet stream waits %v", d)
	}
	if d := p.wait(now.Add(time.Minute), now.Add(time.Minute)); d != timing.Silence {
		t.Errorf("heard a minute ago waits %v", d)
	}
	if d := p.wait(now.Add(4*time.Minute), now.Add(4*time.Minute)); d != time.Minute {
		t.Errorf("a busy stream waits %v", d)
	}
	if d := p.wait(now.Add(time.Hour), now); d != 0 {
		t.Errorf("an hour late waits %v", d)
	}
}

// poolOf counts what is taken and given back.
type poolOf struct{ out int }

func (p *poolOf) Get(n int) *[]byte { p.out++; b := make([]byte, n); return &b }
func (p *poolOf) Put(*[]byte)       { p.out-- }

func TestCodecHoldsAndFrees(t *testing.T) {
	pool := &poolOf{}
	buffer := func(fill byte) mem.Buffer {
		b := pool.Get(4096)
		for i := range *b {
			(*b)[i] = fill
		}
		return mem.NewBuffer(b, pool)
	}
	var m message
	c := newCodec()
	receive := func(data mem.BufferSlice) { // as gRPC does it
		if err := c.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		data.Free()
	}

	receive(mem.BufferSlice{buffer(1)})
	if pool.out != 1 || len(m.bytes) != 4096 || m.bytes[4095] != 1 {
		t.Fatalf("one buffer: %d held, %d bytes", pool.out, len(m.bytes))
	}
	receive(mem.BufferSlice{buffer(2), buffer(3)})
	if pool.out != 0 || len(m.bytes) != 8192 || m.bytes[0] != 2 || m.bytes[8191] != 3 {
		t.Fatalf("two buffers: %d held, %d bytes", pool.out, len(m.bytes))
	}
	receive(nil)
	if len(m.bytes) != 0 {
		t.Fatalf("an empty message has %d bytes", len(m.bytes))
	}
	receive(mem.BufferSlice{mem.SliceBuffer(make([]byte, keepScratch)), mem.SliceBuffer("x")})
	if cap(m.scratch) <= keepScratch {
		t.Fatal("no scratch for a large message")
	}
	receive(mem.BufferSlice{buffer(4)})
	if cap(m.scratch) > keepScratch {
		t.Error("the scratch of a large message is kept")
	}
	m.release()
	if pool.out != 0 || m.bytes != nil {
		t.Errorf("%d buffers are not given back", pool.out)
	}
	var described wsman.DescribeClusterResponse
	if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(bytesOf(t, &wsman.DescribeClusterResponse{PreferredWorkspaceClass: "g1"}))}, &described); err != nil || described.PreferredWorkspaceClass != "g1" {
		t.Errorf("a message of protobuf's: %v", err)
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(100)
	first, err := b.take(t.Context(), 1000) // more than there is: all of it
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.take(ended, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a spent budget gives: %v", err)
	}
	first()
	again, err := b.take(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	again()
	var none *Budget
	if free, err := none.take(t.Context(), 1<<40); err != nil {
		t.Error(err)
	} else {
		free()
	}
}

// An old subscription's snapshot says nothing unversioned any more.
func TestUnversionedEntriesOfAnEarlierSubscription(t *testing.T) {
	sink := newRecorder()
	c, err := New(Config{Cluster: Cluster{Name: "eu1", URL: "host:1"}, Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	first := c.begun(func(error) {})
	for _, entry := range []struct {
		version    uint64
		generation uint64
		offered    int
	}{{0, first, 1}, {3, first, 2}, {0, first + 1, 2}, {4, first + 1, 3}, {0, 0, 4}} {
		if entry.generation > first {
			if c.generation == first {
				c.begun(func(error) {})
			}
		}
		generation := first
		if entry.generation == 0 {
			generation = c.generation
		}
		h, err := status.Scan(bytesOf(t, at(1, entry.version)))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.offerEntry(t.Context(), generation, h); err != nil {
			t.Fatal(err)
		}
		if len(sink.offered) != entry.offered {
			t.Errorf("%+v: %d offered", entry, len(sink.offered))
		}
	}
}

// framed puts gRPC's prefix before a message.
func framed(raw []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...)
}

// FuzzReadSnapshot holds the reader of snapshots against generated decoding.
func FuzzReadSnapshot(f *testing.F) {
	one, two := entryOf(bytesOf(f, at(1, 1))), entryOf(bytesOf(f, at(2, 2)))
	f.Add([]byte{})
	f.Add(slices.Concat(one, two))
	f.Add(slices.Concat(one, []byte{0x7b, 0x08, 0x01, 0x7c}, two))
	f.Add(slices.Concat(one, protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1), two))
	f.Add(slices.Concat(one, protowire.AppendFixed64(protowire.AppendTag(nil, 9, protowire.Fixed64Type), 1), two))
	f.Add(slices.Concat(one, two[:20]))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want wsman.GetWorkspacesResponse
		decodeErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, &want)
		var got []*wsman.WorkspaceStatus
		read, err := readSnapshot(iotest.HalfReader(bytes.NewReader(framed(raw))), 1<<20, 1<<20, func(entry []byte, _ int64) error {
			s := &wsman.WorkspaceStatus{}
			if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(entry, s) == nil {
				got = append(got, s)
			}
			return nil
		})
		if decodeErr != nil {
			return // the reader does not look into entries
		}
		if err != nil {
			t.Fatalf("decoding accepts what the reader refuses: %v", err)
		}
		if read.entries != len(want.Status) || !slices.EqualFunc(got, want.Status, func(a, b *wsman.WorkspaceStatus) bool { return proto.Equal(a, b) }) {
			t.Fatalf("%d entries, want %d", read.entries, len(want.Status))
		}
		if short := framed(raw); len(raw) > 0 {
			if _, err := readSnapshot(bytes.NewReader(short[:len(short)-1]), 1<<20, 1<<20, func([]byte, int64) error { return nil }); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("a snapshot without its end: %v", err)
			}
		}
	})
}
