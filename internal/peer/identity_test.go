package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	peerv1 "github.com/trestle-bridge/trestle/proto/trestle/peer/v1"
)

// members is what etcd says, as a test sets it.
type members struct {
	mu   sync.Mutex // guards keys, which are replaced and not changed
	keys map[string][]string
}

func (m *members) roster() map[string][]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys
}

func (m *members) set(at string, keys ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = map[string][]string{at: keys}
}

func newIdentity(t *testing.T) *Identity {
	t.Helper()
	i, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// guarded is a server, and the roster that it believes.
func guarded(t *testing.T, me *Identity) (at string, believed *members, log *strings.Builder) {
	t.Helper()
	believed, log = &members{}, &strings.Builder{}
	s, err := New(Config{
		Address: "127.0.0.1:0", Replica: &replica{caughtUp: true}, Rounds: &replica{}, Identity: me, Roster: believed.roster,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String(), believed, log
}

func ask(t *testing.T, me *Identity, at string, keys ...string) error {
	t.Helper()
	there := &members{}
	there.set(at, keys...)
	peers := NewPeers(me, there.roster)
	defer peers.Close()
	_, err := peers.CaughtUp(t.Context(), at, nil)
	return err
}

func TestOnlyReplicasAreAnswered(t *testing.T) {
	server, friend, stranger := newIdentity(t), newIdentity(t), newIdentity(t)
	at, believed, _ := guarded(t, server)
	believed.set(at, server.Fingerprint(), friend.Fingerprint())
	if err := ask(t, friend, at, server.Fingerprint()); err != nil {
		t.Errorf("a replica is refused: %v", err)
	}
	if err := ask(t, stranger, at, server.Fingerprint()); grpcstatus.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("a stranger is answered: %v", err)
	}
	if err := ask(t, friend, at, ""); err == nil {
		t.Error("plain text is answered though no replica speaks it")
	}
	// The other way round: whoever has taken a replica's address is not asked.
	if err := ask(t, friend, at, stranger.Fingerprint()); err == nil || !strings.Contains(err.Error(), errStranger.Error()) {
		t.Errorf("a replica asks whoever listens: %v", err)
	}
	if err := ask(t, friend, at); err == nil || !strings.Contains(err.Error(), "no living replica is there") {
		t.Errorf("an address where nobody is to be is asked: %v", err)
	}
}

// A connection that stands is worth nothing once its replica has gone.
func TestWhoHasGoneIsAnsweredNoMore(t *testing.T) {
	server, friend := newIdentity(t), newIdentity(t)
	at, believed, _ := guarded(t, server)
	believed.set(at, server.Fingerprint(), friend.Fingerprint())
	there := &members{}
	there.set(at, server.Fingerprint())
	peers := NewPeers(friend, there.roster)
	defer peers.Close()
	if _, err := peers.CaughtUp(t.Context(), at, nil); err != nil {
		t.Fatal(err)
	}
	believed.set(at, server.Fingerprint())
	if _, err := peers.CaughtUp(t.Context(), at, nil); grpcstatus.Code(errors.Unwrap(err)) != codes.Unauthenticated {
		t.Errorf("one who has gone is answered: %v", err)
	}
}

// During an upgrade there are replicas that have no key yet.
func TestOlderVersionsAreAnsweredWhileThereAreAny(t *testing.T) {
	server, friend := newIdentity(t), newIdentity(t)
	at, believed, _ := guarded(t, server)
	old, err := grpc.NewClient(at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	older := peerv1.NewPeerServiceClient(old)
	believed.set(at, server.Fingerprint(), "", friend.Fingerprint())
	if _, err := older.CaughtUp(t.Context(), &peerv1.CaughtUpRequest{}); err != nil {
		t.Errorf("an older version is refused: %v", err)
	}
	if err := ask(t, friend, at, server.Fingerprint()); err != nil {
		t.Errorf("a replica is refused beside an older one: %v", err)
	}
	// With the last of them the plain text ends, on connections that stand too.
	believed.set(at, server.Fingerprint(), friend.Fingerprint())
	if _, err := older.CaughtUp(t.Context(), &peerv1.CaughtUpRequest{}); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("plain text is answered after the last older version: %v", err)
	}

	// And this version speaks as an older one can hear it.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := grpc.NewServer()
	peerv1.RegisterPeerServiceServer(plain, &service{replica: &replica{}, rounds: &replica{}})
	served := make(chan error)
	go func() { served <- plain.Serve(listener) }()
	defer func() { plain.Stop(); <-served }()
	if err := ask(t, friend, listener.Addr().String(), ""); err != nil {
		t.Errorf("an older version cannot be asked: %v", err)
	}
}

// A key can be read in etcd by whoever may read there; it takes more to be one.
func TestFingerprintIsNoProof(t *testing.T) {
	server, friend, thief := newIdentity(t), newIdentity(t), newIdentity(t)
	at, believed, _ := guarded(t, server)
	believed.set(at, server.Fingerprint(), friend.Fingerprint())
	// The thief shows the friend's certificate, and has only a key of its own.
	thief.cert.Certificate, thief.cert.Leaf = friend.cert.Certificate, friend.cert.Leaf
	if err := ask(t, thief, at, server.Fingerprint()); grpcstatus.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("a certificate without its key is believed: %v", err)
	}
}

// What speaks neither TLS nor HTTP/2 ends its own connection and nothing else.
func TestNoiseAtThePeerAddress(t *testing.T) {
	server, friend := newIdentity(t), newIdentity(t)
	at, believed, _ := guarded(t, server)
	believed.set(at, server.Fingerprint(), friend.Fingerprint(), "")
	for _, noise := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("\xff", 70_000), strings.Repeat("\x00", 100_000), "\x16"} {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		// The server may have ended it before all is written.
		_, _ = io.WriteString(conn, noise)
		if err := conn.(*net.TCPConn).CloseWrite(); err == nil {
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn)
		}
		conn.Close()
		if err := ask(t, friend, at, server.Fingerprint()); err != nil {
			t.Errorf("after noise a replica is refused: %v", err)
		}
	}
}

func TestPanicEndsTheCallAlone(t *testing.T) {
	log := &strings.Builder{}
	me := newIdentity(t)
	d := &doorman{roster: func() map[string][]string { return map[string][]string{"a": {me.Fingerprint()}} }, log: slog.New(slog.NewTextHandler(log, nil))}
	info := &grpc.UnaryServerInfo{FullMethod: "/x"}
	if _, err := d.unary(t.Context(), nil, info, nil); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("a call without a connection: %v", err)
	}
	d.roster = func() map[string][]string { return map[string][]string{"a": {""}} }
	_, err := d.unary(t.Context(), nil, info, func(context.Context, any) (any, error) { panic("the inside") })
	if grpcstatus.Code(err) != codes.Internal || strings.Contains(err.Error(), "the inside") || !strings.Contains(log.String(), "the inside") {
		t.Errorf("%v, logged %s", err, log)
	}
	var _ credentials.TransportCredentials = &transport{}
}

// What any caller may send: it is refused or answered, and nothing breaks.
func FuzzRequests(f *testing.F) {
	f.Add("eu01", []byte("0123456789abcdef"), true)
	f.Add("eu01#1/2", []byte{}, false)
	f.Add("%s'; DROP TABLE x; --", []byte{1, 2, 3}, true)
	f.Fuzz(func(t *testing.T, text string, id []byte, confirm bool) {
		r := &replica{}
		s := &service{replica: r, rounds: r}
		if _, err := s.CaughtUp(t.Context(), &peerv1.CaughtUpRequest{Shards: []string{text, string(id)}}); err == nil && len(r.shards) != 2 {
			t.Errorf("%d shards were asked for", len(r.shards))
		}
		if _, err := s.Forget(t.Context(), &peerv1.ForgetRequest{Cluster: text, InstanceIds: [][]byte{id}}); (err == nil) != (len(id) == 16) {
			t.Errorf("an id of %d bytes: %v", len(id), err)
		}
		if _, err := s.Sweep(t.Context(), &peerv1.SweepRequest{Cluster: text, Confirm: confirm}); err != nil {
			t.Error(err)
		}
	})
}
