package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/trestle-bridge/trestle/internal/config/settings"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// TLSFiles are the paths of PEM files: the authority that the other side must
// be signed by, our own certificate, and its key.
type TLSFiles struct{ CA, Crt, Key string }

// IsZero says whether no file is named.
func (t TLSFiles) IsZero() bool { return t == TLSFiles{} }

// TLSMaterial is what the files hold, as PEM.
type TLSMaterial struct {
	CA, Crt []byte
	Key     secret.String
}

// ReadFiles reads the PEM files of the static clusters, of Redis and of etcd into their
// Material. It is apart from Load because not every command needs them. All
// problems come back in one *settings.Error; no problem quotes a file.
func (c *Config) ReadFiles() error {
	var problems []settings.Problem
	for i := range c.StaticBridges {
		b := &c.StaticBridges[i]
		problems = append(problems, c.readTLS(&b.Material, b.TLS, fmt.Sprintf("%s[%d].tls", bridgesKey, i))...)
	}
	problems = append(problems, c.readTLS(&c.Redis.Material, c.Redis.TLS, "redis.tls")...)
	problems = append(problems, c.readTLS(&c.Etcd.Material, c.Etcd.TLS, "etcd.tls")...)
	if len(problems) > 0 {
		return &settings.Error{Problems: problems}
	}
	return nil
}

func (c *Config) readTLS(m *TLSMaterial, files TLSFiles, key string) []settings.Problem {
	var problems []settings.Problem
	add := func(name, what string) {
		problems = append(problems, c.at(key+"."+name, what, "the path of a PEM file"))
	}
	read := func(name, path string) []byte {
		if path == "" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			add(name, err.Error())
		}
		return data
	}
	ca, crt, secretKey := read("ca", files.CA), read("crt", files.Crt), read("key", files.Key)
	if ca != nil && !x509.NewCertPool().AppendCertsFromPEM(ca) {
		add("ca", files.CA+" holds no certificate")
	}
	if crt != nil && secretKey != nil {
		if _, err := tls.X509KeyPair(crt, secretKey); err != nil {
			add("crt", fmt.Sprintf("%s and %s are no pair: %v", files.Crt, files.Key, err))
		}
	}
	*m = TLSMaterial{CA: ca, Crt: crt, Key: secret.New(string(secretKey))}
	return problems
}
