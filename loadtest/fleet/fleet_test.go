package fleet

import (
	"slices"
	"testing"
)

func TestSettingsOfTheCallerAreLeftOut(t *testing.T) {
	got := WithoutSettings([]string{"PATH=/bin", "TRESTLE_LOG_LEVEL=debug", "REDIS_PASSWORD=x", "GOGC=50"})
	if want := []string{"PATH=/bin", "GOGC=50"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestAnIncompleteFleetIsRefused(t *testing.T) {
	for _, cfg := range []Config{{}, {Binary: "b"}, {Binary: "b", Dir: "d"}, {Dir: "d", Stop: 1}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
