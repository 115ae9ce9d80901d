package tlsfile

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/loadtest/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// directory has the three files.
type directory struct {
	*testing.T
	Config
}

func newDirectory(t *testing.T) *directory {
	dir := t.TempDir()
	d := &directory{T: t, Config: Config{
		CA: filepath.Join(dir, "ca.crt"), Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"),
		What: "a test", Logger: slog.New(slog.DiscardHandler),
	}}
	return d
}

func (d *directory) write(path string, content []byte) {
	d.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		d.Fatal(err)
	}
}

func issue(t *testing.T, by *sim.Authority, leaf sim.Leaf) sim.Pair {
	t.Helper()
	pair, err := by.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func authority(t *testing.T) *sim.Authority {
	t.Helper()
	a, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func chain(t *testing.T, pair sim.Pair) []*x509.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c.Leaf}
}

func TestFilesThatCannotBeUsed(t *testing.T) {
	a := authority(t)
	good, other := issue(t, a, sim.Leaf{Name: "x"}), issue(t, a, sim.Leaf{Name: "x"})
	secret := strings.Split(string(other.Key), "\n")[1]
	for _, c := range []struct {
		what, says string
		spoil      func(*directory)
	}{
		{"no authority", "ca.crt", func(d *directory) { os.Remove(d.CA) }},
		{"an authority that is none", "no certificate", func(d *directory) { d.write(d.CA, []byte("no PEM")) }},
		{"no key", "tls.key", func(d *directory) { os.Remove(d.Key) }},
		{"another key", "no certificate and its key", func(d *directory) { d.write(d.Key, other.Key) }},
		{"half a key", "no certificate and its key", func(d *directory) { d.write(d.Key, other.Key[:len(other.Key)/2]) }},
		{"a huge file", "larger", func(d *directory) { d.write(d.Certificate, bytes.Repeat([]byte("x"), maxBytes+1)) }},
		{"a directory", "is a directory", func(d *directory) { d.Key = filepath.Dir(d.Key) }},
		{"half of the files", "go together", func(d *directory) { d.Key = "" }},
		{"no files", "no file", func(d *directory) { d.CA, d.Certificate, d.Key = "", "", "" }},
	} {
		d := newDirectory(t)
		d.write(d.CA, a.PEM)
		d.write(d.Certificate, good.Cert)
		d.write(d.Key, good.Key)
		if _, err := New(d.Config); err != nil {
			t.Fatal(err)
		}
		c.spoil(d)
		if _, err := New(d.Config); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want an error that says %q", c.what, err, c.says)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows the key: %v", c.what, err)
		}
	}
}

// Files are replaced one after the other; only what fits together counts.
func TestFilesAreReadAgain(t *testing.T) {
	before, after := authority(t), authority(t)
	first, second := issue(t, before, sim.Leaf{Name: "first"}), issue(t, after, sim.Leaf{Name: "second"})
	old, fresh := chain(t, issue(t, before, sim.Leaf{})), chain(t, issue(t, after, sim.Leaf{}))
	d := newDirectory(t)
	d.write(d.CA, before.PEM)
	d.write(d.Certificate, first.Cert)
	d.write(d.Key, first.Key)
	now := time.Now() // when the certificates are good
	bubbletest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		log := &bytes.Buffer{}
		d.Logger = slog.New(slog.NewTextHandler(log, nil))
		s, err := New(d.Config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		shown := func(want string) {
			t.Helper()
			time.Sleep(2 * defaultEvery)
			synctest.Wait()
			cfg, err := s.ServerTLS().GetConfigForClient(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := cfg.Certificates[0].Leaf.Subject.CommonName; got != want || cfg.ClientAuth != tls.VerifyClientCertIfGiven {
				t.Errorf("the server shows %s, want %s", got, want)
			}
			if mine, err := s.ClientCertificate(nil); err != nil || mine.Leaf.Subject.CommonName != want {
				t.Errorf("a client shows %v, %v, want %s", mine.Leaf, err, want)
			}
		}
		believed := func(c []*x509.Certificate, want bool) {
			t.Helper()
			if err := s.VerifyClient(c); (err == nil) != want {
				t.Errorf("believed: %v, want %v", err, want)
			}
		}
		shown("first")
		believed(old, true)
		believed(fresh, false)
		believed(nil, false)
		d.write(d.Certificate, second.Cert)
		shown("first")
		shown("first")
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("one fault is told of %d times:\n%s", n, log)
		}
		d.write(d.Key, second.Key)
		d.write(d.CA, after.PEM)
		shown("second")
		believed(old, false)
		believed(fresh, true)
		if !s.Expires().Equal(chain(t, second)[0].NotAfter) {
			t.Errorf("it expires at %s", s.Expires())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), strings.Split(string(second.Key), "\n")[1]) {
			t.Error("the log shows a key")
		}
	})
}

func TestAuthorityAlone(t *testing.T) {
	d := newDirectory(t)
	d.write(d.CA, authority(t).PEM)
	d.Certificate, d.Key = "", ""
	s, err := New(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ServerTLS().GetConfigForClient(nil); err == nil {
		t.Error("a server without a certificate")
	}
	if c, err := s.ClientCertificate(nil); err != nil || len(c.Certificate) > 0 || !s.Expires().IsZero() {
		t.Errorf("%v, %v", c, err)
	}
}
