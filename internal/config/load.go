package config

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/trestle-bridge/trestle/internal/config/settings"
	"github.com/trestle-bridge/trestle/internal/secret"
)

// PathVariable names the file where no flag does.
const PathVariable = "TRESTLE_CONFIG"

// Need is something that a command cannot do without.
type Need string

// What may be needed.
const (
	NeedPostgres Need = "postgres.url"
	NeedRedis    Need = "redis.url"
	NeedEtcd     Need = "etcd.endpoints"
)

// Input is where a configuration comes from. The zero value is the defaults.
type Input struct {
	// Path of the file; empty = what TRESTLE_CONFIG says, else no file.
	Path string
	// LookupEnv finds a variable; nil = there are none. A variable that is
	// set to nothing counts as absent.
	LookupEnv func(name string) (string, bool)
	// Flags are those that AddFlags made; nil = none.
	Flags *pflag.FlagSet
	// Needs must be given by one of the sources.
	Needs []Need
	// Version is the revision of this replica where none is configured.
	Version string
}

// Load reads, merges and checks. All problems come back in one
// *settings.Error; the Config is then what could be understood, fit to be
// shown and for nothing else. The warnings are for the log.
func Load(in Input) (cfg *Config, warnings []settings.Problem, err error) {
	c := Default()
	path := in.Path
	if path == "" && in.LookupEnv != nil {
		path, _ = in.LookupEnv(PathVariable)
	}
	var problems []settings.Problem
	c.sources, warnings, problems = settings.Read(keys(&c), settings.Input{Path: path, LookupEnv: in.LookupEnv, Flags: in.Flags})
	problems = append(problems, c.checkBridges(problems)...)
	problems = append(problems, c.checkNeeds(in.Needs)...)
	problems = append(problems, c.checkTogether()...)
	problems = append(problems, c.checkDoor(problems)...)
	if c.Replica.ID == "" {
		c.Replica.ID = newReplicaID()
	}
	if c.Replica.Revision == "" {
		c.Replica.Revision = in.Version
	}
	if len(problems) > 0 {
		return &c, warnings, &settings.Error{Problems: problems}
	}
	return &c, warnings, nil
}

// AddFlags adds a flag for every key that may be set by one; its name is the
// path of the key.
func AddFlags(flags *pflag.FlagSet) {
	c := Default()
	settings.AddFlags(flags, keys(&c))
}

// Print writes what is in force as YAML, passwords masked, behind every value
// where it comes from.
func (c *Config) Print(w io.Writer) error {
	return settings.Print(w, keys(c), c.sources)
}

// at is a problem of a key, at the place where the key was set.
func (c *Config) at(key, what, allowed string) settings.Problem {
	s := c.sources[key]
	return settings.Problem{Source: s.Name, Line: s.Line, Key: key, What: what, Allowed: allowed}
}

// inRecord gives a function that adds problems of a record's fields, at the place
// of the record. A field that has a problem already, or whose record has, is left
// out.
func (c *Config) inRecord(problems *[]settings.Problem, known []settings.Problem, record string) func(name, what, allowed string) {
	return func(name, what, allowed string) {
		key := record + "." + name
		if slices.ContainsFunc(known, func(p settings.Problem) bool { return p.Key == key || p.Key == record }) {
			return
		}
		p := c.at(record, what, allowed)
		p.Key = key
		*problems = append(*problems, p)
	}
}

// checkBridges finds what is missing from the static clusters, or there
// twice. A key that has a problem already is not missing.
func (c *Config) checkBridges(known []settings.Problem) []settings.Problem {
	var problems []settings.Problem
	first := map[string]int{}
	for i, b := range c.StaticBridges {
		add := c.inRecord(&problems, known, fmt.Sprintf("%s[%d]", bridgesKey, i))
		if b.Name == "" {
			add("name", "is missing", whatName)
		} else if other, twice := first[b.Name]; twice {
			add("name", fmt.Sprintf("%q is the name of %s[%d] too", b.Name, bridgesKey, other), "a name that no other has")
		} else {
			first[b.Name] = i
		}
		if b.URL == "" {
			add("url", "is missing", whatTarget)
		}
		if !b.TLS.IsZero() {
			for _, file := range []struct{ name, path string }{{"tls.ca", b.TLS.CA}, {"tls.crt", b.TLS.Crt}, {"tls.key", b.TLS.Key}} {
				if file.path == "" {
					add(file.name, "is missing", "the path of a PEM file, or no tls at all")
				}
			}
		}
	}
	return problems
}

func (c *Config) checkNeeds(needs []Need) []settings.Problem {
	var problems []settings.Problem
	missing := func(key, env, allowed string) {
		problems = append(problems, settings.Problem{
			Key: key, What: fmt.Sprintf("is required, in the file, as %s or as --%s", env, key), Allowed: allowed,
		})
	}
	for _, need := range needs {
		switch {
		case need == NeedPostgres && c.Postgres.URL.IsZero():
			missing("postgres.url", "TRESTLE_POSTGRES_URL", whatPostgres)
		case need == NeedRedis && c.Redis.URL.IsZero() && c.Redis.Address == "":
			missing("redis.url", "TRESTLE_REDIS_URL", whatRedis+", or redis.address as host:port")
		case need == NeedEtcd && len(c.Etcd.Endpoints) == 0:
			missing("etcd.endpoints", "TRESTLE_ETCD_ENDPOINTS", whatEtcd)
		}
		if need == NeedEtcd && c.Peer.Advertise == "" && everyAddress(c.Peer.Listen) {
			problems = append(problems, c.at("peer.advertise", "is missing, and peer.listen is every address of this machine",
				"the host:port at which other replicas reach this one"))
		}
	}
	return problems
}

// everyAddress says whether to listen there is to listen on all interfaces.
func everyAddress(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

// loopback says whether to listen there is to be reached by this machine alone.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback())
}

// checkTogether checks what concerns several keys, and settles Redis.
func (c *Config) checkTogether() []settings.Problem {
	var problems []settings.Problem
	add := func(key, what, allowed string) { problems = append(problems, c.at(key, what, allowed)) }

	if what := c.settleRedis(); what != "" {
		add("redis.url", what, "one of redis.url and redis.address")
	}
	for _, pair := range []struct {
		of    string
		files TLSFiles
	}{{"etcd.tls", c.Etcd.TLS}, {"redis.tls", c.Redis.TLS}} {
		if pair.files.Crt != "" && pair.files.Key == "" {
			add(pair.of+".crt", "stands without "+pair.of+".key", "both or none")
		} else if pair.files.Key != "" && pair.files.Crt == "" {
			add(pair.of+".key", "stands without "+pair.of+".crt", "both or none")
		}
	}
	if u, err := url.Parse(c.Redis.URL.Reveal()); !c.Redis.TLS.IsZero() && err == nil && u.Scheme == "unix" {
		add("redis.tls.ca", "stands beside a socket in redis.url", "a redis.url with redis or rediss, or redis.address")
	}
	if c.Console.Address != "" && !c.Console.Exposed && !loopback(c.Console.Address) {
		add("console.address", fmt.Sprintf("%q is reached by other machines, and the console has no login", c.Console.Address),
			"an address of this machine alone (localhost:8090), or console.exposed as true beside it")
	}
	if p := c.Pipeline; p.MaxWaitingPerCluster > p.MaxWaiting {
		add("pipeline.maxWaitingPerCluster", fmt.Sprintf("%d is above pipeline.maxWaiting", p.MaxWaitingPerCluster),
			fmt.Sprintf("at most %d", p.MaxWaiting))
	}
	if u := c.Upstream; u.MaxSnapshotBytes > u.SnapshotBudgetBytes {
		add("upstream.maxSnapshotBytes", fmt.Sprintf("%s is above upstream.snapshotBudgetBytes", u.MaxSnapshotBytes),
			fmt.Sprintf("at most %s", u.SnapshotBudgetBytes))
	}
	if n := c.Postgres.MaxConnections; n > 0 && n <= c.Pipeline.Lanes {
		add("postgres.maxConnections", fmt.Sprintf("%d leaves nothing beside the %d lanes", n, c.Pipeline.Lanes),
			fmt.Sprintf("0 (as many as needed), or more than %d", c.Pipeline.Lanes))
	}
	return problems
}

// settleRedis makes Server of what is given. The file of an existing
// installation gives an address; a URL from a higher source takes its place.
func (c *Config) settleRedis() (problem string) {
	r := &c.Redis
	weight := func(key string) int { return c.sources[key].Weight }
	if !r.URL.IsZero() && r.Address != "" {
		switch u, a := weight("redis.url"), weight("redis.address"); {
		case u > a:
			r.Address = ""
		case a > u:
			r.URL = secret.URL{}
		default:
			return "stands beside redis.address"
		}
	}

	server := &url.URL{Scheme: "redis", Host: r.Address}
	switch {
	case !r.URL.IsZero():
		u, err := url.Parse(r.URL.Reveal())
		if err != nil {
			return "is not a URL"
		}
		server = u
	case r.Address == "":
		return ""
	}
	if query := server.Query(); query.Has("master_name") {
		// Of a URL for Sentinel the user is one of the Sentinels; that of Redis
		// itself stands behind the question mark.
		if r.Username != "" && (!query.Has("username") || weight("redis.username") > weight("redis.url")) {
			query.Set("username", r.Username)
		}
		if !r.Password.IsZero() && (!query.Has("password") || weight("redis.password") > weight("redis.url")) {
			query.Set("password", r.Password.Reveal())
		}
		server.RawQuery = query.Encode()
		r.Server = secret.NewURL(server.String())
		return ""
	}
	name := server.User.Username()
	password, _ := server.User.Password()
	// What a URL says of its user yields to a higher source only.
	if r.Username != "" && (server.User == nil || weight("redis.username") > weight("redis.url")) {
		name = r.Username
	}
	if !r.Password.IsZero() && (password == "" || weight("redis.password") > weight("redis.url")) {
		password = r.Password.Reveal()
	}
	switch {
	case password != "":
		server.User = url.UserPassword(name, password)
	case name != "":
		server.User = url.User(name)
	}
	r.Server = secret.NewURL(server.String())
	return ""
}

// newReplicaID is new at every start: two processes on one host, and the
// process before a restart and the one after it, are different replicas.
func newReplicaID() string {
	host, err := os.Hostname()
	if err != nil || host == "" || replicaName(host) != nil {
		host = "replica"
	}
	var suffix [3]byte
	rand.Read(suffix[:]) // never fails
	return host[:min(len(host), 150)] + "-" + hex.EncodeToString(suffix[:])
}
