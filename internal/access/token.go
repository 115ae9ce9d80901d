package access

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/trestle-bridge/trestle/internal/secret"
)

const (
	// tokenMark shows those who find a token in a text what it is.
	tokenMark  = "trestle_"
	hashMark   = "sha256:"
	maxTokens  = 1000
	maxFile    = 1 << 20
	maxName    = 128
	maxToken   = 1024
	tokenEvery = 10 * time.Second
)

// Token is one line of a file of tokens. The token itself is not in it.
type Token struct {
	Name string
	Role Role
	hash [sha256.Size]byte
}

// NewToken makes a token and the line for it. It holds more than 128 random
// bits, so its hash needs neither salt nor a slow function.
func NewToken(name string, role Role) (secret.String, Token, error) {
	text := tokenMark + rand.Text() + rand.Text()[:6]
	t := Token{Name: name, Role: role, hash: sha256.Sum256([]byte(text))}
	if role == Nobody {
		return secret.String{}, Token{}, errors.New("the role is neither viewer nor operator")
	}
	if err := checkTokenName(name); err != nil {
		return secret.String{}, Token{}, fmt.Errorf("the name %.140q %w", name, err)
	}
	return secret.New(text), t, nil
}

// Line is the token as the file has it.
func (t Token) Line() string {
	return fmt.Sprintf("%s %s %s%s", t.Name, t.Role, hashMark, hex.EncodeToString(t.hash[:]))
}

func checkTokenName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > maxName:
		return fmt.Errorf("has more than %d bytes", maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return errors.New("holds a blank or a character that cannot be seen")
	case name[0] == '#':
		return errors.New("begins with #, as comments do")
	}
	return nil
}

// ParseTokens reads a file of tokens: a line for each with name, role and hash;
// empty lines and those that begin with # are passed over. A name may have
// several tokens, of one role, so that one can be replaced by another. An error
// names a line and quotes nothing, for the line may hold a token.
func ParseTokens(content []byte) ([]Token, error) {
	var tokens []Token
	roles := make(map[string]Role)
	hashes := make(map[[sha256.Size]byte]int)
	for number, line := range bytes.Split(content, []byte("\n")) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		wrong := func(what string, args ...any) error {
			return fmt.Errorf("line %d %s; a line is NAME ROLE sha256:HASH, as trestlectl token makes it", number+1, fmt.Sprintf(what, args...))
		}
		if len(fields) != 3 {
			return nil, wrong("has %d parts and not 3", len(fields))
		}
		t := Token{Name: fields[0]}
		if err := checkTokenName(t.Name); err != nil {
			return nil, wrong("has a name that %v", err)
		}
		var err error
		if t.Role, err = ParseRole(fields[1]); err != nil {
			return nil, wrong("has a role that %v", err)
		}
		digits, marked := strings.CutPrefix(fields[2], hashMark)
		hash, err := hex.DecodeString(digits)
		if !marked || err != nil || len(hash) != len(t.hash) {
			return nil, wrong("has no hash of a token at its end")
		}
		copy(t.hash[:], hash)
		if before := roles[t.Name]; before != Nobody && before != t.Role {
			return nil, wrong("gives a name another role than a line before it")
		}
		if before, twice := hashes[t.hash]; twice {
			return nil, wrong("has the token of line %d", before)
		}
		roles[t.Name], hashes[t.hash] = t.Role, number+1
		if tokens = append(tokens, t); len(tokens) > maxTokens {
			return nil, fmt.Errorf("there are more than %d tokens", maxTokens)
		}
	}
	return tokens, nil
}

// tokenFile is a file of tokens as it could be read last.
type tokenFile struct {
	path   string
	log    *slog.Logger
	tokens atomic.Pointer[[]Token]
}

func newTokenFile(path string, log *slog.Logger) (*tokenFile, error) {
	f := &tokenFile{path: path, log: log}
	tokens, err := f.read()
	if err != nil {
		return nil, err
	}
	f.tokens.Store(&tokens)
	return f, nil
}

func (f *tokenFile) read() ([]Token, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("read the tokens: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	var tokens []Token
	if err == nil {
		tokens, err = ParseTokens(content)
	}
	if err != nil {
		return nil, fmt.Errorf("read the tokens in %s: %w", f.path, err)
	}
	return tokens, nil
}

func (f *tokenFile) run(ctx context.Context) error {
	said := ""
	for {
		timer := time.NewTimer(tokenEvery*9/10 + mathrand.N(tokenEvery/5))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		said = f.look(said)
	}
}

// look reads the file; said is what was complained of last.
func (f *tokenFile) look(said string) string {
	tokens, err := f.read()
	if err != nil {
		if err.Error() != said {
			f.log.Error("the file of tokens cannot be used; the tokens read before stay in force", "error", err)
		}
		return err.Error()
	}
	if old := f.tokens.Swap(&tokens); !equal(*old, tokens) {
		f.log.Info("the file of tokens was read anew", "path", f.path, "tokens", len(tokens))
	}
	return ""
}

func equal(a, b []Token) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// find compares with every token, in the same time wherever it is and whether
// it is there.
func (f *tokenFile) find(token string) (who Identity, known bool) {
	if len(token) > maxToken {
		return Identity{}, false
	}
	hash := sha256.Sum256([]byte(token))
	at := -1
	tokens := *f.tokens.Load()
	for i := range tokens {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], tokens[i].hash[:]), i, at)
	}
	if at < 0 {
		return Identity{}, false
	}
	return Identity{Name: tokens[at].Name, Role: tokens[at].Role, Proof: "token"}, true
}
