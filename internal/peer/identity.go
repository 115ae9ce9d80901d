package peer

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

// Roster says whom to believe: by peer address, the fingerprints of the keys of
// the living replicas there. An empty fingerprint is a replica of a version that
// had no key yet. It is asked often, must not wait, and is safe for concurrent
// use.
type Roster func() map[string][]string

// Identity is how this process proves to the others who it is: a key that never
// leaves it, and is new at every start. The others know it by its fingerprint.
type Identity struct {
	cert        tls.Certificate
	fingerprint string
}

// NewIdentity makes one.
func NewIdentity() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of this replica: %w", err)
	}
	// Who believes in the key looks at nothing else, so nothing else is said,
	// and no clock can be wrong.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "trestle replica"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of this replica: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of this replica: %w", err)
	}
	return &Identity{
		cert:        tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		fingerprint: fingerprint(leaf),
	}, nil
}

// Fingerprint is what the others know the key by. It is no secret.
func (i *Identity) Fingerprint() string { return i.fingerprint }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// errStranger is somebody who is not on the roster.
var errStranger = errors.New("no living replica has this key, as far as this one knows")

// errPlain is somebody who speaks plain text though all replicas have keys.
var errPlain = errors.New("plain text is spoken to replicas of older versions only, and none is known here")

// proof is what a connection has proved: the fingerprint of the other's key, or
// nothing, in plain text.
type proof struct {
	credentials.CommonAuthInfo
	fingerprint string
}

func (proof) AuthType() string { return "trestle-peer" }

// believed says whether a proof is good now. Anywhere is every address.
func believed(p proof, keys ...[]string) error {
	for _, at := range keys {
		if slices.Contains(at, p.fingerprint) {
			return nil
		}
	}
	if p.fingerprint == "" {
		return errPlain
	}
	return errStranger
}

// anywhere are the keys at all addresses.
func anywhere(roster map[string][]string) (keys [][]string) {
	for _, at := range roster {
		keys = append(keys, at)
	}
	return keys
}

// transport secures connections between replicas by their keys. Where the other
// is of a version without one, which only etcd can say, it speaks plain text as
// that version does.
type transport struct {
	me     *Identity
	roster Roster
	// to is the address that a client means.
	to string
}

// Info implements credentials.TransportCredentials.
func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (t *transport) Clone() credentials.TransportCredentials { c := *t; return &c }

// OverrideServerName implements credentials.TransportCredentials; names mean
// nothing here.
func (t *transport) OverrideServerName(string) error { return nil }

func (t *transport) config(verify func(proof) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		Certificates:           []tls.Certificate{t.me.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		// Whoever has a key on the roster is believed, whoever signed for it:
		// VerifyConnection sees to that, and TLS to it that the key is theirs.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errStranger
			}
			return verify(proof{fingerprint: fingerprint(s.PeerCertificates[0])})
		},
	}
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *transport) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	at := t.roster()[t.to]
	if len(at) == 0 {
		return nil, nil, fmt.Errorf("speak to %s: no living replica is there, as far as this one knows", t.to)
	}
	if !slices.ContainsFunc(at, func(key string) bool { return key != "" }) {
		return raw, proof{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	}
	return t.handshake(ctx, tls.Client(raw, t.config(func(p proof) error { return believed(p, t.roster()[t.to]) })))
}

func (t *transport) handshake(ctx context.Context, conn *tls.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // nothing was said
		return nil, nil, err
	}
	return conn, proof{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		fingerprint:    fingerprint(conn.ConnectionState().PeerCertificates[0]),
	}, nil
}

// tlsRecord is the first byte of what a TLS client says.
const tlsRecord = 0x16

// ServerHandshake implements credentials.TransportCredentials. The server has
// set a deadline.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := &peeked{Conn: raw, r: bufio.NewReaderSize(raw, 512)}
	first, err := conn.r.Peek(1)
	if err != nil {
		return nil, nil, err
	}
	if first[0] == tlsRecord {
		return t.handshake(context.Background(), tls.Server(conn, t.config(func(p proof) error { return believed(p, anywhere(t.roster())...) })))
	}
	plain := proof{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
	if err := believed(plain, anywhere(t.roster())...); err != nil {
		return nil, nil, err
	}
	return conn, plain, nil
}

// peeked is a connection of which something was read ahead.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (c *peeked) Read(p []byte) (int, error) { return c.r.Read(p) }
