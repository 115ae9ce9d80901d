package config

import "github.com/trestle-bridge/trestle/internal/config/settings"

const (
	day  = 86400
	year = 365 * day
)

const (
	bridgesKey = "staticBridges"
	rolesKey   = "clusterService.roles"
)

// keys is the table of all settings, bound to c, in the order in which they
// are printed. A key without a value is one of the predecessor's that means
// nothing here.
func keys(c *Config) []settings.Key {
	return []settings.Key{
		{Path: "installation", Env: "TRESTLE_INSTALLATION", Usage: "name of this installation",
			Value: settings.Text{To: &c.Installation, What: whatName, Check: anyName}},
		{Path: bridgesKey, Usage: "clusters that need no registration", Value: settings.Records{
			Append: func() []settings.Key {
				c.StaticBridges = append(c.StaticBridges, defaultBridge())
				return bridgeKeys(&c.StaticBridges[len(c.StaticBridges)-1])
			},
			Rows: func() [][]settings.Key {
				var rows [][]settings.Key
				for i := range c.StaticBridges {
					rows = append(rows, bridgeKeys(&c.StaticBridges[i]))
				}
				return rows
			},
		}},
		{Path: "allowPlaintextClusters", Env: "TRESTLE_ALLOW_PLAINTEXT_CLUSTERS", Usage: "let clusters be registered without TLS",
			Value: settings.Truth{To: &c.AllowPlaintextClusters}},

		{Path: "clusterService.host", Usage: "host on which gRPC listens",
			Value: settings.Text{To: &c.ClusterService.Host, What: whatText, Check: anyText}},
		{Path: "clusterService.port", Usage: "port on which gRPC listens",
			Value: settings.Whole{To: &c.ClusterService.Port, Min: 0, Max: 65535}},
		{Path: "clusterService.address", Env: "TRESTLE_GRPC_ADDRESS", Usage: "host and port on which gRPC listens",
			Value:  settings.HostPort{Host: &c.ClusterService.Host, Port: &c.ClusterService.Port, What: whatListen, Check: listenAddress},
			NoFile: true, Sets: []string{"clusterService.host", "clusterService.port"}},
		{Path: "clusterService.tls.ca", Env: "TRESTLE_GRPC_TLS_CA", Usage: "PEM file with the authority of gRPC clients' certificates",
			Value: settings.Text{To: &c.ClusterService.TLS.CA, What: whatText, Check: anyText}},
		{Path: "clusterService.tls.crt", Env: "TRESTLE_GRPC_TLS_CRT", Usage: "PEM file with the certificate of gRPC",
			Value: settings.Text{To: &c.ClusterService.TLS.Crt, What: whatText, Check: anyText}},
		{Path: "clusterService.tls.key", Env: "TRESTLE_GRPC_TLS_KEY", Usage: "PEM file with its key",
			Value: settings.Text{To: &c.ClusterService.TLS.Key, What: whatText, Check: anyText}},
		{Path: "clusterService.insecure", Env: "TRESTLE_GRPC_INSECURE", Usage: "serve gRPC to others without TLS or without asking who calls",
			Value: settings.Truth{To: &c.ClusterService.Insecure}},
		{Path: "clusterService.tokenFile", Env: "TRESTLE_GRPC_TOKEN_FILE", Usage: "file with the tokens of gRPC callers (trestlectl token)",
			Value: settings.Text{To: &c.ClusterService.TokenFile, What: whatText, Check: anyText}},
		{Path: rolesKey, Usage: "roles of names in gRPC clients' certificates", Value: settings.Records{
			Append: func() []settings.Key {
				c.ClusterService.Roles = append(c.ClusterService.Roles, CertificateRole{})
				return roleKeys(&c.ClusterService.Roles[len(c.ClusterService.Roles)-1])
			},
			Rows: func() [][]settings.Key {
				var rows [][]settings.Key
				for i := range c.ClusterService.Roles {
					rows = append(rows, roleKeys(&c.ClusterService.Roles[i]))
				}
				return rows
			},
		}},
		{Path: "clusterService.callsPerSecond", Usage: "gRPC calls that one caller may make, twice as many at once",
			Value: settings.Fraction{To: &c.ClusterService.CallsPerSecond, Min: 0.1, Max: 100_000}},
		{Path: "clusterService.callsAtOnce", Usage: "gRPC calls of one caller that may be under way",
			Value: settings.Whole{To: &c.ClusterService.CallsAtOnce, Min: 1, Max: 256}},
		{Path: "clusterService.maxRequestBytes", Usage: "size of one gRPC request",
			Value: settings.Size{To: &c.ClusterService.MaxRequestBytes, Min: 16 * settings.KiB, Max: 64 * settings.MiB}},
		{Path: "http.address", Env: "TRESTLE_HTTP_ADDRESS", Usage: "where metrics and health are served",
			Value: settings.Text{To: &c.HTTP.Address, What: whatListen, Check: listenAddress}},
		{Path: "console.address", Env: "TRESTLE_CONSOLE_ADDRESS", Usage: "where the console is served; empty: nowhere",
			Value: settings.Text{To: &c.Console.Address, What: whatConsole, Check: consoleAddress}},
		{Path: "console.exposed", Env: "TRESTLE_CONSOLE_EXPOSED", Usage: "let the console, which has no login, be reached by other machines",
			Value: settings.Truth{To: &c.Console.Exposed}},
		{Path: "console.hosts", Env: "TRESTLE_CONSOLE_HOSTS", Usage: "names that the console answers to beside localhost and IP addresses, separated by commas",
			Value: settings.List{To: &c.Console.Hosts, What: whatHosts, Check: hostName}},
		{Path: "peer.listen", Env: "TRESTLE_PEER_LISTEN", Usage: "where other replicas reach this one",
			Value: settings.Text{To: &c.Peer.Listen, What: whatListen, Check: listenAddress}},
		{Path: "peer.advertise", Env: "TRESTLE_PEER_ADVERTISE", Usage: "address that other replicas are told; empty: what it listens on",
			Value: settings.Text{To: &c.Peer.Advertise, What: whatAddress, Check: peerAddress}},

		{Path: "postgres.url", Env: "TRESTLE_POSTGRES_URL", Usage: "the database",
			Value: settings.Masked{To: &c.Postgres.URL, What: whatPostgres, Check: postgresURL}},
		{Path: "postgres.maxConnections", Env: "TRESTLE_POSTGRES_MAX_CONNECTIONS", Usage: "size of the pool; 0: one a lane and four more",
			Value: settings.Whole{To: &c.Postgres.MaxConnections, Min: 0, Max: 1000}},
		{Path: "postgres.statementTimeoutSeconds", Env: "TRESTLE_POSTGRES_STATEMENT_TIMEOUT_SECONDS", Usage: "time limit of one statement",
			Value: settings.Seconds{To: &c.Postgres.StatementTimeout, Min: 0.1, Max: 3600}},
		{Path: "redis.address", Usage: "Redis as host:port",
			Value: settings.Text{To: &c.Redis.Address, What: whatAddress, Check: serverAddress}},
		{Path: "redis.url", Env: "TRESTLE_REDIS_URL", Usage: "Redis as a URL",
			Value: settings.Masked{To: &c.Redis.URL, What: whatRedis, Check: redisURL}},
		{Path: "redis.username", Env: "REDIS_USERNAME", Usage: "user at Redis",
			Value: settings.Text{To: &c.Redis.Username, What: whatText, Check: anyText}},
		{Path: "redis.password", Env: "REDIS_PASSWORD", Usage: "password at Redis", NoFlag: true,
			Value: settings.Hidden{To: &c.Redis.Password}},
		{Path: "redis.tls.ca", Usage: "PEM file with the authority of Redis; without it the machine's are trusted",
			Value: settings.Text{To: &c.Redis.TLS.CA, What: whatText, Check: anyText}},
		{Path: "redis.tls.crt", Usage: "PEM file with our certificate for Redis",
			Value: settings.Text{To: &c.Redis.TLS.Crt, What: whatText, Check: anyText}},
		{Path: "redis.tls.key", Usage: "PEM file with our key for Redis",
			Value: settings.Text{To: &c.Redis.TLS.Key, What: whatText, Check: anyText}},
		{Path: "etcd.endpoints", Env: "TRESTLE_ETCD_ENDPOINTS", Usage: "etcd's addresses, separated by commas",
			Value: settings.List{To: &c.Etcd.Endpoints, What: whatEtcd, Check: etcdEndpoint}},
		{Path: "etcd.prefix", Env: "TRESTLE_ETCD_PREFIX", Usage: "beginning of all keys in etcd",
			Value: settings.Text{To: &c.Etcd.Prefix, What: whatPrefix, Check: etcdPrefix}},
		{Path: "etcd.leaseSeconds", Env: "TRESTLE_ETCD_LEASE_SECONDS", Usage: "time after which a silent replica is dead",
			Value: settings.Seconds{To: &c.Etcd.Lease, Min: 2, Max: 3600, Whole: true}},
		{Path: "etcd.tls.ca", Usage: "PEM file with etcd's authority",
			Value: settings.Text{To: &c.Etcd.TLS.CA, What: whatText, Check: anyText}},
		{Path: "etcd.tls.crt", Usage: "PEM file with our certificate for etcd",
			Value: settings.Text{To: &c.Etcd.TLS.Crt, What: whatText, Check: anyText}},
		{Path: "etcd.tls.key", Usage: "PEM file with our key for etcd",
			Value: settings.Text{To: &c.Etcd.TLS.Key, What: whatText, Check: anyText}},

		{Path: "replica.id", Env: "TRESTLE_REPLICA_ID", Usage: "name of this replica; empty: host name and a random suffix",
			Value: settings.Text{To: &c.Replica.ID, What: whatID, Check: replicaName}},
		{Path: "replica.revision", Env: "TRESTLE_REPLICA_REVISION", Usage: "revision of this replica; empty: the version of the binary",
			Value: settings.Text{To: &c.Replica.Revision, What: whatID, Check: replicaName}},

		{Path: "controllerIntervalSeconds", Env: "CONTROLLER_INTERVAL_SECONDS", Usage: "time between two sweeps",
			Value: settings.Seconds{To: &c.ControllerInterval, Min: 1, Max: day}},
		{Path: "controllerMaxDisconnectSeconds", Env: "CONTROLLER_MAX_DISCONNECT_SECONDS", Usage: "time without contact to a cluster until it is warned of",
			Value: settings.Seconds{To: &c.ControllerMaxDisconnect, Min: 1, Max: day}},
		{Path: "wsClusterDBReconcileIntervalSeconds", Usage: "time between two looks at which clusters exist",
			Value: settings.Seconds{To: &c.ClusterReconcileInterval, Min: 1, Max: day}},
		{Path: "clusterSyncIntervalSeconds", Usage: "time between two syncs of workspace classes",
			Value: settings.Seconds{To: &c.ClusterSyncInterval, Min: 1, Max: day}},
		{Path: "emulatePreparingIntervalSeconds"},

		{Path: "timeouts.metaInstanceCheckIntervalSeconds"},
		{Path: "timeouts.preparingPhaseSeconds", Usage: "limit of phase preparing",
			Value: settings.Seconds{To: &c.Timeouts.Preparing, Min: 1, Max: year}},
		{Path: "timeouts.buildingPhaseSeconds", Usage: "limit of phase building",
			Value: settings.Seconds{To: &c.Timeouts.Building, Min: 1, Max: year}},
		{Path: "timeouts.unknownPhaseSeconds", Usage: "limit of phase unknown",
			Value: settings.Seconds{To: &c.Timeouts.Unknown, Min: 1, Max: year}},
		{Path: "timeouts.pendingPhaseSeconds", Usage: "limit of phases pending, creating and initializing",
			Value: settings.Seconds{To: &c.Timeouts.Pending, Min: 1, Max: year}},
		{Path: "timeouts.stoppingPhaseSeconds", Usage: "limit of phase stopping",
			Value: settings.Seconds{To: &c.Timeouts.Stopping, Min: 1, Max: year}},
		{Path: "prebuild.decisivePhase", Usage: "phase that decides a prebuild",
			Value: settings.Choice{To: &c.Prebuild.DecisivePhase, From: []string{"stopping", "stopped"}}},
		{Path: "lifecycle.sink", Env: "TRESTLE_LIFECYCLE_SINK", Usage: "where lifecycle events go: none, log, or an HTTP URL",
			Value: settings.Masked{To: &c.Lifecycle.Sink, What: whatSink, Check: lifecycleSink}},

		{Path: "pipeline.lanes", Env: "TRESTLE_PIPELINE_LANES", Usage: "batches that are written at once",
			Value: settings.Whole{To: &c.Pipeline.Lanes, Min: 1, Max: 256}},
		{Path: "pipeline.fleetLanes", Env: "TRESTLE_PIPELINE_FLEET_LANES", Usage: "large batches that all replicas together write at once, at least one each",
			Value: settings.Whole{To: &c.Pipeline.FleetLanes, Min: 1, Max: 10_000}},
		{Path: "pipeline.batchLimit", Usage: "changes in one commit",
			Value: settings.Whole{To: &c.Pipeline.BatchLimit, Min: 1, Max: 10_000}},
		{Path: "pipeline.dedupEntries", Usage: "instances whose last update is remembered",
			Value: settings.Whole{To: &c.Pipeline.DedupEntries, Min: 1, Max: 100_000_000}},
		{Path: "pipeline.maxWaiting", Usage: "instances that may wait in a replica",
			Value: settings.Whole{To: &c.Pipeline.MaxWaiting, Min: 1, Max: 100_000_000}},
		{Path: "pipeline.maxWaitingPerCluster", Usage: "instances of one cluster that may wait",
			Value: settings.Whole{To: &c.Pipeline.MaxWaitingPerCluster, Min: 1, Max: 100_000_000}},
		{Path: "pipeline.traceBytes", Env: "TRESTLE_PIPELINE_TRACE_BYTES", Usage: "size of what is remembered of decisions on instances",
			Value: settings.Size{To: &c.Pipeline.TraceBytes, Min: 64 * settings.KiB, Max: 64 * settings.GiB}},
		{Path: "upstream.maxUpdateBytes", Usage: "size of one update",
			Value: settings.Size{To: &c.Upstream.MaxUpdateBytes, Min: 64 * settings.KiB, Max: settings.GiB}},
		{Path: "upstream.maxSnapshotBytes", Usage: "size of one snapshot",
			Value: settings.Size{To: &c.Upstream.MaxSnapshotBytes, Min: settings.MiB, Max: 2*settings.GiB - 1}},
		{Path: "upstream.snapshotBudgetBytes", Usage: "size of all snapshots held at once",
			Value: settings.Size{To: &c.Upstream.SnapshotBudgetBytes, Min: settings.MiB, Max: 1024 * settings.GiB}},
		{Path: "upstream.snapshotIntervalSeconds", Usage: "time between two snapshots of a cluster that is heard well",
			Value: settings.Seconds{To: &c.Upstream.SnapshotInterval, Min: 1, Max: day}},

		{Path: "shutdown.timeoutSeconds", Env: "TRESTLE_SHUTDOWN_TIMEOUT_SECONDS", Usage: "time to write and hand over everything",
			Value: settings.Seconds{To: &c.Shutdown.Timeout, Min: 0.1, Max: 3600}},
		{Path: "migrations.atStart", Env: "TRESTLE_MIGRATIONS_AT_START", Usage: "bring the schema up to date at start",
			Value: settings.Truth{To: &c.Migrations.AtStart}},
		{Path: "log.level", Env: "TRESTLE_LOG_LEVEL", Usage: "least level that is logged",
			Value: settings.Level{To: &c.Log.Level}},
		{Path: "log.format", Env: "TRESTLE_LOG_FORMAT", Usage: "shape of the log",
			Value: settings.Choice{To: &c.Log.Format, From: []string{"json", "text"}}},
		{Path: "tracing.endpoint", Env: "TRESTLE_TRACING_ENDPOINT", Usage: "collector of spans, OTLP over gRPC; empty: off",
			Value: settings.Text{To: &c.Tracing.Endpoint, What: whatTracing, Check: tracingEndpoint}},
		{Path: "tracing.sampleRatio", Env: "TRESTLE_TRACING_SAMPLE_RATIO", Usage: "part of the traces begun here that is recorded",
			Value: settings.Fraction{To: &c.Tracing.SampleRatio, Min: 0, Max: 1}},
	}
}

// bridgeKeys is the table of one entry of staticBridges, bound to b.
func bridgeKeys(b *StaticBridge) []settings.Key {
	return []settings.Key{
		{Path: "name", Value: settings.Text{To: &b.Name, What: whatName, Check: anyName}},
		{Path: "url", Value: settings.Text{To: &b.URL, What: whatTarget, Check: grpcTarget}},
		{Path: "tls.ca", Value: settings.Text{To: &b.TLS.CA, What: whatText, Check: anyText}},
		{Path: "tls.crt", Value: settings.Text{To: &b.TLS.Crt, What: whatText, Check: anyText}},
		{Path: "tls.key", Value: settings.Text{To: &b.TLS.Key, What: whatText, Check: anyText}},
		{Path: "state", Value: settings.Choice{To: &b.State, From: []string{"available", "cordoned", "draining"}}},
		{Path: "score", Value: settings.Whole{To: &b.Score, Min: 0, Max: 1<<31 - 1}},
		{Path: "maxScore", Value: settings.Whole{To: &b.MaxScore, Min: 0, Max: 1<<31 - 1}},
		{Path: "govern", Value: settings.Truth{To: &b.Govern}},
		{Path: "region", Value: settings.Text{To: &b.Region, What: whatText, Check: anyText}},
		{Path: "admissionConstraints", Value: settings.JSON{To: &b.AdmissionConstraints}},
		{Path: "availableWorkspaceClasses"},
		{Path: "preferredWorkspaceClass"},
		{Path: "applicationCluster"},
	}
}

// roleKeys is the table of one entry of clusterService.roles, bound to r.
func roleKeys(r *CertificateRole) []settings.Key {
	return []settings.Key{
		{Path: "name", Value: settings.Text{To: &r.Name, What: whatName, Check: anyName}},
		{Path: "role", Value: settings.Choice{To: &r.Role, From: []string{"viewer", "operator"}}},
	}
}
