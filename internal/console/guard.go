package console

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// contentPolicy lets the page use what this server serves, and nothing else:
// no inline script or style, no other site, no text that becomes markup.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guard keeps other sites out that make a browser of an operator ask us:
//
//   - by a name of theirs that points to our address (DNS rebinding): only names
//     that are ours are answered;
//   - by a request from a page of theirs, which browsers mark: refused, but for
//     a link to the page itself. Changes need the same origin also where an old
//     browser marks only that.
//
// Programs that are no browsers mark nothing, and are let through.
func (s *Server) guard(next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Add("Vary", "Accept, Sec-Fetch-Site, Sec-Fetch-Mode")
		if !s.ours(r.Host) {
			refuse(w, r, http.StatusMisdirectedRequest, fmt.Sprintf(
				"the console does not answer to the name %q: use localhost or an IP address, or add the name to console.hosts", r.Host))
			return
		}
		switch r.Header.Get("Sec-Fetch-Site") {
		case "", "same-origin", "none":
		default:
			link := r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && (r.URL.Path == "/" || r.URL.Path == "/cluster")
			if !link {
				refuse(w, r, http.StatusForbidden, "the console does not answer to pages of other sites")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// ours says whether a Host header names this server. An address cannot be
// pointed elsewhere, as a name can, and localhost is nobody else's.
func (s *Server) ours(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if net.ParseIP(strings.Trim(host, "[]")) != nil || host == "localhost" {
		return true
	}
	return slices.ContainsFunc(s.cfg.Hosts, func(known string) bool { return strings.EqualFold(known, host) })
}
