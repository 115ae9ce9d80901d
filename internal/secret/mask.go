package secret

import (
	"net/url"
	"regexp"
	"strings"
)

const mask = "xxxxx"

// The names under which connection strings and query parameters carry what
// must not be seen.
const hiddenNames = `password|passwd|passphrase|pass|pwd|sslpassword|token|access_token|auth|api_key|apikey|key|secret|signature|sig`

var (
	queryValue   = regexp.MustCompile(`(?i)([?&;](?:[a-z0-9]+[_-])?(?:` + hiddenNames + `)=)[^&;#]*`)
	keywordValue = regexp.MustCompile(`(?i)(\b(?:[a-z0-9]+[_-])?(?:` + hiddenNames + `)\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:\\.|[^\s\\'])+)`)
)

// Mask returns address with what is secret in it replaced by xxxxx: the
// password before the host of a URL (of an HTTP URL without one the user name,
// which then is a key), query parameters such as password and
// token, and password=... in a connection string of keywords and values. A
// text that is malformed is masked too much rather than too little.
func Mask(address string) string {
	scheme, rest, isURL := strings.Cut(address, "://")
	if !isURL {
		return keywordValue.ReplaceAllString(address, "${1}"+mask)
	}

	// A password with a stray slash or at sign moves the end of the user part;
	// the last at sign is the end that hides the most. One in the query is the
	// query's own, unless the address makes no sense that way.
	end := strings.LastIndexByte(rest, '@')
	if _, err := url.Parse(address); err == nil {
		path := rest
		if i := strings.IndexAny(rest, "?#"); i >= 0 {
			path = rest[:i]
		}
		end = strings.LastIndexByte(path, '@')
	}
	user := ""
	if end >= 0 {
		user, rest = rest[:end], rest[end:]
		name, password, has := strings.Cut(user, ":")
		switch {
		case strings.HasPrefix(scheme, "http") && password == "":
			user = mask // services that take a key take it as the name
		case has:
			user = name + ":" + mask
		}
	}
	return scheme + "://" + user + queryValue.ReplaceAllString(rest, "${1}"+mask)
}
