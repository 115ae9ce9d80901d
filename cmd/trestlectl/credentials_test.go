package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trestle-bridge/trestle/internal/access"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// credentialFiles are those of an operator.
type credentialFiles struct{ ca, crt, key, token string }

func newCredentialFiles(t *testing.T, by *sim.Authority, token string) credentialFiles {
	t.Helper()
	pair, err := by.Issue(sim.Leaf{Name: "olga", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := credentialFiles{filepath.Join(dir, "ca"), filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "token")}
	for path, content := range map[string]string{f.ca: string(by.PEM), f.crt: string(pair.Cert), f.key: string(pair.Key), f.token: token + "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// needs a token of every call but those of health.
func needs(token string) grpc.ServerOption {
	return grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if given := md.Get("authorization"); !strings.HasPrefix(info.FullMethod, "/grpc.health") && (len(given) != 1 || given[0] != "Bearer "+token) {
			return nil, status.Error(codes.Unauthenticated, "say who you are")
		}
		return handle(ctx, request)
	})
}

func clusterList() map[string]proto.Message {
	return map[string]proto.Message{"List": &bridge.ListResponse{}}
}

func TestWhoWeAre(t *testing.T) {
	authority, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := sim.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(sim.Leaf{Name: sim.ServerName})
	if err != nil {
		t.Fatal(err)
	}
	mutual, err := authority.ServerTLS(pair)
	if err != nil {
		t.Fatal(err)
	}
	files, other := newCredentialFiles(t, authority, "word"), newCredentialFiles(t, stranger, "two words")
	secured := newFake(t, clusterList(), grpc.Creds(credentials.NewTLS(mutual)), needs("word"))
	plain := newFake(t, clusterList(), needs("word"))
	full := map[string]string{
		"TRESTLE_TLS_CA": files.ca, "TRESTLE_TLS_CRT": files.crt, "TRESTLE_TLS_KEY": files.key,
		"TRESTLE_TLS_SERVER_NAME": sim.ServerName, "TRESTLE_TOKEN_FILE": files.token,
	}
	for _, c := range []struct {
		what    string
		address string
		env     map[string]string
		args    []string
		code    int
		says    string
	}{
		{"with all of it", secured.addr, full, nil, exitOK, ""},
		{"by flags", secured.addr, nil, []string{
			"--tls-ca", files.ca, "--tls-crt", files.crt, "--tls-key", files.key, "--tls-server-name", sim.ServerName, "--token-file", files.token,
		}, exitOK, ""},
		{"without a token", secured.addr, full, []string{"--token-file", files.ca}, exitUsage, "no token"},
		{"in plain text, where TLS is spoken", secured.addr, nil, nil, exitUnreachable, "--tls-ca"},
		{"another authority", secured.addr, full, []string{"--tls-ca", other.ca}, exitUnreachable, "unknown authority"},
		{"another name", secured.addr, full, []string{"--tls-server-name", "other"}, exitUnreachable, "not other"},
		{"a token to this machine", plain.addr, nil, []string{"--token-file", files.token}, exitOK, ""},
		{"no token", plain.addr, nil, nil, exitRefused, "say who you are"},
		{"a token to another machine in plain text", "replica.example.com:8080", nil, []string{"--token-file", files.token}, exitUnreachable, "plain text"},
		{"a token of two words", plain.addr, nil, []string{"--token-file", other.token}, exitUsage, "one word"},
		{"a file that is not there", plain.addr, nil, []string{"--token-file", files.ca + "x"}, exitUsage, "--token-file"},
		{"a certificate without its key", plain.addr, nil, []string{"--tls-crt", files.crt}, exitUsage, "--tls-key"},
		{"another key", plain.addr, nil, []string{"--tls-crt", files.crt, "--tls-key", other.key}, exitUsage, "--tls-key"},
		{"an authority that is none", plain.addr, nil, []string{"--tls-ca", files.token}, exitUsage, "no certificate"},
		{"neither true nor false", plain.addr, map[string]string{"TRESTLE_TLS": "maybe"}, nil, exitUsage, "TRESTLE_TLS"},
		{"the authorities of the machine", secured.addr, map[string]string{"TRESTLE_TLS": "true"}, nil, exitUnreachable, "certificate"},
	} {
		got := callWith(t.Context(), c.address, c.env, append([]string{"clusters", "list"}, c.args...)...)
		got.says(t, c.what, c.code, c.says)
		if strings.Contains(got.out+got.err, "Bearer") {
			t.Errorf("%s: shows a token: %s", c.what, got.err)
		}
	}
}

func TestMakeAToken(t *testing.T) {
	got := call(t, "", "token", "olga", "--role", "operator", "-o", "json")
	var made struct{ Token, Line string }
	if err := json.Unmarshal([]byte(got.out), &made); err != nil || got.code != exitOK {
		t.Fatalf("%d, %v: %s", got.code, err, got.err)
	}
	tokens, err := access.ParseTokens([]byte(made.Line))
	if err != nil || len(tokens) != 1 || tokens[0].Name != "olga" || tokens[0].Role != access.Operator {
		t.Errorf("%q is read as %v, %v", made.Line, tokens, err)
	}
	if strings.Contains(made.Line, made.Token) || len(made.Token) < 32 {
		t.Errorf("the token is %q, its line %q", made.Token, made.Line)
	}
	if again := call(t, "", "token", "vera"); again.code != exitOK || !strings.Contains(again.out, "vera viewer sha256:") || strings.Contains(again.out, made.Token) {
		t.Errorf("%d: %s", again.code, again.out)
	}
	call(t, "", "token", "olga", "--role", "admin").says(t, "a role that is none", exitUsage, "viewer")
	call(t, "", "token", "a b").says(t, "a name of two words", exitUsage, "blank")
	call(t, "", "token").says(t, "no name", exitUsage, "NAME")
}
