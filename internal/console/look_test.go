package console_test

import (
	"testing"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/shard"
)

func TestShots(t *testing.T) {
	b := startChromium(t)
	f := newFleet(3, 24)
	f.change(func(s *coordinator.State) {
		x := of(s, "eu03")
		x.Stored.Phase, x.Stored.Next, x.Stored.Reason = shard.PhasePrepare, incarnation(1), shard.ReasonLevel
		of(s, "eu05").Measured.Deaf = true
		of(s, "eu07").Measured.Lag = 12e9
	})
	addr, _ := serve(t, config(f))
	for name, s := range map[string]screen{"light": desktop, "dark": {width: 1280, height: 900, dark: true}, "phone": {width: 390, height: 844, phone: true}} {
		tab := open(t, b, addr, s)
		tab.until(`document.querySelectorAll("#health li").length > 3`)
		tab.shoot(name)
		eval[string](tab, `location.hash = "#cluster=eu03"`)
		tab.until(`document.querySelector("#explanation dl")`)
		tab.shoot(name + "-explain")
	}
	f = newFleet(100, 10000)
	addr, _ = serve(t, config(f))
	tab := open(t, b, addr, desktop)
	tab.shoot("big")
}
