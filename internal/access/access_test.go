package access

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newToken(t *testing.T, name string, role Role) (string, Token) {
	t.Helper()
	text, token, err := NewToken(name, role)
	if err != nil {
		t.Fatal(err)
	}
	return text.Reveal(), token
}

func TestTokensAreReadAsTheyAreMade(t *testing.T) {
	_, vera := newToken(t, "vera", Viewer)
	_, olga := newToken(t, "olga@example.com", Operator)
	_, next := newToken(t, "vera", Viewer)
	file := "# who may call\n\n" + vera.Line() + "\r\n  " + olga.Line() + "  \n" + next.Line()
	got, err := ParseTokens([]byte(file))
	if err != nil || !slices.Equal(got, []Token{vera, olga, next}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTokensThatAreNone(t *testing.T) {
	text, vera := newToken(t, "vera", Viewer)
	line := vera.Line()
	hash := strings.Fields(line)[2]
	for _, c := range []struct{ what, file, says string }{
		{"a token in place of its hash", "vera viewer " + text, "line 1 has no hash"},
		{"two parts", "\nvera " + hash, "line 2 has 2 parts"},
		{"another role", "vera admin " + hash, "neither viewer nor operator"},
		{"no role", "vera none " + hash, "neither viewer nor operator"},
		{"half a hash", "vera viewer " + hash[:40], "no hash"},
		{"another hash", "vera viewer md5:" + hash[7:], "no hash"},
		{"the same twice", line + "\n" + strings.Replace(line, "vera", "vera2", 1), "line 2 has the token of line 1"},
		{"two roles", line + "\n" + "vera operator sha256:" + strings.Repeat("00", 32), "another role"},
		{"a name that cannot be seen", "ve\u200bra viewer " + hash, "cannot be seen"},
		{"a long name", strings.Repeat("x", 200) + " viewer " + hash, "128 bytes"},
	} {
		tokens, err := ParseTokens([]byte(c.file))
		if err == nil || !strings.Contains(err.Error(), c.says) || tokens != nil {
			t.Errorf("%s: %v, %v; want an error that says %q", c.what, tokens, err, c.says)
		} else if strings.Contains(err.Error(), text) || strings.Contains(err.Error(), hash[10:30]) {
			t.Errorf("%s: the error shows what it should not: %v", c.what, err)
		}
	}
	many := &strings.Builder{}
	for n := range maxTokens + 1 {
		fmt.Fprintf(many, "a viewer sha256:%064x\n", n)
	}
	if _, err := ParseTokens([]byte(many.String())); err == nil {
		t.Error("there is no limit of tokens")
	}
	for _, name := range []string{"", "a b", "#a", "a\n"} {
		if _, _, err := NewToken(name, Viewer); err == nil {
			t.Errorf("a token for %q", name)
		}
	}
	if _, _, err := NewToken("a", Nobody); err == nil {
		t.Error("a token for nothing")
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("# comment\nvera viewer sha256:" + strings.Repeat("0f", 32)))
	f.Add([]byte("vera operator sha256:\nx"))
	f.Fuzz(func(t *testing.T, file []byte) {
		tokens, err := ParseTokens(file)
		if err != nil {
			return
		}
		var again []string
		for _, token := range tokens {
			if token.Role == Nobody || token.Name == "" {
				t.Errorf("%+v", token)
			}
			again = append(again, token.Line())
		}
		if got, err := ParseTokens([]byte(strings.Join(again, "\n"))); err != nil || !slices.Equal(got, tokens) {
			t.Errorf("%v is read as %v, %v", again, got, err)
		}
	})
}

func bearing(token string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+token))
}

// A file is read again while the process runs; one that cannot be used leaves
// things as they were.
func TestTokenFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	first, vera := newToken(t, "vera", Viewer)
	second, olga := newToken(t, "olga", Operator)
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{TokenFile: path, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a file that is not there: %v", err)
	}
	write(vera.Line())
	bubbletest.Test(t, func(t *testing.T) {
		log := &bytes.Buffer{}
		a, err := New(Config{TokenFile: path, Logger: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		is := func(token, want string) {
			t.Helper()
			got := "nobody"
			if who, err := a.Identify(bearing(token)); err == nil {
				got = who.Name + " " + who.Role.String()
			}
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		look := func() { time.Sleep(2 * tokenEvery); synctest.Wait() }
		is(first, "vera viewer")
		is(second, "nobody")
		write(olga.Line())
		look()
		is(first, "nobody")
		is(second, "olga operator")
		write("what is this?")
		look()
		look()
		is(second, "olga operator")
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("one file that is wrong is told of %d times:\n%s", n, log)
		}
		write(vera.Line(), olga.Line())
		look()
		is(first, "vera viewer")
		is(second, "olga operator")
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), "what is this") {
			t.Errorf("the log shows what stands in the file:\n%s", log)
		}
	})
}

func TestEverybodyAndNobody(t *testing.T) {
	a, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if who, err := a.Identify(t.Context()); err != nil || who.Role != Operator || !a.Open() {
		t.Errorf("%+v, %v", who, err)
	}
	if _, err := New(Config{Names: map[string]Role{"a": Viewer}}); err == nil {
		t.Error("names are believed without an authority")
	}
	if _, err := New(Config{TokenFile: "a"}); err == nil {
		t.Error("tokens without a log")
	}
	a, err = New(Config{Names: map[string]Role{"a": Viewer}, VerifyClient: func([]*x509.Certificate) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	for what, ctx := range map[string]context.Context{"nothing": t.Context(), "a token": bearing("x")} {
		if who, err := a.Identify(ctx); err == nil || who.Role != Nobody || !strings.Contains(err.Error(), "client certificate") {
			t.Errorf("%s: %+v, %v", what, who, err)
		}
	}
	for _, r := range []Role{Viewer, Operator} {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
}

func TestLimiter(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		l, err := NewLimiter(Limits{PerSecond: 2, AtOnce: 3, InAll: 4})
		if err != nil {
			t.Fatal(err)
		}
		enter := func(who string, want bool) func() {
			t.Helper()
			leave, err := l.Enter(who)
			if (err == nil) != want {
				t.Errorf("%s: %v", who, err)
			}
			return leave
		}
		leave := enter("a", true)
		enter("a", true)
		enter("a", true)
		enter("a", false) // at once
		enter("b", true)
		enter("b", false) // in all
		leave()
		leave = enter("a", true)
		leave()
		enter("a", false) // four in the first second
		time.Sleep(time.Second)
		enter("a", true)
		// Whatever comes, what is remembered is bounded.
		for n := range 2 * maxCallers {
			if leave, err := l.Enter(fmt.Sprint(n)); err == nil {
				leave()
			}
		}
		if n := l.callers.Len(); n > maxCallers {
			t.Errorf("%d callers are remembered", n)
		}
	})
	for _, limits := range []Limits{{}, {PerSecond: -1, AtOnce: 1, InAll: 1}, {PerSecond: 1, InAll: 1}, {PerSecond: 1, AtOnce: 1}} {
		if _, err := NewLimiter(limits); err == nil {
			t.Errorf("%+v are taken for limits", limits)
		}
	}
}

func TestFloodIsToldOfOnce(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		l, err := NewLimiter(Limits{PerSecond: 1e-9, AtOnce: 1, InAll: 1})
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for range 100 {
			leave, err := l.Enter("a")
			if err == nil {
				leave()
			} else if err.(*LimitError).Tell {
				told++
			}
			time.Sleep(complainEvery / 50)
		}
		if told < 2 || told > 3 {
			t.Errorf("told %d times in two times %s", told, complainEvery)
		}
	})
}

func TestOrigin(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1:99": "10.0.0.1", "[::ffff:10.0.0.1]:99": "10.0.0.1", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::]:2": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		at, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := Origin(peer.NewContext(t.Context(), &peer.Peer{Addr: at})); got != want {
			t.Errorf("%s comes from %s, want %s", address, got, want)
		}
	}
	if got := Origin(t.Context()); got != "unknown" {
		t.Errorf("nobody comes from %s", got)
	}
	if got := Origin(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.UnixAddr{Name: "@", Net: "unix"}})); got != "unix" {
		t.Errorf("a socket is %s", got)
	}
}
