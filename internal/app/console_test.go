package app

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"testing"
)

// Each replica's console shows the whole fleet: what the others measure, too,
// and moves when they end.
func TestConsoleShowsTheFleet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, plan{clusters: 3, instances: 30, seed: 77})
	first := w.serve(calm)
	w.heard(1)
	second := w.serve(calm)
	w.sendAll(every)

	type document struct {
		Answering struct {
			Name  string
			Known bool
		}
		Fleet  struct{ Leader struct{ Name string } }
		Health struct {
			Checks []struct {
				Name string
				OK   bool
			}
		}
		Replicas []struct{ Name, State string }
		Shards   []struct {
			Cluster, Phase string
			Owner          struct{ Name string }
			Held           int
			Measured       *struct{ Live int }
		}
		Moves []struct{ Reason string }
	}
	look := func(s *service) (d document) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.console+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", "application/json")
		r.Close = true
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatal(response.Status, err)
		}
		if err := json.Unmarshal(body, &d); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return d
	}
	var d document
	for name, s := range map[string]*service{"replica-1": first, "replica-2": second} {
		w.until(name+" shows all shards, what their owners measure, and that all is well", func() bool {
			d = look(s)
			owners := map[string]bool{}
			for _, sh := range d.Shards {
				if sh.Phase != "OWNED" || sh.Held == 0 || sh.Measured == nil {
					return false
				}
				owners[sh.Owner.Name] = true
			}
			for _, c := range d.Health.Checks {
				if !c.OK {
					return false
				}
			}
			return d.Answering.Name == name && d.Answering.Known && d.Fleet.Leader.Name == "replica-1" &&
				len(d.Replicas) == 2 && len(d.Shards) == 3 && len(owners) == 2
		})
	}
	var names []string
	for _, c := range d.Health.Checks {
		names = append(names, c.Name)
	}
	if want := []string{"pipeline", "clusters", "etcd", "postgres", "redis"}; !slices.Equal(names, want) {
		t.Errorf("checks %v, want %v", names, want)
	}
	if !slices.ContainsFunc(d.Moves, func(m struct{ Reason string }) bool { return m.Reason == "join" || m.Reason == "level" }) {
		t.Errorf("the move to the second replica is not shown: %+v", d.Moves)
	}
}
