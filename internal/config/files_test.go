package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair writes a certificate and its key, and returns their paths.
func pair(t *testing.T, dir, name string) (crt, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	crt, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{crt: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return crt, key
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	crt, key := pair(t, dir, "a")
	_, other := pair(t, dir, "b")
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}

	load := func(ca, crt, key string) *Config {
		t.Helper()
		file := "staticBridges:\n- {name: plain, url: 'h:1'}\n- {name: a, url: 'h:1', tls: {ca: " + ca + ", crt: " + crt + ", key: " + key + "}}\n" +
			"etcd: {tls: {ca: " + ca + "}}\nredis: {tls: {ca: " + ca + "}}\n"
		cfg, _, err := Load(Input{Path: writeFile(t, "c.yaml", file)})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}

	cfg := load(crt, crt, key)
	if err := cfg.ReadFiles(); err != nil {
		t.Fatal(err)
	}
	m := cfg.StaticBridges[1].Material
	if len(m.CA) == 0 || len(m.Crt) == 0 || !strings.Contains(m.Key.Reveal(), "PRIVATE KEY") || len(cfg.Etcd.Material.CA) == 0 || len(cfg.Redis.Material.CA) == 0 {
		t.Error("files were not read")
	}
	if plain := cfg.StaticBridges[0].Material; plain.CA != nil || !plain.Key.IsZero() {
		t.Error("a plain cluster has files")
	}

	for _, c := range []struct {
		name, ca, crt, key string
		want               []string // keys
	}{
		{"not there", filepath.Join(dir, "none"), crt, key, []string{"staticBridges[1].tls.ca", "redis.tls.ca", "etcd.tls.ca"}},
		{"no authority", empty, crt, key, []string{"staticBridges[1].tls.ca", "redis.tls.ca", "etcd.tls.ca"}},
		{"no pair", crt, crt, other, []string{"staticBridges[1].tls.crt"}},
		{"no key", crt, crt, empty, []string{"staticBridges[1].tls.crt"}},
		{"nothing there", crt, filepath.Join(dir, "none"), filepath.Join(dir, "none"), []string{"staticBridges[1].tls.crt", "staticBridges[1].tls.key"}},
	} {
		err := load(c.ca, c.crt, c.key).ReadFiles()
		var got []string
		for _, p := range problemsOf(t, err) {
			got = append(got, p.Key)
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: problems of %q, want %q", c.name, got, c.want)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error quotes a file: %v", c.name, err)
		}
	}
}
