package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// maxCredentialBytes is far above any chain or token.
const maxCredentialBytes = 1 << 20

// proof is how replicas are believed, and how we prove to them who we are.
type proof struct {
	ca, crt, key, serverName, tokenFile string
	system                              bool // believe the authorities of this machine

	tls   *tls.Config // nil for plain text
	token secret.String
}

func (p *proof) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&p.system, "tls", false, "speak TLS, and believe the authorities of this machine ($TRESTLE_TLS)")
	flags.StringVar(&p.ca, "tls-ca", "", "speak TLS, and believe the authority in this PEM `file` ($TRESTLE_TLS_CA)")
	flags.StringVar(&p.crt, "tls-crt", "", "PEM `file` of the certificate that says who we are ($TRESTLE_TLS_CRT)")
	flags.StringVar(&p.key, "tls-key", "", "PEM `file` of its key ($TRESTLE_TLS_KEY)")
	flags.StringVar(&p.serverName, "tls-server-name", "", "name that the replicas' certificate is for, if not that of the address ($TRESTLE_TLS_SERVER_NAME)")
	flags.StringVar(&p.tokenFile, "token-file", "", "`file` of the token that says who we are ($TRESTLE_TOKEN_FILE)")
}

// read completes what the flags have left out, and reads the files.
func (p *proof) read(lookupEnv func(string) (string, bool)) error {
	for _, v := range []struct {
		name string
		to   *string
	}{
		{"TRESTLE_TLS_CA", &p.ca}, {"TRESTLE_TLS_CRT", &p.crt}, {"TRESTLE_TLS_KEY", &p.key},
		{"TRESTLE_TLS_SERVER_NAME", &p.serverName}, {"TRESTLE_TOKEN_FILE", &p.tokenFile},
	} {
		if value, set := lookupEnv(v.name); set && *v.to == "" {
			*v.to = value
		}
	}
	switch value, _ := lookupEnv("TRESTLE_TLS"); value {
	case "", "false":
	case "true":
		p.system = true
	default:
		return fmt.Errorf("TRESTLE_TLS is %q: give true or false", value)
	}
	if p.tokenFile != "" {
		content, err := readCredential(p.tokenFile)
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		token := strings.TrimSpace(string(content))
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("--token-file: %s holds no token, which is one word", p.tokenFile)
		}
		p.token = secret.New(token)
	}
	if (p.crt == "") != (p.key == "") {
		return errors.New("--tls-crt and --tls-key go together")
	}
	if p.ca == "" && p.crt == "" && p.serverName == "" && !p.system {
		return nil
	}
	p.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.serverName}
	if p.ca != "" {
		content, err := readCredential(p.ca)
		if err != nil {
			return fmt.Errorf("--tls-ca: %w", err)
		}
		p.tls.RootCAs = x509.NewCertPool()
		if !p.tls.RootCAs.AppendCertsFromPEM(content) {
			return fmt.Errorf("--tls-ca: %s holds no certificate in PEM", p.ca)
		}
	}
	if p.crt != "" {
		pair, err := tls.LoadX509KeyPair(p.crt, p.key)
		if err != nil {
			return fmt.Errorf("--tls-crt and --tls-key: %w", err)
		}
		p.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

func readCredential(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxCredentialBytes+1))
	if err == nil && len(content) > maxCredentialBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxCredentialBytes)
	}
	return content, err
}

// options are those of a connection to an address. A token is not sent where
// others may read it.
func (p *proof) options(address string) ([]grpc.DialOption, error) {
	var options []grpc.DialOption
	if p.tls != nil {
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(p.tls)))
	} else {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	if p.token.IsZero() {
		return options, nil
	}
	if p.tls == nil && !onThisMachine(address) {
		return nil, errors.New("a token would go there in plain text; speak TLS (--tls-ca or --tls), or use a port-forward")
	}
	return append(options, grpc.WithPerRPCCredentials(bearer{p.token})), nil
}

func onThisMachine(address string) bool {
	_, after, found := strings.Cut(address, ":///")
	if found {
		address = after
	}
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// bearer sends a token with every call.
type bearer struct{ token secret.String }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials; see options.
func (bearer) RequireTransportSecurity() bool { return false }

// tokenCommand makes tokens. It asks no replica.
func (p *program) tokenCommand() *cobra.Command {
	role := ""
	c := p.reading(&cobra.Command{
		Use:   "token",
		Short: "Make a token for somebody, and its line for the replicas' file of tokens",
		Long: `Make a token for somebody, and its line for the replicas' file of tokens
(clusterService.tokenFile).

The token is shown this once: the line has only its hash. Replicas take it
within seconds after the line was added, and for as long as it stands there.`,
	}, []argument{{"NAME", nil}}, func(_ *cobra.Command, args []string) error {
		parsed, err := access.ParseRole(role)
		if err != nil {
			return usage("--role %q %v", role, err)
		}
		text, token, err := access.NewToken(args[0], parsed)
		if err != nil {
			return usage("%v", err)
		}
		if p.forPeople() {
			_, err := fmt.Fprintf(p.streams.out, "The token, for %s alone (trestlectl --token-file):\n\n  %s\n\nThe line for the file of tokens:\n\n  %s\n", args[0], text.Reveal(), token.Line())
			return err
		}
		raw, err := json.Marshal(struct {
			Token string `json:"token"`
			Line  string `json:"line"`
		}{text.Reveal(), token.Line()})
		if err != nil {
			return err
		}
		return p.printJSON(raw)
	})
	c.Flags().StringVar(&role, "role", "viewer", "viewer, who may look, or operator, who may change everything")
	complete(c, "role", "viewer", "operator")
	return c
}
