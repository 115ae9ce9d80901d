package api

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trestle-bridge/trestle/internal/access"
)

// A method that is served and has no rule, or the other way round, is one that
// somebody forgot.
func TestEveryMethodHasARule(t *testing.T) {
	s, err := New(Config{
		Address: "127.0.0.1:0", Registry: struct{ Registry }{}, Fleet: struct{ Fleet }{}, Sweeps: struct{ Sweeps }{}, Instances: struct{ Instances }{}, Rows: struct{ Rows }{},
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var served []string
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			served = append(served, "/"+service+"/"+m.Name)
		}
	}
	slices.Sort(served)
	if ruled := slices.Sorted(maps.Keys(rules())); !slices.Equal(served, ruled) {
		t.Errorf("served are\n%v\nand there are rules for\n%v", served, ruled)
	}
	for method, r := range rules() {
		if r.change != "" && r.role != access.Operator {
			t.Errorf("%s changes something, and takes no operator", method)
		}
		if r.role == access.Nobody && !r.open {
			t.Errorf("%s is for nobody", method)
		}
	}
	if r := (&door{}).rule("/new.Service/Method"); r.role != access.Operator || r.open {
		t.Errorf("a method that nobody knows is for a %s", r.role)
	}
}
