package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	trestlev1 "github.com/trestle-bridge/trestle/proto/trestle/v1"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	why := []string{"--reason", "r"}
	for _, c := range []struct {
		what string
		args []string
		says []string
	}{
		{"nothing", nil, []string{"a command is missing", "trestlectl --help"}},
		{"an unknown command", []string{"shardz"}, []string{`"trestlectl shardz"`, "did you mean shards?"}},
		{"an unknown command below", []string{"brake", "relase"}, []string{"did you mean release?", "trestlectl brake --help"}},
		{"no command below", []string{"sweep"}, []string{"a command is missing", "trestlectl sweep --help"}},
		{"an unknown flag", []string{"shards", "--shard=a"}, []string{"--shard", "trestlectl shards --help"}},
		{"a flag without its value", []string{"shards", "--cluster"}, []string{"--cluster"}},
		{"an argument too many", []string{"replicas", "a"}, []string{`"a" is an argument too many`}},
		{"an argument too few", append([]string{"pin", "eu01"}, why...), []string{"REPLICA is missing", "trestlectl pin --help"}},
		{"an empty argument", append([]string{"drain", ""}, why...), []string{"REPLICA is missing"}},
		{"no reason", []string{"freeze"}, []string{"--reason is missing", "trestlectl freeze --help"}},
		{"a blank reason", []string{"freeze", "--reason", " "}, []string{"--reason is missing"}},
		{"no author", append([]string{"freeze", "--author", ""}, why...), []string{"--author"}},
		{"for no time", append([]string{"freeze", "--for", "0s"}, why...), []string{"--for 0s", "90m"}},
		{"for what is no time", append([]string{"freeze", "--for", "soon"}, why...), []string{"--for"}},
		{"a sweep for some time", append([]string{"sweep", "request", "eu01", "--for", "1m"}, why...), []string{"--for"}},
		{"no number of slices", append([]string{"slices", "eu01", "many"}, why...), []string{`"many"`, "from 1 to 1024"}},
		{"too many slices", append([]string{"slices", "eu01", "1025"}, why...), []string{"from 1 to 1024"}},
		{"an unknown format", []string{"shards", "-o", "xml"}, []string{`"xml"`, "table, wide, json, yaml"}},
		{"no time", []string{"shards", "--timeout", "0s"}, []string{"--timeout"}},
		{"an address without a port", []string{"shards", "--address", "replica-1"}, []string{`"replica-1"`, "host:port"}},
		{"an empty address", []string{"shards", "--address", "a:1,,b:1"}, []string{`""`, "host:port"}},
		{"a watch of a replica", []string{"shards", "--watch", "--replica", "a"}, []string{"replica", "watch"}},
		{"TLS in part", []string{"clusters", "register", "eu70", "eu70:1", "--ca", "ca.pem"}, []string{"ca", "crt", "key"}},
		{"no change", []string{"clusters", "update", "eu70"}, []string{"score"}},
		{"two changes", []string{"clusters", "update", "eu70", "--score", "1", "--max-score", "2"}, []string{"score", "max-score"}},
	} {
		// Nobody is asked: nothing listens there.
		callWith(t.Context(), "", map[string]string{addressVariable: "127.0.0.1:1"}, c.args...).says(t, c.what, exitUsage, c.says...)
	}
	for _, args := range [][]string{{"--help"}, {"pin", "--help"}, {"completion", "bash"}, {"version"}} {
		if o := call(t, "", args...); o.code != exitOK || o.out == "" || o.err != "" {
			t.Errorf("%v: %+v", args, o)
		}
	}
	if o := call(t, "", "version", "-o", "json"); o.code != exitOK || !strings.Contains(o.out, `"version": "`) {
		t.Errorf("version as JSON: %+v", o)
	}
	if !strings.Contains(author(), "@") {
		t.Errorf("the author is %q", author())
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	reads := [][]string{{"shards"}, {"shards", "--watch"}, {"replicas"}, {"explain", "eu01"}, {"plan"}, {"commands"}, {"clusters", "list"}}
	changes := [][]string{
		{"pin", "eu01", "a", "--reason=r"}, {"unpin", "eu01", "--reason=r"}, {"drain", "a", "--reason=r"}, {"undrain", "a", "--reason=r"},
		{"freeze", "--reason=r"}, {"unfreeze", "--reason=r"}, {"slices", "eu01", "2", "--reason=r"}, {"brake", "release", "--reason=r"},
		{"sweep", "request", "eu01", "--reason=r"}, {"sweep", "confirm", "eu01", "--reason=r"},
		{"clusters", "register", "eu70", "eu70:1"}, {"clusters", "update", "eu70", "--score=1"}, {"clusters", "cordon", "eu70"},
		{"clusters", "uncordon", "eu70"}, {"clusters", "deregister", "eu70"},
	}
	all := append(append([][]string{}, reads...), changes...)
	for _, c := range []struct {
		code     codes.Code
		exit     int
		commands [][]string
		says     []string
	}{
		{codes.InvalidArgument, exitUsage, all, []string{"the reason", "--help"}},
		{codes.NotFound, exitNotFound, all, []string{"the reason", "trestlectl shards"}},
		{codes.FailedPrecondition, exitRefused, all, []string{"the reason", "Nothing was changed"}},
		{codes.AlreadyExists, exitRefused, changes, []string{"the reason"}},
		{codes.Aborted, exitRefused, changes, []string{"the reason"}},
		{codes.Unavailable, exitUnreachable, all, []string{"the reason", "--address"}},
		{codes.Internal, exitFailed, all, []string{"the reason"}},
		{codes.Unimplemented, exitFailed, all, []string{"the reason", "--address"}},
		{codes.ResourceExhausted, exitFailed, reads, []string{"the reason", "--address"}},
		{codes.DeadlineExceeded, exitFailed, reads, []string{"the reason", "--timeout"}},
		{codes.DeadlineExceeded, exitFailed, changes[:8], []string{"the reason", "trestlectl commands"}},
		{codes.DeadlineExceeded, exitFailed, changes[10:], []string{"the reason", "trestlectl clusters list"}},
	} {
		f := newFake(t, nil)
		f.err = status.Error(c.code, "the reason")
		for _, args := range c.commands {
			o := call(t, f.addr, args...)
			o.says(t, c.code.String()+" of "+strings.Join(args, " "), c.exit, append(c.says, "trestlectl: ")...)
			if o.out != "" {
				t.Errorf("%s of %v prints %s", c.code, args, o.out)
			}
		}
		if n := len(f.requests()); n != len(c.commands) {
			t.Errorf("%s: asked %d times, want %d", c.code, n, len(c.commands))
		}
	}
	for _, args := range all {
		call(t, "127.0.0.1:1", args...).says(t, strings.Join(args, " "), exitUnreachable, "127.0.0.1:1: ", "connection refused", "port-forward", addressVariable)
	}
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	t.Parallel()
	good := newFake(t, shown())
	stops := newFake(t, shown())
	stops.health.Shutdown()
	unread := newFake(t, nil)
	unread.err = status.Error(codes.Unavailable, "has not read")
	// One that takes connections and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nowhere := "127.0.0.1:1"
	ctx := t.Context()

	works := func(what string, o outcome) {
		t.Helper()
		if o.code != exitOK || !strings.Contains(o.out, "eu01") {
			t.Errorf("%s: %+v", what, o)
		}
	}
	works("by commas", call(t, nowhere+","+good.addr, "shards"))
	works("by repeating", call(t, good.addr, "shards", "--address", nowhere))
	works("one that stops", call(t, stops.addr+","+good.addr, "shards"))
	works("one that cannot say", call(t, unread.addr+", "+good.addr, "shards"))
	works("one that is silent", call(t, silent.Addr().String()+","+good.addr, "shards", "--timeout", "9s"))
	works("by environment", callWith(ctx, "", map[string]string{addressVariable: nowhere + ", " + good.addr}, "shards"))
	works("flags over environment", callWith(ctx, good.addr, map[string]string{addressVariable: nowhere}, "shards"))
	works("a gRPC target", call(t, "passthrough:///"+good.addr, "shards"))
	call(t, nowhere+","+stops.addr+","+unread.addr, "shards").says(t, "none that works", exitUnreachable,
		nowhere+": ", "connection refused", stops.addr+": it starts or stops", unread.addr+": has not read")
	call(t, silent.Addr().String(), "shards", "--timeout", "200ms").says(t, "silence", exitUnreachable, "no answer within")

	// A change is not tried again elsewhere once it was asked for.
	before := len(good.requests())
	call(t, unread.addr+","+good.addr, "freeze", "--reason=r").says(t, "a change that may stand", exitUnreachable, "has not read")
	if n := len(good.requests()); n != before {
		t.Errorf("the change was asked for again, of another replica")
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	if o := callWith(ended, good.addr, nil, "shards"); o.code != exitFailed {
		t.Errorf("interrupted: %+v", o)
	}
}

// A replica that knows nothing of its health is asked all the same.
func TestReplicaWithoutHealth(t *testing.T) {
	t.Parallel()
	f := newFake(t, shown())
	f.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVICE_UNKNOWN)
	call(t, f.addr, "shards").says(t, "not serving", exitUnreachable, "starts or stops")
}

// A command waits as long as it is told to, and the replica knows how long.
func TestTimeout(t *testing.T) {
	t.Parallel()
	f := newFake(t, nil)
	left := make(chan time.Duration, 1)
	f.waits = func(ctx context.Context) {
		deadline, _ := ctx.Deadline()
		left <- time.Until(deadline)
	}
	f.answers = map[string]proto.Message{"Freeze": &trestlev1.FreezeResponse{}, "List": &bridge.ListResponse{}}
	if o := call(t, f.addr, "freeze", "--reason=r", "--timeout", "1h"); o.code != exitOK {
		t.Errorf("%+v", o)
	}
	if d := <-left; d > time.Hour || d < 30*time.Minute {
		t.Errorf("the replica has %s", d)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	f := newFake(t, shown())
	f.answers["List"] = &bridge.ListResponse{Status: []*bridge.ClusterStatus{{Name: "eu70"}, {Name: "static", Static: true}}}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"pin", ""}, "eu01 us01#0/2 us01#1/2 :4"},
		{[]string{"pin", "eu01", ""}, "a b c :4"},
		{[]string{"pin", "eu01", "a", ""}, ":4"},
		{[]string{"explain", ""}, "eu01 us01 :4"},
		{[]string{"undrain", ""}, "b later :4"},
		{[]string{"slices", "eu01", ""}, ":4"},
		{[]string{"clusters", "cordon", ""}, "eu70 :4"},
		{[]string{"shards", "--cluster", ""}, "eu01 us01 :4"},
		{[]string{"shards", "-o", ""}, "table wide json yaml :4"},
	} {
		o := callWith(t.Context(), "", map[string]string{addressVariable: f.addr}, append([]string{"__complete"}, c.args...)...)
		if got := strings.Join(strings.Fields(o.out), " "); o.code != exitOK || got != c.want {
			t.Errorf("%v: %q, want %q: %s", c.args, got, c.want, o.err)
		}
	}
	o := callWith(t.Context(), "", map[string]string{addressVariable: "127.0.0.1:1"}, "__complete", "pin", "")
	if got := strings.TrimSpace(o.out); got != ":1" {
		t.Errorf("with nobody there: %q", got)
	}
}
