package traffic

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/loadtest/sim"
	"github.com/trestle-bridge/trestle/proto/wsman"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const tables = `
CREATE TABLE workspace (id text PRIMARY KEY, owner_id text, type text, organization_id text, project_id text, deleted boolean);
CREATE TABLE workspace_instance (id uuid PRIMARY KEY, workspace_id text, region text, creation_time timestamptz,
	deployed_time timestamptz, started_time timestamptz, stopping_time timestamptz, stopped_time timestamptz,
	ide_url text, workspace_image text, workspace_class text, phase text, status_version bigint, status jsonb, deleted boolean);
CREATE TABLE prebuilt_workspace (id uuid PRIMARY KEY, build_workspace_id text, project_id text, organization_id text,
	state text, status_version bigint, snapshot text, error text, creation_time timestamptz);
CREATE TABLE workspace_instance_metrics (instance_id uuid PRIMARY KEY, metrics jsonb);
CREATE TABLE gitpod_token (token_hash text PRIMARY KEY, user_id text, name text);`

// tolerant reads garbage as an empty message, where the usual codec would end
// the stream.
type tolerant struct{ encoding.CodecV2 }

func (t tolerant) Unmarshal(data mem.BufferSlice, v any) error {
	if err := t.CodecV2.Unmarshal(data, v); err != nil {
		v.(*wsman.SubscribeResponse).Reset()
	}
	return nil
}

// deafen is a bridge that hears everything and does nothing.
func deafen(ctx context.Context, c *sim.Cluster) error {
	conn, err := grpc.NewClient("passthrough:///"+c.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := wsman.NewWorkspaceManagerClient(conn)
	stream, err := client.Subscribe(ctx, &wsman.SubscribeRequest{}, grpc.ForceCodecV2(tolerant{encoding.GetCodecV2(proto.Name)}))
	if err != nil {
		return err
	}
	if err := c.AwaitSubscribers(ctx, 1); err != nil {
		return err
	}
	if _, err := client.GetWorkspaces(ctx, &wsman.GetWorkspacesRequest{}); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return nil
		}
	}
}

// Against a bridge that does nothing, all is lost, generation after generation,
// and nothing piles up. What a bridge that works makes of it is shown where the
// service is.
func TestWhatIsLostIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL")
	}
	stack, err := devstack.Start(t.Context(), devstack.Config{
		Postgres: &devstack.PostgresConfig{}, Redis: &devstack.RedisConfig{Embedded: true},
	})
	if err != nil {
		t.Skipf("PostgreSQL cannot be started: %v", err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	db, err := pgx.Connect(t.Context(), stack.Postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	if _, err := db.Exec(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	parts, ctx := errgroup.WithContext(ctx)
	cfg := Config{
		Postgres: stack.Postgres.URL(), Redis: stack.Redis.URL(),
		Live: 50, Rate: 20_000, Odd: 0.3, Burst: 3, Settle: time.Millisecond,
	}
	for _, name := range []string{"one", "two"} {
		c, err := sim.New(sim.Config{Name: name, Buffer: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Clusters = append(cfg.Clusters, c)
		parts.Go(func() error { return c.Run(ctx) })
		parts.Go(func() error { return deafen(ctx, c) })
	}
	traffic, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- traffic.Run(sending) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for traffic.Counts().Checked.Instances < 8*traffic.size {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("ended by itself: %v", err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := parts.Wait(); err != nil {
		t.Error(err)
	}

	c := traffic.Counts()
	if c.Sent == 0 || c.Repeats == 0 || c.Stale == 0 || c.Publishes != 0 || c.Waiting != 0 || c.Sending <= 0 {
		t.Errorf("%+v", c)
	}
	if c.Checked.OK() || c.Checked.Lost < c.Checked.Instances/2 || len(c.Checked.Differences) == 0 {
		t.Errorf("%+v", c.Checked)
	}
	for _, table := range []string{"workspace_instance", "workspace", "prebuilt_workspace", "gitpod_token"} {
		var n int
		if err := db.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		// Those kept, those that were being played, and those prepared.
		if n == 0 || n > (kept+4)*traffic.size {
			t.Errorf("%d rows are left in %s", n, table)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	c, err := sim.New(sim.Config{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	good := Config{Clusters: []*sim.Cluster{c}, Postgres: "p", Redis: "r", Live: 1, Rate: 1}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no clusters": func(c *Config) { c.Clusters = nil },
		"no postgres": func(c *Config) { c.Postgres = "" },
		"no redis":    func(c *Config) { c.Redis = "" },
		"nobody":      func(c *Config) { c.Live = 0 },
		"no rate":     func(c *Config) { c.Rate = 0 },
		"odd":         func(c *Config) { c.Odd = 2 },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
