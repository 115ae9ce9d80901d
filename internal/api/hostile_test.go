package api_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/trestle-bridge/trestle/internal/api"
	"github.com/trestle-bridge/trestle/internal/store"
	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// mean are texts that mean something elsewhere.
func mean() []string {
	return []string{
		"'; DROP TABLE workspace_cluster; --", `" OR ""="`, "$1", "%s%s%n%x", "%!d(string=x)", "{{.}}", "<script>alert(1)</script>",
		"../../etc/passwd", "\x00", "a\nlevel=INFO msg=\"a change was made\" who=forged", "\u202eesrever", "\u200b", "\\u0000", strings.Repeat("A", 30_000),
		"unix:///etc/passwd", "passthrough:///127.0.0.1:1", "dns://127.0.0.1:1/x:1", "eu01#0/0", "eu01#18446744073709551616/1", "eu01#-1/4", "##", "",
	}
}

// fill puts a text into every field that takes one, and the greatest or smallest
// number into every other.
func fill(m protoreflect.Message, text string, low bool, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.IsMap() || depth > 4 {
			continue
		}
		var v protoreflect.Value
		switch f.Kind() {
		case protoreflect.StringKind:
			v = protoreflect.ValueOfString(text)
		case protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes([]byte(text))
		case protoreflect.BoolKind:
			v = protoreflect.ValueOfBool(!low)
		case protoreflect.Int32Kind:
			v = protoreflect.ValueOfInt32(edge[int32](low, 1<<31-1, -1<<31))
		case protoreflect.Int64Kind:
			v = protoreflect.ValueOfInt64(edge[int64](low, 1<<63-1, -1<<63))
		case protoreflect.EnumKind:
			v = protoreflect.ValueOfEnum(edge[protoreflect.EnumNumber](low, 1<<31-1, -1<<31))
		case protoreflect.MessageKind:
			if f.IsList() {
				list := m.Mutable(f).List()
				for range 3 {
					fill(list.AppendMutable().Message(), text, low, depth+1)
				}
			} else {
				fill(m.Mutable(f).Message(), text, low, depth+1)
			}
			continue
		default:
			continue
		}
		if f.IsList() {
			m.Mutable(f).List().Append(v)
		} else {
			m.Set(f, v)
		}
	}
}

func edge[T any](low bool, most, least T) T {
	if low {
		return least
	}
	return most
}

// unaryMethods are all that take one request and answer once, by service.
func unaryMethods(t *testing.T) (methods []protoreflect.MethodDescriptor) {
	t.Helper()
	for _, name := range []string{bridge.ClusterService_ServiceDesc.ServiceName, trestlev1.ShardService_ServiceDesc.ServiceName} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Fatal(err)
		}
		all := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range all.Len() {
			if m := all.Get(i); !m.IsStreamingServer() {
				methods = append(methods, m)
			}
		}
	}
	return methods
}

func message(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// Whatever stands in any field of any request: it is answered with a code, it
// is a text and nothing else for the database, the log and the caller.
func TestMeanTextsInEveryField(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	fleet := newFleet()
	r := b.replica(func(c *api.Config) {
		c.Fleet, c.Sweeps, c.CallsPerSecond, c.AllowPlaintext = fleet, &fakeSweeps{}, 1e6, true
		c.Instances, c.Rows = &fakeInstances{}, c.Registry.(*store.Store)
	})
	before := b.ask(`SELECT count(*)::text FROM pg_tables WHERE schemaname = 'public'`)
	called := 0
	for _, m := range unaryMethods(t) {
		for _, text := range mean() {
			for _, low := range []bool{false, true} {
				request := message(t, m.Input())
				fill(request.ProtoReflect(), text, low, 0)
				method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
				err := r.conn.Invoke(t.Context(), method, request, message(t, m.Output()), grpc.WaitForReady(true))
				called++
				switch code := status.Code(err); code {
				case codes.OK, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists:
				default:
					t.Errorf("%s with %.30q answers %v", method, text, err)
				}
				if len(status.Convert(err).Message()) > 8<<10 {
					t.Errorf("%s with %.30q answers %d bytes", method, text, len(status.Convert(err).Message()))
				}
			}
		}
	}
	if called < 500 {
		t.Errorf("only %d calls were made", called)
	}
	if after := b.ask(`SELECT count(*)::text FROM pg_tables WHERE schemaname = 'public'`); after != before {
		t.Errorf("there were %s tables, and are %s", before, after)
	}
	log := r.log.String()
	for _, trace := range []string{"level=ERROR", "panic", "%!s", "%!n", "%!x"} {
		if strings.Contains(log, trace) {
			t.Errorf("the log has %q", trace)
		}
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, `msg="a change was made" who=forged`) && !strings.Contains(line, `\"a change was made\"`) {
			t.Errorf("a caller has written a line of its own: %s", line)
		}
		if len(line) > 16<<10 {
			t.Errorf("a caller has made a line of %d bytes: %.300s", len(line), line)
		}
	}
}

// Requests beyond their size are refused before they are read.
func TestOversizedRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := b.replica(func(c *api.Config) {
		c.Fleet, c.Sweeps, c.MaxRequestBytes = newFleet(), &fakeSweeps{}, 64<<10
		c.Instances, c.Rows = &fakeInstances{}, c.Registry.(*store.Store)
	})
	for _, m := range unaryMethods(t) {
		request := message(t, m.Input())
		// What no field holds counts, too.
		request.ProtoReflect().SetUnknown(append([]byte{0xfa, 0x7f, 0x80, 0x80, 0x08}, make([]byte, 128<<10)...))
		method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		if err := r.conn.Invoke(t.Context(), method, request, message(t, m.Output())); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s with 128 KiB answers %v", method, err)
		}
	}
	if _, err := r.List(t.Context(), &bridge.ListRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
