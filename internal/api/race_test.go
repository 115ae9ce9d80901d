package api_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trestle-bridge/trestle/internal/api"
	bridge "github.com/trestle-bridge/trestle/proto/workspacemanagerbridge"
)

// atOnce makes calls at once, by the replicas in turn, and counts their codes.
func atOnce(n int, replicas []*replica, call func(i int, r *replica) error) map[codes.Code]int {
	found := make([]codes.Code, n)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			<-begin
			found[i] = status.Code(call(i, replicas[i%len(replicas)]))
		})
	}
	close(begin)
	all.Wait()
	counted := make(map[codes.Code]int)
	for _, code := range found {
		counted[code]++
	}
	return counted
}

func expect(t *testing.T, what string, got map[codes.Code]int, want map[codes.Code]int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestCallsAtOnceOnTwoReplicas(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	plaintext := func(c *api.Config) { c.AllowPlaintext = true }
	replicas := []*replica{b.replica(plaintext), b.replica(plaintext)}
	const n = 6
	urls := make([]string, n)
	for i := range urls {
		urls[i] = b.cluster(good(), plain).Addr()
	}
	register := func(name, url string) func(r *replica) error {
		return func(r *replica) error {
			_, err := r.Register(t.Context(), &bridge.RegisterRequest{Name: name, Url: url})
			return err
		}
	}
	once := map[codes.Code]int{codes.OK: 1, codes.AlreadyExists: n - 1}
	expect(t, "one name", atOnce(n, replicas, func(i int, r *replica) error { return register("eu70", urls[i])(r) }), once)
	if names := b.names(replicas[0]); !slices.Equal(names, []string{"eu70"}) {
		t.Fatalf("there are %v", names)
	}
	free := slices.DeleteFunc(slices.Clone(urls), func(url string) bool { return url == b.list(replicas[1])[0].GetUrl() })
	expect(t, "one URL", atOnce(n, replicas, func(i int, r *replica) error { return register(fmt.Sprint("us", i), free[0])(r) }), once)

	// Each update sets its own property, so none is lost.
	updates := []*bridge.UpdateRequest{
		{Property: &bridge.UpdateRequest_Score{Score: 1}},
		{Property: &bridge.UpdateRequest_MaxScore{MaxScore: 2}},
		{Property: &bridge.UpdateRequest_Cordoned{Cordoned: true}},
		{Property: &bridge.UpdateRequest_AdmissionConstraint{AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: true, Constraint: permission("a")}}},
		{Property: &bridge.UpdateRequest_AdmissionConstraint{AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: true, Constraint: permission("b")}}},
		{Property: &bridge.UpdateRequest_AdmissionConstraint{AdmissionConstraint: &bridge.ModifyAdmissionConstraint{Add: true, Constraint: permission("a")}}},
	}
	expect(t, "updates", atOnce(n, replicas, func(i int, r *replica) error {
		updates[i].Name = "eu70"
		_, err := r.Update(t.Context(), updates[i])
		return err
	}), map[codes.Code]int{codes.OK: n})
	if row := b.ask(`SELECT concat_ws(' ', score, max_score, state, jsonb_array_length(admission_constraints)) FROM workspace_cluster WHERE name = 'eu70'`); row != "1 2 cordoned 2" {
		t.Errorf("after the updates the row is %q", row)
	}
	expect(t, "deregister", atOnce(n, replicas, func(_ int, r *replica) error {
		_, err := r.Deregister(t.Context(), &bridge.DeregisterRequest{Name: "eu70"})
		return err
	}), map[codes.Code]int{codes.OK: 1, codes.NotFound: n - 1})
}

// Whatever comes of them, the name is registered or remembered, not both and
// not neither.
func TestRegisterAndDeregisterAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	plaintext := func(c *api.Config) { c.AllowPlaintext = true }
	replicas := []*replica{b.replica(plaintext), b.replica(plaintext)}
	url := b.cluster(good(), plain).Addr()
	b.register(replicas[0], &bridge.RegisterRequest{Name: "eu70", Url: url})
	for round := range 8 {
		counted := atOnce(6, replicas, func(i int, r *replica) (err error) {
			switch i % 3 {
			case 0:
				_, err = r.Register(t.Context(), &bridge.RegisterRequest{Name: "eu70", Url: url})
			case 1:
				_, err = r.Deregister(t.Context(), &bridge.DeregisterRequest{Name: "eu70"})
			default:
				_, err = r.Update(t.Context(), &bridge.UpdateRequest{Name: "eu70", Property: &bridge.UpdateRequest_Cordoned{Cordoned: true}})
			}
			return err
		})
		for code := range counted {
			if code != codes.OK && code != codes.AlreadyExists && code != codes.NotFound {
				t.Errorf("round %d: %v", round, counted)
			}
		}
		if state := b.ask(`SELECT concat_ws(' ', (SELECT count(*) FROM workspace_cluster), (SELECT count(*) FROM trestle_deregistered_cluster))`); state != "1 0" && state != "0 1" {
			t.Errorf("round %d: registered and remembered: %s", round, state)
		}
	}
}
