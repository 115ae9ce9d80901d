package secret_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/trestle-bridge/trestle/internal/secret"
)

const (
	password = "hunter2-Ünïcode"
	address  = "postgres://trestle:" + password + "@db.example:5432/trestle?sslmode=disable"
)

type exported struct {
	Name     string
	Password secret.String
	URL      secret.URL
}

type unexported struct {
	name     string
	password secret.String
	url      secret.URL
}

// holders is every way in which a secret may lie inside of what is printed.
func holders() map[string]any {
	p, u := secret.New(password), secret.NewURL(address)
	e := exported{Name: "n", Password: p, URL: u}
	n := unexported{name: "n", password: p, url: u}
	return map[string]any{
		"string":                  p,
		"pointer":                 &p,
		"url":                     u,
		"pointer to url":          &u,
		"struct":                  e,
		"pointer to struct":       &e,
		"unexported":              n,
		"pointer to unexported":   &n,
		"slice":                   []secret.String{p},
		"slice of any":            []any{p, u, &e, n},
		"map":                     map[string]secret.String{"a": p},
		"map key":                 map[secret.String]secret.URL{p: u},
		"nested":                  struct{ A struct{ B *exported } }{struct{ B *exported }{&e}},
		"nested unexported":       struct{ a struct{ b unexported } }{struct{ b unexported }{n}},
		"wrapped error":           fmt.Errorf("connect to %s with %s: %w", u, p, errors.New("refused")),
		"array":                   [1]secret.String{p},
		"interface in unexported": struct{ v any }{p},
	}
}

// leaks says whether the password can be read out of what was written, in
// plain or as hexadecimal digits.
func leaks(out string) bool {
	lower := strings.ToLower(out)
	return strings.Contains(out, password) ||
		strings.Contains(out, "hunter2") ||
		strings.Contains(lower, fmt.Sprintf("%x", "hunter2")) ||
		strings.Contains(lower, fmt.Sprintf("% x", "hunter2")) ||
		strings.Contains(lower, "0x68, 0x75, 0x6e")
}

func TestNothingPrintsASecret(t *testing.T) {
	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%t", "%10s", "%-30v", "%.3s", "%U", "%o", "%b", "%e", "%T", "%p", "%w", "%c"}
	for name, v := range holders() {
		for _, verb := range verbs {
			if out := fmt.Sprintf(verb, v); leaks(out) {
				t.Errorf("%s printed with %s shows the password: %s", name, verb, out)
			}
		}
		for _, out := range []string{fmt.Sprint(v), fmt.Sprintln(v)} {
			if leaks(out) {
				t.Errorf("%s shows the password: %s", name, out)
			}
		}
	}
}

func TestNothingLogsASecret(t *testing.T) {
	for name, v := range holders() {
		var out bytes.Buffer
		options := &slog.HandlerOptions{Level: slog.LevelDebug}
		for _, handler := range []slog.Handler{slog.NewTextHandler(&out, options), slog.NewJSONHandler(&out, options)} {
			log := slog.New(handler)
			log.Info("plain", "value", v)
			log.With("value", v).WithGroup("group").Info("with", slog.Group("inner", "value", v))
		}
		if leaks(out.String()) {
			t.Errorf("%s logged shows the password: %s", name, out.String())
		}
	}
}

func TestNothingEncodesASecret(t *testing.T) {
	for name, v := range holders() {
		if out, err := json.Marshal(v); err == nil && leaks(string(out)) {
			t.Errorf("%s as JSON shows the password: %s", name, out)
		}
		if name == "interface in unexported" || name == "wrapped error" {
			continue // nothing in them is encoded
		}
		if out, err := yaml.Marshal(v); err == nil && leaks(string(out)) {
			t.Errorf("%s as YAML shows the password: %s", name, out)
		}
	}

	out, err := json.Marshal(exported{Name: "n", Password: secret.New(password), URL: secret.NewURL(address)})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Name":"n","Password":"[redacted]","URL":"postgres://trestle:xxxxx@db.example:5432/trestle?sslmode=disable"}`
	if string(out) != want {
		t.Errorf("JSON is %s, want %s", out, want)
	}
}

func TestStandIns(t *testing.T) {
	s := secret.New(password)
	for verb, want := range map[string]string{
		"%v": "[redacted]", "%s": "[redacted]", "%d": "[redacted]",
		"%q": `"[redacted]"`, "%12s": "  [redacted]", "%#v": `secret.String("[redacted]")`,
		"%x": fmt.Sprintf("%x", "[redacted]"),
	} {
		if got := fmt.Sprintf(verb, s); got != want {
			t.Errorf("%s gives %s, want %s", verb, got, want)
		}
	}
	if got := fmt.Sprint(secret.String{}, secret.URL{}); strings.TrimSpace(got) != "" {
		t.Errorf("empty secrets print %q", got)
	}
	if got := fmt.Sprintf("%#v", secret.NewURL("redis://:pw@r:1")); got != `secret.URL("redis://:xxxxx@r:1")` {
		t.Errorf("%%#v of a URL is %s", got)
	}
}

func TestReveal(t *testing.T) {
	if got := secret.New(password).Reveal(); got != password {
		t.Errorf("revealed %q", got)
	}
	if got := secret.NewURL(address).Reveal(); got != address {
		t.Errorf("revealed %q", got)
	}
	if !secret.New("").IsZero() || !secret.NewURL("").IsZero() || secret.New("a").IsZero() || secret.NewURL("a").IsZero() {
		t.Error("IsZero is wrong")
	}
	if !secret.New("a").Equal(secret.New("a")) || secret.New("a").Equal(secret.New("b")) || !secret.NewURL("a").Equal(secret.NewURL("a")) {
		t.Error("Equal is wrong")
	}
}

func TestMask(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"postgres", "postgres://user:pw@host/db", "postgres://user:xxxxx@host/db"},
		{"no password", "postgres://user@host/db", "postgres://user@host/db"},
		{"no user", "postgres://host:5432/db?sslmode=disable", "postgres://host:5432/db?sslmode=disable"},
		{"several hosts", "postgresql://u:pw@h1:5432,h2:5433/db", "postgresql://u:xxxxx@h1:5432,h2:5433/db"},
		{"query", "postgres://host/db?user=u&password=pw&sslmode=require", "postgres://host/db?user=u&password=xxxxx&sslmode=require"},
		{"query, other case", "postgres://host/db?PassWord=pw", "postgres://host/db?PassWord=xxxxx"},
		{"sslpassword", "postgres://host/db?sslpassword=pw#x", "postgres://host/db?sslpassword=xxxxx#x"},
		{"at sign in the query", "postgres://u:pw@host/db?application_name=a@b", "postgres://u:xxxxx@host/db?application_name=a@b"},
		{"at sign in the password", "postgres://u:p@w@host/db", "postgres://u:xxxxx@host/db"},
		{"slash in the password", "postgres://u:p/w@host/db", "postgres://u:xxxxx@host/db"},
		{"slash after digits", "postgres://u:1/w@host/db", "postgres://u:xxxxx@host/db"},
		{"question mark in the password", "postgres://u:p?w@host/db", "postgres://u:xxxxx@host/db"},
		{"percent in the password", "postgres://u:100%@host/db", "postgres://u:xxxxx@host/db"},
		{"colons in the password", "postgres://u:a:b:c@host/db", "postgres://u:xxxxx@host/db"},
		{"redis", "redis://:pw@cache:6379/0", "redis://:xxxxx@cache:6379/0"},
		{"rediss with user", "rediss://u:pw@cache:6379", "rediss://u:xxxxx@cache:6379"},
		{"redis, nothing to hide", "redis://cache:6379", "redis://cache:6379"},
		{"http sink", "https://key:@api.example/v1/track?write_key=abc", "https://xxxxx@api.example/v1/track?write_key=xxxxx"},
		{"http key as the user", "https://key@api.example/v1", "https://xxxxx@api.example/v1"},
		{"keywords", "host=db user=u password=pw dbname=d", "host=db user=u password=xxxxx dbname=d"},
		{"keywords, quoted", `host=db password='p \' w' dbname=d`, "host=db password=xxxxx dbname=d"},
		{"keywords, spaces", "host=db password = pw dbname=d", "host=db password = xxxxx dbname=d"},
		{"keywords, escaped blank", `password=p\ w dbname=d`, "password=xxxxx dbname=d"},
		{"keywords, quote not closed", "dbname=d password='p w", "dbname=d password=xxxxx"},
		{"keywords, last", "password=pw", "password=xxxxx"},
		{"plain address", "cache:6379", "cache:6379"},
		{"empty", "", ""},
	} {
		if got := secret.Mask(c.in); got != c.want {
			t.Errorf("%s: %q became %q, want %q", c.name, c.in, got, c.want)
		}
	}
}

func FuzzMask(f *testing.F) {
	f.Add("u", "pw", "host/db?a=b")
	f.Add("", "p@w/x?y#z", "host")
	f.Fuzz(func(t *testing.T, user, pass, rest string) {
		if strings.ContainsAny(user, ":@/?#") || strings.ContainsAny(rest, "@") {
			return
		}
		// A password of markers cannot come out of the rest or the mask.
		marked := "\x02" + pass + "\x03"
		if strings.ContainsAny(user+rest, "\x02\x03") || strings.Contains(pass, "@") {
			return
		}
		got := secret.Mask("postgres://" + user + ":" + marked + "@" + rest)
		if strings.Contains(got, "\x02") || strings.Contains(got, "\x03") {
			t.Errorf("password shows in %q", got)
		}
	})
}
