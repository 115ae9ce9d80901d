// Package access says who calls, and what they may do: roles by the name in a
// client's certificate or by a bearer token, and limits for each caller.
//
// Its invariants:
//
//   - Where any way to prove oneself is configured, who proves nothing is
//     nobody. Where none is, everybody is an operator; who may be reached so is
//     decided by the configuration, not here.
//   - A proof that fails is never passed over for another one.
//   - Names and roles are looked up at every call, so a change of the files
//     counts for connections that stand.
//   - Tokens are known by their hashes alone, and compared in constant time.
//   - What is remembered of callers is bounded.
//
// Owner: internal/api, for its interceptors; the wiring makes and runs it.
package access

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Role is what a caller may do.
type Role int

// The roles; a greater one may do all that a smaller one may.
const (
	Nobody Role = iota
	Viewer
	Operator
)

// String is the role as files and logs have it.
func (r Role) String() string {
	switch r {
	case Viewer:
		return "viewer"
	case Operator:
		return "operator"
	}
	return "none"
}

// ParseRole reads viewer or operator.
func ParseRole(text string) (Role, error) {
	switch text {
	case "viewer":
		return Viewer, nil
	case "operator":
		return Operator, nil
	}
	return Nobody, errors.New("is neither viewer nor operator")
}

// Identity is who calls.
type Identity struct {
	// Name is empty for those who have none: everybody may call.
	Name string
	Role Role
	// Proof is how the name is known: certificate, token or none.
	Proof string
}

// UnknownError is a caller who has not proved a name that is known here. Its
// text says what to do.
type UnknownError struct {
	what  string
	cause error // for the log
}

func (e *UnknownError) Error() string { return e.what }
func (e *UnknownError) Unwrap() error { return e.cause }

// Config says what is believed. The zero Config lets everybody be an operator.
type Config struct {
	// Names are the roles of those who show a certificate, by a name in it.
	Names map[string]Role
	// VerifyClient says whether a chain of certificates is good now; required
	// with Names.
	VerifyClient func(chain []*x509.Certificate) error
	// TokenFile is read by New, and again by Run; empty for none.
	TokenFile string
	// Logger is required with TokenFile.
	Logger *slog.Logger
}

// Authenticator says who calls. All methods may be called at once, Run once.
type Authenticator struct {
	cfg    Config
	tokens *tokenFile // nil for none
}

// New reads the file of tokens.
func New(cfg Config) (*Authenticator, error) {
	if len(cfg.Names) > 0 && cfg.VerifyClient == nil {
		return nil, errors.New("access: names in certificates mean nothing without authorities")
	}
	cfg.Names = maps.Clone(cfg.Names)
	a := &Authenticator{cfg: cfg}
	if cfg.TokenFile != "" {
		if cfg.Logger == nil {
			return nil, errors.New("access: a logger is required")
		}
		var err error
		if a.tokens, err = newTokenFile(cfg.TokenFile, cfg.Logger); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Run keeps up with the file of tokens until ctx ends.
func (a *Authenticator) Run(ctx context.Context) error {
	if a.tokens == nil {
		<-ctx.Done()
		return nil
	}
	return a.tokens.run(ctx)
}

// Open says that everybody is an operator.
func (a *Authenticator) Open() bool { return a.tokens == nil && len(a.cfg.Names) == 0 }

// Identify says who makes a call, by its context. The error is an UnknownError.
func (a *Authenticator) Identify(ctx context.Context) (Identity, error) {
	if a.Open() {
		return Identity{Role: Operator, Proof: "none"}, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if given := md.Get("authorization"); len(given) > 0 {
		return a.byToken(given)
	}
	if p, ok := peer.FromContext(ctx); ok {
		if secured, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(secured.State.PeerCertificates) > 0 {
			return a.byCertificate(secured.State.PeerCertificates)
		}
	}
	return Identity{}, &UnknownError{what: "say who you are: " + a.ways()}
}

// ways are the proofs that are taken.
func (a *Authenticator) ways() string {
	var ways []string
	if a.tokens != nil {
		ways = append(ways, "send a token (trestlectl --token-file)")
	}
	if len(a.cfg.Names) > 0 {
		ways = append(ways, "show a client certificate (trestlectl --tls-crt, --tls-key)")
	}
	return strings.Join(ways, ", or ")
}

func (a *Authenticator) byToken(given []string) (Identity, error) {
	if a.tokens == nil {
		return Identity{}, &UnknownError{what: "no tokens are taken here; " + a.ways()}
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	if len(given) != 1 || !strings.EqualFold(scheme, "bearer") || token == "" {
		return Identity{}, &UnknownError{what: "the authorization of a call is one header: Bearer, a blank and the token"}
	}
	who, known := a.tokens.find(token)
	if !known {
		return Identity{}, &UnknownError{what: "the token is not known here, or not any more; have one made (trestlectl token) and its line added to the file of tokens"}
	}
	return who, nil
}

func (a *Authenticator) byCertificate(chain []*x509.Certificate) (Identity, error) {
	if len(a.cfg.Names) == 0 {
		return Identity{}, &UnknownError{what: "no client certificates are taken here; " + a.ways()}
	}
	if err := a.cfg.VerifyClient(chain); err != nil {
		return Identity{}, &UnknownError{what: "the client certificate is not good, or not any more: it has expired, or is signed by an authority that is not believed here", cause: err}
	}
	who := Identity{Proof: "certificate"}
	names := certificateNames(chain[0])
	for _, name := range names {
		if role := a.cfg.Names[name]; role > who.Role {
			who.Name, who.Role = name, role
		}
	}
	if who.Role == Nobody {
		return Identity{}, &UnknownError{what: fmt.Sprintf("no role is configured for any name of the client certificate (%s); have one added to clusterService.roles", shown(names))}
	}
	return who, nil
}

// certificateNames are all names that a certificate is for.
func certificateNames(c *x509.Certificate) []string {
	var names []string
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	names = append(names, c.DNSNames...)
	names = append(names, c.EmailAddresses...)
	if c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// shown is some of the names, each of which somebody else has chosen.
func shown(names []string) string {
	if len(names) == 0 {
		return "it has none"
	}
	text := make([]string, 0, 3)
	for _, name := range names[:min(len(names), 3)] {
		text = append(text, fmt.Sprintf("%.100q", name))
	}
	return strings.Join(text, ", ")
}
