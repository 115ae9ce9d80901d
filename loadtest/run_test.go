package loadtest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/trestle-bridge/trestle/internal/devstack"
	"github.com/trestle-bridge/trestle/loadtest/ledger"
	"github.com/trestle-bridge/trestle/loadtest/oracle"
	"github.com/trestle-bridge/trestle/loadtest/script"
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

// bridge is a service to test the test with: it writes what the oracle says, an
// update at a time, and can be told to do it wrong. That the oracle is right is
// not shown here.
type bridge struct {
	db    *pgx.Conn
	redis *redis.Client
	// clusters are the simulated ones, by name.
	clusters map[string]*sim.Cluster
	// wrong says what to spoil of the update with a number, from 1.
	wrong func(n int) fault

	// mu guards all, the connection included: one update at a time.
	mu      sync.Mutex
	heard   map[[16]byte]*history
	updates int
}

type fault int

const (
	nothing fault = iota
	lose          // neither written nor published
	silent        // written, not published
	twice         // published twice
	garble        // written with another message
)

type history struct {
	subject ledger.Subject
	sent    []oracle.Sent
	said    int
}

// tolerant reads what cannot be decoded as a message without a status, where the
// usual codec would end the stream.
type tolerant struct{ encoding.CodecV2 }

func (t tolerant) Unmarshal(data mem.BufferSlice, v any) error {
	if err := t.CodecV2.Unmarshal(data, v); err != nil {
		v.(*wsman.SubscribeResponse).Reset()
	}
	return nil
}

// follow hears one cluster until ctx ends.
func (b *bridge) follow(ctx context.Context, c Cluster) error {
	conn, err := grpc.NewClient("passthrough:///"+c.URL, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := wsman.NewWorkspaceManagerClient(conn)
	for ctx.Err() == nil {
		if err := b.hear(ctx, c, client); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// hear is one subscription, with the snapshot that it begins with. That the
// stream ends is no error.
func (b *bridge) hear(ctx context.Context, c Cluster, client wsman.WorkspaceManagerClient) error {
	stream, err := client.Subscribe(ctx, &wsman.SubscribeRequest{}, grpc.ForceCodecV2(tolerant{encoding.GetCodecV2(proto.Name)}))
	if err != nil {
		return err
	}
	// The test sends nothing before a snapshot, but the subscription must stand
	// before the snapshot is taken: a client cannot know, this one asks.
	if err := b.clusters[c.Name].AwaitSubscribers(ctx, 1); err != nil {
		return err
	}
	snapshot, err := client.GetWorkspaces(ctx, &wsman.GetWorkspacesRequest{})
	if err != nil {
		return err
	}
	for _, s := range snapshot.GetStatus() {
		if err := b.write(ctx, c, s); err != nil {
			return err
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		if err := b.write(ctx, c, m.GetStatus()); err != nil {
			return err
		}
	}
}

func (b *bridge) write(ctx context.Context, c Cluster, s *wsman.WorkspaceStatus) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, _ := script.ParseUUID(s.GetId())
	h := b.heard[id]
	if h == nil {
		return nil
	}
	b.updates++
	spoil := b.wrong(b.updates)
	if spoil == lose {
		return nil
	}
	h.sent = append(h.sent, oracle.Sent{At: time.Now(), Status: s})
	o := oracle.Expect(oracle.Rules{Cluster: c.Name}, ledger.StartOf(h.subject), h.sent)
	if !o.Applied[len(h.sent)-1] {
		return nil
	}
	if spoil == garble {
		o.Row.Status.Message += "?"
	}
	if err := b.store(ctx, id, h.subject, o); err != nil {
		return err
	}
	sub := &h.subject
	if spoil != silent {
		message, _ := json.Marshal(map[string]string{"ownerID": sub.ID.Owner, "instanceID": s.GetId(), "workspaceID": sub.ID.Workspace})
		for range map[bool]int{false: 1, true: 2}[spoil == twice] {
			if err := b.redis.Publish(ctx, "chan:workspace-instances", message).Err(); err != nil {
				return err
			}
		}
	}
	for ; h.said < len(o.Prebuilds); h.said++ {
		m := map[string]string{"status": o.Prebuilds[h.said], "prebuildID": script.FormatUUID(sub.ID.Prebuild),
			"workspaceID": sub.ID.Workspace, "projectID": sub.ProjectID()}
		if org := sub.OrganizationID(); org != "" {
			m["organizationID"] = org
		}
		message, _ := json.Marshal(m)
		if err := b.redis.Publish(ctx, "chan:prebuilds", message).Err(); err != nil {
			return err
		}
		message, _ = json.Marshal(map[string]string{"type": o.Headless[h.said], "workspaceID": sub.ID.Workspace})
		if err := b.redis.Publish(ctx, "chan:headless", message).Err(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bridge) store(ctx context.Context, id [16]byte, s ledger.Subject, o oracle.Outcome) error {
	document, err := json.Marshal(o.Row.Status)
	if err != nil {
		return err
	}
	metrics, err := json.Marshal(o.Metrics)
	if err != nil {
		return err
	}
	null := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	r := o.Row
	return pgx.BeginFunc(ctx, b.db, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(`UPDATE workspace_instance SET phase = $2, status_version = $3, deployed_time = $4, started_time = $5,
			stopping_time = $6, stopped_time = $7, ide_url = $8, status = $9 WHERE id = $1`,
			id, r.Phase, int64(r.Version), null(r.Deployed), null(r.Started), null(r.Stopping), null(r.Stopped), r.IDEURL, string(document))
		batch.Queue(`INSERT INTO workspace_instance_metrics VALUES ($1, $2) ON CONFLICT (instance_id) DO UPDATE SET metrics = excluded.metrics`,
			id, string(metrics))
		if o.Prebuild != nil {
			batch.Queue(`UPDATE prebuilt_workspace SET state = $2, error = $3, snapshot = $4 WHERE id = $1`,
				s.ID.Prebuild, o.Prebuild.State, o.Prebuild.Error, o.Prebuild.Snapshot)
		}
		if o.StoppedOnce {
			batch.Queue(`DELETE FROM gitpod_token WHERE user_id = $1 AND name LIKE $2 || '-%'`, s.ID.Owner, script.FormatUUID(id))
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

// play runs a test against a bridge.
func play(t *testing.T, stack *devstack.Stack, name string, work Work, wrong func(int) fault, meanwhile func(*Test)) *Report {
	t.Helper()
	return playUntil(t, stack, name, work, wrong, meanwhile, nil)
}

// playUntil is play that stops sending when stop is closed.
func playUntil(t *testing.T, stack *devstack.Stack, name string, work Work, wrong func(int) fault, meanwhile func(*Test), stop <-chan struct{}) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	url, err := stack.Postgres.NewDatabase(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	if _, err := db.Exec(ctx, "SET synchronous_commit = off;"+tables); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: stack.Redis.Addr(),
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	defer client.Close()

	b := &bridge{db: db, redis: client, wrong: wrong, heard: make(map[[16]byte]*history), clusters: make(map[string]*sim.Cluster)}
	service, sctx := errgroup.WithContext(ctx)
	over := make(chan struct{})
	sctx, end := context.WithCancel(sctx)
	var test *Test
	test, err = New(Config{
		Work: work, Postgres: url, Redis: stack.Redis.Addr(), NeverDrop: true, Sample: true, Stop: stop, Settle: 10 * time.Second, Silence: time.Second,
		ProgressInterval: 20 * time.Millisecond,
		// The tables are read in both ways.
		AmongOthers: work.Clusters > 1,
		Progress: func(Progress) {
			if meanwhile != nil {
				meanwhile(test)
			}
		},
		Register: func(_ context.Context, clusters []Cluster) error {
			for _, c := range clusters {
				service.Go(func() error { return b.follow(sctx, c) })
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range test.Clusters() {
		b.clusters[c.Name()] = c
	}
	for n := range test.work.Instances {
		s := test.work.subject(test.library, n)
		b.heard[s.ID.Instance] = &history{subject: s}
	}
	go func() {
		<-over
		end()
	}()
	report, err := test.Run(ctx)
	close(over)
	if sErr := service.Wait(); sErr != nil && err != nil {
		t.Error(sErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestAgainstABridge(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL and Redis")
	}
	stack, err := devstack.Start(t.Context(), devstack.Config{
		Postgres: &devstack.PostgresConfig{Settings: map[string]string{"track_commit_timestamp": "on"}},
		Redis:    &devstack.RedisConfig{},
	})
	if err != nil {
		t.Skipf("PostgreSQL and Redis cannot be started: %v", err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	right := func(int) fault { return nothing }
	for name, work := range map[string]Work{
		"storm":   {Shape: Storm, Clusters: 2, Instances: 90, Wave: 40, Odd: 0.7},
		"steady":  {Shape: Steady, Instances: 40, Wave: 10, Rate: 1000, Odd: 0.5},
		"bursts":  {Shape: Steady, Instances: 40, Wave: 10, Rate: 1000, Odd: 0.5, Burst: 4},
		"closed":  {Shape: Closed, Clusters: 3, Instances: 60, Wave: 10},
		"repeats": {Shape: Repeats, Clusters: 2, Instances: 10, Messages: 500},
		"stale":   {Shape: Stale, Instances: 10, Messages: 500},
		"short":   {Shape: Storm, Instances: 100, Wave: 30, Short: true},
	} {
		r := play(t, stack, name, work, right, nil)
		if !r.OK() {
			t.Errorf("%s: %s\n%+v", name, r.Unsettled, r.Verdict)
		}
		if r.Verdict.Instances != work.Instances || r.Changes == 0 || r.Publishes != r.Changes || r.Latency.Count == 0 || r.Duration <= 0 {
			t.Errorf("%s: %+v", name, r)
		}
		if work.Messages > 0 && r.Repeats+r.Stale != int64(work.Messages) {
			t.Errorf("%s: %d repeats and %d stale", name, r.Repeats, r.Stale)
		}
	}

	// What ends the sending is no failure of what has been sent.
	for name, work := range map[string]Work{
		"stopped_steady": {Shape: Steady, Instances: 5000, Wave: 10, Rate: 500},
		"stopped_closed": {Shape: Closed, Instances: 5000, Wave: 10},
	} {
		stop, once := make(chan struct{}), sync.Once{}
		r := playUntil(t, stack, name, work, right, func(test *Test) {
			if test.Ledger().Counts().Sent > 50 {
				once.Do(func() { close(stop) })
			}
		}, stop)
		if !r.OK() || r.Sent == 0 || r.Sent >= 8*5000 {
			t.Errorf("%s: %d sent, %s\n%+v", name, r.Sent, r.Unsettled, r.Verdict)
		}
	}

	// So many that some begin only after the last cut, however long that takes.
	const instances = 400
	cuts := 0
	r := play(t, stack, "cut", Work{Shape: Steady, Instances: instances, Wave: 20, Rate: 1000, Odd: 0.5}, right, func(test *Test) {
		if cuts++; cuts == 5 || cuts == 10 {
			test.Clusters()[0].CutStreams()
		}
	})
	if !r.OK() || r.Verdict.Exact == instances || r.Verdict.Exact == 0 {
		t.Errorf("cut: %s\n%+v", r.Unsettled, r.Verdict)
	}

	work := Work{Shape: Storm, Instances: 20}
	for name, tc := range map[string]struct {
		what  fault
		found func(*ledger.Verdict) bool
	}{
		"lose":   {lose, func(v *ledger.Verdict) bool { return v.Lost == 1 }},
		"silent": {silent, func(v *ledger.Verdict) bool { return v.Unpublished == 1 && v.Lost == 0 }},
		"twice":  {twice, func(v *ledger.Verdict) bool { return v.Doubled == 1 && v.Lost == 0 }},
		"garble": {garble, func(v *ledger.Verdict) bool { return v.Wrong == 1 }},
	} {
		// The last update of some instance: nothing later hides the fault.
		r := play(t, stack, name, work, func(n int) fault {
			if n == 8*20-3 {
				return tc.what
			}
			return nothing
		}, nil)
		if r.OK() || !tc.found(r.Verdict) {
			t.Errorf("%s: %s\n%+v", name, r.Unsettled, r.Verdict)
		}
	}
}

func TestWorkIsChecked(t *testing.T) {
	for _, w := range []Work{
		{},
		{Shape: Storm},
		{Shape: "other", Instances: 1},
		{Shape: Steady, Instances: 1},
		{Shape: Closed, Instances: 1, Odd: 0.5},
		{Shape: Repeats, Instances: 1},
		{Shape: Storm, Instances: 1, Odd: 2},
	} {
		if err := w.complete(); err == nil {
			t.Errorf("%+v passes", w)
		}
	}
}

func TestInstancesOfAHotCluster(t *testing.T) {
	const instances = 10_000
	for _, w := range []Work{{Clusters: 4}, {Clusters: 4, Hot: 0.7}, {Clusters: 1, Hot: 0.5}, {Clusters: 3, Hot: 1}} {
		dealt := make([]float64, w.Clusters)
		for n := range instances {
			dealt[w.cluster(n)]++
		}
		for c, got := range dealt {
			want := instances / float64(w.Clusters)
			if w.Hot > 0 && w.Clusters > 1 {
				want = instances * (1 - w.Hot) / float64(w.Clusters-1)
				if c == 0 {
					want = instances * w.Hot
				}
			}
			if got < 0.95*want-1 || got > 1.05*want+1 {
				t.Errorf("%+v: cluster %d has %g instances, want about %g", w, c, got, want)
			}
		}
	}
}
