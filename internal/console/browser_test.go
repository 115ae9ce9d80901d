package console_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/trestle-bridge/trestle/coordinator"
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/internal/console"
	"github.com/trestle-bridge/trestle/internal/store"
	"github.com/trestle-bridge/trestle/shard"
)

// row is the text of a shard's row in the table, if it is shown.
func row(id string) string {
	return fmt.Sprintf(`([...document.querySelectorAll("#rows tr")].find((tr) => tr.cells[0].textContent === %s)?.innerText ?? "")`, quoted(id))
}

// rows are how many shards the table shows.
const rows = `document.querySelectorAll("#rows tr").length`

const focused = `(document.activeElement?.id || document.activeElement?.className?.baseVal || document.activeElement?.textContent || "")`

// TestPage looks at the page in a real browser. Nothing may go wrong in any of
// its tabs: no error, no warning, no violation of the policy.
func TestPage(t *testing.T) {
	browser := startChromium(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, context.Context)
	}{
		{"live", pageIsLive}, {"search", pageSearches}, {"keyboard", pageWithKeyboard}, {"explanation", pageExplains},
		{"phone", pageOnPhone}, {"colours", pageColours}, {"still", pageStill}, {"hostile", pageHostile},
		{"trouble", pageInTrouble}, {"gone", pageWithoutServer}, {"small", pageOfOne}, {"large", pageOfMany},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, browser) })
	}
}

func pageIsLive(t *testing.T, browser context.Context) {
	f := newFleet(3, 12)
	address, _ := serve(t, config(f))
	b := open(t, browser, address, desktop)
	b.until(rows + ` === 12 && document.querySelectorAll(".panel").length === 3 && document.querySelectorAll("#health li").length === 6`)
	b.until(row("eu01") + `.includes("replica-1")`)

	f.change(func(s *coordinator.State) {
		sh := of(s, "eu01")
		sh.Stored.Phase, sh.Stored.Next, sh.Stored.Reason = shard.PhasePrepare, incarnation(2), shard.ReasonPin
	})
	b.until(row("eu01") + `.includes("replica-1 → replica-2")`)
	b.until(`document.querySelector(".overlay [data-phase=PREPARE] path") && document.getElementById("moves").innerText.includes("prepare")`)
	b.until(`[...document.querySelectorAll('[data-state="shadow"]')].some((g) => g.shard.id === "eu01")`)
	b.shoot("prepare")
	f.change(func(s *coordinator.State) { moved(s, "eu01", 2, shard.ReasonPin) })
	b.until(row("eu01") + `.includes("replica-2") && !` + row("eu01") + `.includes("replica-1")`)
	b.until(`document.querySelector("#moves li").innerText.includes("pinned there by an operator")`)
	b.until(`[...document.querySelectorAll(".panel")].find((p) => p.innerText.includes("replica-2")).querySelectorAll("g").length === 5`)
	// Who hears the page is told, too.
	b.until(`document.getElementById("announce").textContent.includes("eu01 moved from replica-1 to replica-2")`)

	f.change(func(s *coordinator.State) { of(s, "eu02").Measured = coordinator.Measured{Rate: 4321} })
	b.until(row("eu02") + `.includes("4,320")`)
}

func pageSearches(t *testing.T, browser context.Context) {
	f := newFleet(3, 30)
	f.change(func(s *coordinator.State) {
		moved(s, "eu05", 3, shard.ReasonDrain)
		of(s, "eu07").Measured.Deaf = true
	})
	address, _ := serve(t, config(f))
	b := open(t, browser, address, desktop)
	b.press("/")
	b.until(focused + ` === "search"`)
	// A keyboard's letter would not come through as well; the browser's protocol
	// sends it apart from the key.
	b.press(kb.Escape)
	b.press("eu1")
	b.until(rows + ` === 10 && document.getElementById("found").textContent === "10 of 30 shards"`)
	b.press(kb.Escape)
	b.until(rows + ` === 30`)
	b.press("drains replica-3")
	b.until(rows + ` === 1 && ` + row("eu05"))
	b.press("x")
	b.until(rows + ` === 0 && document.getElementById("none").innerText === "No shard is like that."`)
	b.press(kb.Escape)

	eval[struct{}](b, `(document.querySelector("[data-filter=deaf]").click(), {})`)
	b.until(rows + ` === 1 && ` + row("eu07") + `.includes("not heard")`)
	eval[struct{}](b, `(document.querySelector("[data-filter=all]").click(), {})`)
	eval[struct{}](b, `([...document.querySelectorAll(".panel .replica")].find((p) => p.innerText === "replica-2").click(), {})`)
	b.until(rows + ` === 9 && [...document.querySelectorAll("#rows tr")].every((tr) => tr.innerText.includes("replica-2"))`)
	b.until(focused + ` === "shards"`)
	eval[struct{}](b, `([...document.querySelectorAll(".chip")].at(-1).click(), {})`)
	b.until(rows + ` === 30`)

	sorted := func(direction string) string {
		return fmt.Sprintf(`(() => {
			const n = [...document.querySelectorAll("#rows tr")].map((tr) => Number(tr.cells[3].innerText));
			return document.querySelector("[aria-sort=%s]")?.innerText.startsWith("Updates/s") && n.every((x, i) => i === 0 || (%s));
		})()`, direction, map[string]string{"descending": "n[i - 1] >= x", "ascending": "n[i - 1] <= x"}[direction])
	}
	click := `([...document.querySelectorAll("#columns button")].find((x) => x.innerText.startsWith("Updates/s")).click(), {})`
	eval[struct{}](b, click)
	b.until(sorted("descending"))
	eval[struct{}](b, click)
	b.until(sorted("ascending"))
}

func pageWithKeyboard(t *testing.T, browser context.Context) {
	f := newFleet(2, 24)
	address, _ := serve(t, config(f))
	b := open(t, browser, address, desktop)
	b.press(kb.Tab)
	b.until(focused + `.startsWith("Skip to the table")`)
	b.press(kb.Tab)
	b.until(focused + ` === "replica-1"`)
	b.press(kb.Tab)
	b.until(focused + ` === "blocks"`)
	chosen := `document.getElementById(document.activeElement.getAttribute("aria-activedescendant"))?.getAttribute("aria-label")`
	b.until(chosen + ` === "eu01: carried by replica-1"`)
	b.until(`!document.getElementById("tip").hidden`)
	if width := eval[string](b, `getComputedStyle(document.activeElement).outlineWidth`); width != "3px" {
		t.Errorf("what has the focus has an outline of %s", width)
	}
	b.press(kb.ArrowRight)
	b.until(chosen + ` === "eu03: carried by replica-1"`)
	b.press(kb.End)
	b.until(chosen + ` === "eu23: carried by replica-1"`)
	b.press(kb.Home)
	b.press(kb.ArrowDown)
	b.until(chosen + ` !== "eu01: carried by replica-1"`)
	b.press(kb.ArrowUp)
	b.press(kb.Home)
	b.press(kb.Enter)
	b.until(`document.getElementById("explanation").open && location.hash === "#cluster=eu01" && document.querySelector("#explanation dl")`)
	b.shoot("explanation")
	b.press(kb.Escape)
	b.until(`!document.getElementById("explanation").open && location.hash === "" && ` + focused + ` === "blocks"`)

	// All that can be used is reached, to the end of the page.
	reached := map[string]bool{}
	for range 150 {
		b.press(kb.Tab)
		what := eval[string](b, focused)
		reached[what] = true
		if strings.HasPrefix(what, "Profiles") {
			break
		}
	}
	for _, want := range []string{"search", "eu01", "Profiles of this replica", "The replicas as a table", "Updates/s"} {
		found := false
		for what := range reached {
			found = found || strings.Contains(what, want)
		}
		if !found {
			t.Errorf("%q is not reached by Tab: %v", want, reached)
		}
	}
}

func pageExplains(t *testing.T, browser context.Context) {
	f := newFleet(2, 3)
	f.ranked = []shard.Ranked{{Replica: incarnation(2), Score: 2}, {Replica: incarnation(1), Score: 1}}
	f.change(func(s *coordinator.State) {
		s.Commands = []coordinator.Command{{Kind: coordinator.CommandPin, Shard: "eu02", Replica: "replica-2", Reason: "near its data", Author: "ops", At: began, Done: began}}
	})
	cfg := config(f)
	cfg.Quarantine = &fakeQuarantine{
		counts:  []store.QuarantineCount{{Cluster: "eu02", Changes: 1, Last: began}},
		poisons: []store.Poison{{Cluster: "eu02", Fault: store.Fault{SQLState: "22003", Reason: "out of range"}, At: began, Times: 2}},
	}
	address, _ := serve(t, cfg)
	b := open(t, browser, address+"/#cluster=eu02", desktop)
	b.until(`document.getElementById("explanation-title").innerText === "eu02"`)
	for _, says := range []string{"Carried by replica-2", "it had no owner yet", "3, held by the owner", "replica-2 (owner)", "out of range (22003), 2 times", "near its data (ops)"} {
		b.until(`document.getElementById("explanation-body").innerText.includes(` + quoted(says) + `)`)
	}
	// It is live, as the rest is.
	f.change(func(s *coordinator.State) { moved(s, "eu02", 1, shard.ReasonLevel) })
	b.until(`document.getElementById("explanation-body").innerText.includes("Carried by replica-1")`)
	b.shoot("explanation")
	eval[string](b, `location.hash = "#cluster=eu99"`)
	b.until(`document.getElementById("explanation-body").innerText.includes('there is no shard of a cluster "eu99"')`)
	b.forgive("404")
	// The next one is asked for before the browser has told that this one is closed.
	eval[string](b, `(document.getElementById("explanation").close(), location.hash = "#cluster=eu02")`)
	b.until(`document.getElementById("explanation-title").innerText === "eu02" && document.querySelector("#explanation dl")`)
	eval[struct{}](b, `(document.getElementById("explanation-close").click(), {})`)
	b.until(`!document.getElementById("explanation").open && location.hash === ""`)
	b.until(`document.getElementById("health").innerText.includes("1 change refused: eu02 1")`)
}

const fits = `document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth`

func pageOnPhone(t *testing.T, browser context.Context) {
	long := "a-cluster-with-a-name-that-is-much-too-long-for-any-phone-and-has-no-blank-in-it"
	f := newFleet(7, 40)
	f.change(func(s *coordinator.State) {
		s.Shards[0].ID = shard.Whole(long)
		s.Replicas[0].Member.Name = "replica-" + strings.Repeat("x", 100)
		moved(s, "eu02", 1, shard.ReasonDrain)
	})
	health := new(fakeHealth)
	health.fail("postgres", "dial tcp: "+strings.Repeat("y", 300))
	cfg := config(f)
	cfg.Checks = health.check
	address, _ := serve(t, cfg)
	for _, width := range []int64{320, 390} {
		b := open(t, browser, address, screen{width: width, height: 800, phone: true})
		b.until(rows + ` === 40 && document.getElementById("health").innerText.includes("yyy")`)
		b.shoot(fmt.Sprintf("phone-%d", width))
		if !eval[bool](b, fits) {
			t.Errorf("at %d pixels the page is %d wide", width, eval[int](b, `document.documentElement.scrollWidth`))
		}
		eval[struct{}](b, `(document.getElementById("replicas-details").open = true, {})`)
		eval[string](b, `location.hash = "#" + new URLSearchParams({cluster: `+quoted(long)+`})`)
		b.until(`document.querySelector("#explanation dl")`)
		b.shoot(fmt.Sprintf("phone-%d-explanation", width))
		if !eval[bool](b, fits+` && document.getElementById("explanation").scrollWidth <= innerWidth`) {
			t.Errorf("at %d pixels the explanation does not fit", width)
		}
	}
}

// pale are the texts whose contrast to what is behind them is below 4.5 to 1.
const pale = `(() => {
	const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
	const rgba = (colour) => {
		canvas.clearRect(0, 0, 1, 1);
		canvas.fillStyle = colour;
		canvas.fillRect(0, 0, 1, 1);
		return [...canvas.getImageData(0, 0, 1, 1).data];
	};
	const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
		.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
	const ground = (e) => {
		const block = e.closest("g")?.querySelector("rect");
		if (block && e.tagName === "text") {
			const fill = rgba(getComputedStyle(block).fill);
			if (fill[3] > 250) return fill;
		}
		for (; e; e = e.parentElement) {
			const colour = rgba(getComputedStyle(e).backgroundColor);
			if (colour[3] > 250) return colour;
		}
		return [255, 255, 255];
	};
	const found = [];
	let looked = 0;
	for (const e of document.querySelectorAll("body *")) {
		const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
		if (!own || !e.checkVisibility() || e.closest(".visually-hidden, .overlay, noscript")) continue;
		looked++;
		const style = getComputedStyle(e);
		const [a, b] = [light(rgba(e.tagName === "text" ? style.fill : style.color)), light(ground(e))];
		const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (contrast < 4.5) found.push(e.textContent.slice(0, 30) + " (" + e.tagName + " in " + (e.closest("[data-state]")?.dataset.state ?? "") + "): " + contrast.toFixed(2));
	}
	if (looked < 50) found.push("only " + looked + " texts were looked at");
	return found;
})()`

func pageColours(t *testing.T, browser context.Context) {
	f := newFleet(3, 12)
	f.change(func(s *coordinator.State) {
		sh := of(s, "eu01")
		sh.Stored.Phase, sh.Stored.Next = shard.PhasePrepare, incarnation(2)
		of(s, "eu02").Measured.Deaf = true
		of(s, "eu03").Measured.Lag = time.Minute
		of(s, "eu04").Stored.Owner, of(s, "eu04").Stored.Phase = "", shard.PhaseUnowned
		s.Replicas[2].Draining = true
		s.Freeze = shard.Freeze{On: true, Reason: "calm", Author: "ops"}
	})
	health := new(fakeHealth)
	health.fail("redis", "connection refused")
	cfg := config(f)
	cfg.Checks = health.check
	address, _ := serve(t, cfg)
	grounds := map[bool]string{}
	for _, dark := range []bool{false, true} {
		b := open(t, browser, address, screen{width: 1280, height: 1000, dark: dark, still: true})
		b.until(`document.getElementById("health").innerText.includes("refused")`)
		b.shoot(fmt.Sprintf("dark-%t", dark))
		if found := eval[[]string](b, pale); len(found) > 0 {
			t.Errorf("dark %t: too pale: %s", dark, strings.Join(found, "; "))
		}
		grounds[dark] = eval[string](b, `getComputedStyle(document.body).backgroundColor`)
		eval[string](b, `location.hash = "#cluster=eu01"`)
		b.until(`document.querySelector("#explanation dl")`)
		if found := eval[[]string](b, pale); len(found) > 0 {
			t.Errorf("dark %t, explanation: too pale: %s", dark, strings.Join(found, "; "))
		}
	}
	if grounds[true] == grounds[false] {
		t.Errorf("light and dark are both on %s", grounds[true])
	}
}

func pageStill(t *testing.T, browser context.Context) {
	f := newFleet(2, 4)
	address, _ := serve(t, config(f))
	s := desktop
	s.still = true
	b := open(t, browser, address, s)
	f.change(func(s *coordinator.State) {
		sh := of(s, "eu01")
		sh.Stored.Phase, sh.Stored.Next = shard.PhaseRelease, incarnation(2)
	})
	b.until(`document.querySelector(".overlay [data-phase=RELEASE] path")`)
	if n := eval[int](b, `document.getAnimations().length`); n != 0 {
		t.Errorf("%d animations run for somebody who wants none", n)
	}
}

// Script in every name: it is shown, and nothing of it runs.
func pageHostile(t *testing.T, browser context.Context) {
	const script = `<img src=x onerror="window.hurt=1"><script>window.hurt=2</script>"><svg onload=window.hurt=3>`
	names := []string{
		script, `'"--></style></script><script>window.hurt=4</script>`, `javascript:window.hurt=5`, "\u202Ereversed\u2066", "two\nlines\u2028\u0000end",
		`{{constructor.constructor('window.hurt=6')()}}`, `__proto__`, `#cluster=other&x`, `a/b?c=d#e%2f+ ü`,
	}
	evil := func(what string) string { return what + " " + script }
	f := newFleet(2, len(names)+1)
	f.ranked = []shard.Ranked{{Replica: incarnation(1)}, {Replica: evil("incarnation")}}
	f.plan.Proposals = []shard.Proposal{{Cluster: script, Slices: 2, Text: evil("proposal")}}
	f.change(func(s *coordinator.State) {
		for i, name := range names {
			sh := &s.Shards[i]
			sh.ID = shard.Whole(name)
			sh.Stored.Text, sh.Stored.Reason = evil("text"), shard.Reason(evil("reason"))
			sh.Stored.Pin = shard.Pin{Replica: evil("pin"), Reason: evil("pin reason"), Author: evil("pin author")}
			sh.Stored.Moves = []table.Past{{At: began, From: evil("from"), To: evil("to"), Reason: shard.Reason(evil("why"))}}
		}
		s.Shards[0].Stored.Phase, s.Shards[0].Stored.Next = shard.PhasePrepare, evil("incarnation")
		s.Shards[1].Stored.Phase = shard.Phase(evil("phase"))
		s.Replicas[1].Incarnation = evil("incarnation")
		s.Replicas[1].Member = table.Member{Name: evil("replica"), Revision: evil("revision"), Peer: evil("address")}
		s.Leader = table.Leader{Incarnation: evil("incarnation"), Name: evil("leader")}
		s.Drains = map[string]table.Drain{evil("replica"): {Reason: evil("drain reason"), Author: evil("drain author")}}
		s.Freeze = shard.Freeze{On: true, Reason: evil("freeze reason"), Author: evil("freeze author")}
		s.Commands = []coordinator.Command{{Kind: table.CommandKind(evil("kind")), Reason: evil("command reason"), Author: evil("command author"), Refused: evil("refused"), Shard: names[0], At: began, Done: began}}
	})
	health := new(fakeHealth)
	health.fail("etcd", evil("error"))
	cfg := config(f)
	cfg.Checks, cfg.Installation, cfg.Version = health.check, evil("installation"), evil("version")
	cfg.Quarantine = &fakeQuarantine{
		counts:  []store.QuarantineCount{{Cluster: script, Changes: 1, Last: began}},
		poisons: []store.Poison{{Cluster: script, Fault: store.Fault{SQLState: evil("state"), Reason: evil("poison")}, At: began}},
	}
	address, _ := serve(t, cfg)
	b := open(t, browser, address, desktop)
	b.until(`document.querySelectorAll("#health li").length > 5`)
	eval[struct{}](b, `(document.getElementById("replicas-details").open = true, {})`)
	for _, shown := range []string{script, evil("installation"), evil("replica"), evil("revision"), evil("address"), evil("freeze author"), evil("drain author"), evil("command author"), evil("error"), evil("version"), evil("from")} {
		b.until(`document.body.textContent.includes(` + quoted(shown) + `)`)
	}
	unhurt := func(where string) {
		t.Helper()
		if got := eval[string](b, `[window.hurt, {}.hurt, document.scripts.length, document.images.length, document.querySelectorAll("iframe, object, embed, [onerror], [onload], [src=x]").length].join()`); got != ",,1,1,0" {
			t.Errorf("%s: %s", where, got)
		}
	}
	unhurt("the page")
	b.shoot("hostile")
	for _, name := range names {
		eval[string](b, `location.hash = "#" + new URLSearchParams({ cluster: `+quoted(name)+` })`)
		b.until(`document.querySelector("#explanation-title").textContent === ` + quoted(name) + ` && document.querySelector("#explanation dl")`)
		for _, shown := range []string{"text", "pin reason", "pin author", "to"} {
			b.until(`document.getElementById("explanation-body").textContent.includes(` + quoted(evil(shown)) + `)`)
		}
		unhurt(name)
	}
	eval[string](b, `location.hash = "#" + new URLSearchParams({ cluster: `+quoted(script)+` })`)
	b.until(`document.getElementById("explanation-body").textContent.includes(` + quoted(evil("poison")) + `)`)
	b.press(kb.Escape)
	// Each link leads to what it names.
	eval[struct{}](b, `([...document.querySelectorAll("#rows a")].find((a) => a.textContent === `+quoted(shard.Whole(names[8]).String())+`).click(), {})`)
	b.until(`document.querySelector("#explanation-title").textContent === ` + quoted(names[8]) + ` && document.querySelector("#explanation dl")`)
	unhurt("after all of it")
}

func pageInTrouble(t *testing.T, browser context.Context) {
	f := newFleet(3, 6)
	health := new(fakeHealth)
	cfg := config(f)
	cfg.Checks = health.check
	address, _ := serve(t, cfg)
	b := open(t, browser, address, desktop)
	alerts := func(text string) string {
		return `document.getElementById("alerts").innerText.includes(` + quoted(text) + `)`
	}
	b.until(`document.getElementById("alerts").hidden`)
	health.fail("etcd", "no lease")
	f.change(func(s *coordinator.State) {
		s.Detached = true
		s.Leader = table.Leader{}
		s.Brake = shard.Brake{Since: began, Roster: 3}
		s.Replicas[2].Gone = time.Now()
		of(s, "eu01").Stored.Owner, of(s, "eu01").Stored.Phase = "", shard.PhaseUnowned
		of(s, "eu02").Measured.Deaf = true
	})
	for _, text := range []string{"cut off from etcd", "Nobody leads", "The brake is on", "1 shard has no owner", "1 shard is not heard"} {
		b.until(alerts(text))
	}
	b.until(`document.getElementById("health").innerText.includes("no lease")`)
	b.until(`[...document.querySelectorAll(".panel")].at(-1).innerText.startsWith("No owner") && document.querySelector('.panel[data-state="gone"]')`)
	b.shoot("trouble")
	f.change(func(s *coordinator.State) {
		*s = coordinator.State{}
	})
	b.until(alerts("has not read the fleet from etcd yet"))
	b.until(`document.getElementById("none").innerText.includes("have not been read yet") && document.querySelector("#picture .empty").innerText.includes("not been read")`)
}

// The page outlives its server, says so, and goes on with the next one.
func pageWithoutServer(t *testing.T, browser context.Context) {
	f := newFleet(2, 4)
	cfg := config(f)
	address, stop := serve(t, cfg)
	b := open(t, browser, address, desktop)
	b.until(`document.getElementById("link").textContent === "live"`)
	stop()
	b.until(`document.getElementById("link").textContent === "no answer" && document.getElementById("alerts").innerText.includes("does not answer")`)
	if n := eval[int](b, rows); n != 4 {
		t.Errorf("%d rows are left of what was told last", n)
	}
	b.shoot("gone")
	f.change(func(s *coordinator.State) { moved(s, "eu01", 2, shard.ReasonOrphan) })
	cfg.Address = address
	serve(t, cfg)
	b.until(`document.getElementById("link").textContent === "live" && document.getElementById("alerts").hidden && ` + row("eu01") + `.includes("replica-2")`)
	b.forgive("net::ERR_")
}

func pageOfOne(t *testing.T, browser context.Context) {
	f := newFleet(1, 3)
	address, _ := serve(t, config(f))
	b := open(t, browser, address, desktop)
	b.until(rows + ` === 3 && document.getElementById("totals").innerText.startsWith("1 replica · 3 shards")`)
	b.shoot("one")
	f.change(func(s *coordinator.State) { s.Shards = nil })
	b.until(`document.getElementById("none").innerText.includes("no cluster is registered yet")`)
}

// A hundred replicas with ten thousand shards are drawn, searched and kept up to
// date, and what changes is all that is told.
func pageOfMany(t *testing.T, browser context.Context) {
	f := newFleet(100, 10_000)
	address, _ := serve(t, config(f))
	b := open(t, browser, address, desktop)
	b.until(`document.querySelectorAll(".panel").length === 100 && document.querySelectorAll(".blocks g").length === 10000`)
	b.until(rows + ` === 100 && document.getElementById("more").innerText.includes("9,900")`)
	if !eval[bool](b, fits) {
		t.Error("it does not fit")
	}
	eval[struct{}](b, `(document.getElementById("search").focus(), {})`)
	b.press("eu777")
	b.until(rows + ` === 11`) // eu777 and eu7770 to eu7779
	f.change(func(s *coordinator.State) {
		for n := range 500 {
			sh := &s.Shards[n*20]
			sh.Stored.Phase, sh.Stored.Next = shard.PhasePrepare, incarnation(1+(n*7)%100)
		}
	})
	b.until(`document.querySelectorAll(".overlay path").length > 10 && document.querySelectorAll(".overlay path").length < 500`)
	b.until(`document.getElementById("moves-now").innerText.startsWith("500 shards")`)
	b.shoot("many")
}

// What the page is served with holds in a browser, too: another origin gets
// nothing from us and changes nothing.
func TestOtherSiteInBrowser(t *testing.T) {
	browser := startChromium(t)
	var level slog.LevelVar
	cfg := config(newFleet(1, 1))
	cfg.Level = &level
	address, _ := serve(t, cfg)
	other, err := console.New(config(newFleet(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- other.Run(ctx) }()
	defer func() { cancel(); <-ended; http.DefaultClient.CloseIdleConnections() }()

	b := open(t, browser, other.Addr().String(), desktop)
	for _, call := range []string{
		fmt.Sprintf(`fetch("http://%s/log/level", { method: "PUT", body: "debug", mode: "no-cors" })`, address),
		fmt.Sprintf(`fetch("http://%s/", { headers: { Accept: "application/json" } })`, address),
	} {
		b.until(`globalThis.called?.state ?? (globalThis.called = { }, ` + call + `.then(() => (called.state = "answered"), () => (called.state = "refused")), false)`)
		if got := eval[string](b, `called.state`); got != "refused" {
			t.Errorf("%s: %s", call, got)
		}
		eval[struct{}](b, `(delete globalThis.called, {})`)
	}
	if level.Level() != slog.LevelInfo {
		t.Errorf("the level is %v", level.Level())
	}
	b.forgive("Content Security Policy")
	b.forgive("Connecting to")
	b.forgive("Fetch API")
}
