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
// Material, and has a look at those of gRPC, whose Store reads them again and
// again. It is apart from Load because not every command needs them. All
// problems come back in one *settings.Error; no problem quotes a file.
func (c *Config) ReadFiles() error {
	var problems []settings.Problem
	for i := range c.StaticBridges {
		b := &c.StaticBridges[i]
		problems = append(problems, c.readTLS(&b.Material, b.TLS, fmt.Sprintf("%s[%d].tls", bridgesKey, i))...)
	}
	problems = append(problems, c.readTLS(&c.Redis.Material, c.Redis.TLS, "redis.tls")...)
	problems = append(problems, c.readTLS(&c.Etcd.Material, c.Etcd.TLS, "etcd.tls")...)
	var seen TLSMaterial
	problems = append(problems, c.readTLS(&seen, c.ClusterService.TLS, "clusterService.tls")...)
	if len(problems) > 0 {
		return &settings.Error{Problems: problems}
	}
	return nil
}

// Reread reads the PEM files of a static cluster again, for they may be replaced
// while the process runs. With an error the cluster is as it was.
func (b StaticBridge) Reread() (StaticBridge, error) {
	if b.TLS.IsZero() {
		return b, nil
	}
	m, problems := readMaterial(b.TLS)
	if len(problems) > 0 {
		return b, fmt.Errorf("read the TLS files of static cluster %s: %s", b.Name, problems[0].what)
	}
	b.Material = m
	return b, nil
}

func (c *Config) readTLS(m *TLSMaterial, files TLSFiles, key string) []settings.Problem {
	read, faults := readMaterial(files)
	*m = read
	var problems []settings.Problem
	for _, f := range faults {
		problems = append(problems, c.at(key+"."+f.name, f.what, "the path of a PEM file"))
	}
	return problems
}

// fault is what is wrong with one of the files.
type fault struct{ name, what string }

func readMaterial(files TLSFiles) (m TLSMaterial, faults []fault) {
	add := func(name, what string) { faults = append(faults, fault{name, what}) }
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
	return TLSMaterial{CA: ca, Crt: crt, Key: secret.New(string(secretKey))}, faults
}
