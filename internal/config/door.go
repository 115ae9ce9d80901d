package config

import (
	"fmt"
	"net"

	"github.com/trestle-bridge/trestle/internal/config/settings"
)

// checkDoor checks what is said of who may call. A key that has a problem
// already is not missing.
func (c *Config) checkDoor(known []settings.Problem) []settings.Problem {
	var problems []settings.Problem
	add := func(key, what, allowed string) { problems = append(problems, c.at(key, what, allowed)) }
	s := &c.ClusterService
	switch files := s.TLS; {
	case files.Crt != "" && files.Key == "":
		add("clusterService.tls.crt", "stands without clusterService.tls.key", "both or none")
	case files.Key != "" && files.Crt == "":
		add("clusterService.tls.key", "stands without clusterService.tls.crt", "both or none")
	case files.CA != "" && files.Crt == "":
		add("clusterService.tls.ca", "stands without a certificate of our own", "together with clusterService.tls.crt and clusterService.tls.key")
	case files.CA != "" && len(s.Roles) == 0:
		add("clusterService.tls.ca", "stands without clusterService.roles, so that no client certificate has a role", "both or none")
	case files.CA == "" && len(s.Roles) > 0:
		add(rolesKey, "stands without clusterService.tls.ca, so that no client certificate is believed", "both or none")
	}
	first := map[string]int{}
	for i, r := range s.Roles {
		missing := c.inRecord(&problems, known, fmt.Sprintf("%s[%d]", rolesKey, i))
		if r.Name == "" {
			missing("name", "is missing", "a DNS name, URI, email address or common name of a certificate")
		} else if other, twice := first[r.Name]; twice {
			missing("name", fmt.Sprintf("%q is the name of %s[%d] too", r.Name, rolesKey, other), "a name that no other has")
		} else {
			first[r.Name] = i
		}
		if r.Role == "" {
			missing("role", "is missing", "one of viewer, operator")
		}
	}
	if what := s.OpenTo(); what != "" && !s.Insecure && reachable(s.Host) {
		add("clusterService.host", fmt.Sprintf("%q is reached by others, and %s", s.Host, what), HowToClose)
	}
	return problems
}

// HowToClose is what may be done about an address that is open to others.
const HowToClose = "a loopback address; or clusterService.tls with clusterService.tokenFile or clusterService.roles; or clusterService.insecure: true, which leaves it open"

// OpenTo says what is wrong with serving others in this way, empty for nothing.
func (s *ClusterService) OpenTo() string {
	switch {
	case s.TLS.Crt == "":
		return "calls are not encrypted"
	case s.TokenFile == "" && len(s.Roles) == 0:
		return "nobody has to say who they are"
	}
	return ""
}

// reachable says whether others certainly reach a host on which we listen. A
// name is looked up when we do.
func reachable(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && !ip.IsLoopback()
}
