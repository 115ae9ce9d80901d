package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/trestle-bridge/trestle/internal/secret"
)

func TestParseTarget(t *testing.T) {
	for url, want := range map[string]string{
		"ws-manager:8080":                 "tcp ws-manager:8080",
		"10.0.0.1:8080":                   "tcp 10.0.0.1:8080",
		"[::1]:8080":                      "tcp [::1]:8080",
		"::1":                             "tcp [::1]:443",
		"ws-manager":                      "tcp ws-manager:443",
		"dns:443":                         "tcp dns:443",
		"dns:ws-manager:8080":             "tcp ws-manager:8080",
		"dns:///ws-manager:8080":          "tcp ws-manager:8080",
		"dns:///ws-manager":               "tcp ws-manager:443",
		"dns://10.0.0.53/ws-manager:8080": "tcp ws-manager:8080 by its own DNS",
		"passthrough:///ws-manager:8080":  "tcp ws-manager:8080",
		"unix:///run/ws.sock":             "unix /run/ws.sock",
		"unix:run/ws.sock":                "unix run/ws.sock",
		"unix-abstract:ws":                "unix @ws",
		"":                                "",
		":8080":                           "",
		"dns://ws-manager:8080":           "",
		"https://ws-manager:8080":         "",
		"xds:///ws-manager":               "",
		"unix://run/ws.sock":              "",
		"unix:":                           "",
		"host:80:90":                      "",
		"ws manager:8080":                 "",
	} {
		got, err := parseTarget(url)
		text := ""
		if err == nil {
			text = got.network + " " + got.address
			if got.resolver != nil {
				text += " by its own DNS"
			}
		}
		if text != want {
			t.Errorf("%q: got %q, %v, want %q", url, text, err, want)
		}
	}
}

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue gives a certificate and key in PEM.
func (a *authority) issue(name string, until time.Time) (cert, key string) {
	a.t.Helper()
	private := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))
}

// server gives what a server needs that asks for certificates of ours.
func (a *authority) server(name string, until time.Time) credentials.TransportCredentials {
	a.t.Helper()
	pair, err := tls.X509KeyPair(func() ([]byte, []byte) {
		cert, key := a.issue(name, until)
		return []byte(cert), []byte(key)
	}())
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12,
	})
}

func (a *authority) client(until time.Time) *TLS {
	cert, key := a.issue("trestle", until)
	return &TLS{CA: secret.New(a.pem), Cert: secret.New(cert), Key: secret.New(key)}
}

func TestMutualTLS(t *testing.T) {
	ca := newAuthority(t)
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	f := newFake(t)
	f.setQuietly(at(1, 1))
	f.start(t, ca.server(serverName, soon))
	c := run(t, f, func(cfg *Config) { cfg.Cluster.TLS = ca.client(soon) })
	awaitSynced(t, c.Client)
	c.sink.awaitVersion(t, id(1), 1)
	f.set(at(1, 2))
	c.sink.awaitVersion(t, id(1), 2)
	if _, err := c.Describe(t.Context()); err != nil {
		t.Error(err)
	}

	for name, test := range map[string]struct {
		server credentials.TransportCredentials
		client *TLS
		why    reason
	}{
		"server of another name": {ca.server("127.0.0.1", soon), ca.client(soon), reasonTLS},
		"server out of date":     {ca.server(serverName, past), ca.client(soon), reasonTLS},
		"server of another CA":   {newAuthority(t).server(serverName, soon), ca.client(soon), reasonTLS},
		"client out of date":     {ca.server(serverName, soon), ca.client(past), reasonUnavailable},
		"plain client":           {ca.server(serverName, soon), nil, reasonUnavailable},
		"plain server":           {nil, ca.client(soon), reasonTLS},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.start(t, test.server)
			c := run(t, f, func(cfg *Config) { cfg.Cluster.TLS = test.client })
			c.await(t, "two attempts", func() bool { return c.State().Reconnects >= 2 })
			if count(t, c.registry, "reconnects_total", string(test.why)) == 0 {
				t.Errorf("not counted as %s: %s", test.why, c.State().Error)
			}
			if _, err := c.Workspaces(t.Context()); err == nil {
				t.Error("a snapshot came through")
			}
			if _, err := c.Describe(t.Context()); err == nil {
				t.Error("a call came through")
			}
			if c.State().Connected || f.subscribes != 0 {
				t.Error("a subscription came through")
			}
		})
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	ca := newAuthority(t)
	good := ca.client(time.Now().Add(time.Hour))
	for name, c := range map[string]Cluster{
		"no name":     {URL: "host:1"},
		"no URL":      {Name: "eu1"},
		"no CA":       {Name: "eu1", URL: "host:1", TLS: &TLS{Cert: good.Cert, Key: good.Key}},
		"no key":      {Name: "eu1", URL: "host:1", TLS: &TLS{CA: good.CA, Cert: good.Cert}},
		"CA not PEM":  {Name: "eu1", URL: "host:1", TLS: &TLS{CA: secret.New("x"), Cert: good.Cert, Key: good.Key}},
		"another key": {Name: "eu1", URL: "host:1", TLS: &TLS{CA: good.CA, Cert: good.Cert, Key: ca.client(time.Now()).Key}},
	} {
		_, err := New(Config{Cluster: c})
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("%s: the error shows key material: %v", name, err)
		}
	}
}

func TestClusterHidesItsKeys(t *testing.T) {
	c := Cluster{Name: "eu1", URL: "host:1", TLS: newAuthority(t).client(time.Now().Add(time.Hour))}
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%+v", *c.TLS), string(encoded)} {
		if strings.Contains(text, "BEGIN") || strings.Contains(text, "LS0t") {
			t.Errorf("keys are shown: %s", text)
		}
	}
}
