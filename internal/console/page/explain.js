// The explanation of one cluster, in a dialog that has an address.

import { byId, h, name } from "./dom.js";
import { ago, amount, condition, count, duration, lasts, phase, plural, refreshTimes, who, why } from "./format.js";
import { commandLine } from "./lists.js";
import { describe } from "./picture.js";

const every = 3000;
const manyShards = 3; // from when on each shard is folded away

const unplaced = {
  brake: "the brake holds: too many replicas vanished at once",
  nobody: "no replica takes shards",
  cap: "all replicas are full, after a loss of many",
};

export class Explanation {
  constructor() {
    this.dialog = byId("explanation");
    this.body = byId("explanation-body");
    byId("explanation-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => {
      // The browser tells it a frame later, when another cluster may be wanted, or shown.
      if (this.dialog.open) return;
      clearTimeout(this.timer);
      this.asked?.abort();
      if (wanted() === this.cluster) history.replaceState(null, "", location.pathname + location.search);
      this.cluster = undefined;
    });
    window.addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  // follow shows what the address asks for.
  follow() {
    const cluster = wanted();
    if (cluster === undefined) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    if (cluster === this.cluster && this.dialog.open) return;
    this.cluster = cluster;
    byId("explanation-title").replaceChildren(name(cluster));
    this.body.replaceChildren(h("p", { class: "empty" }, "One moment …"));
    if (!this.dialog.open) this.dialog.showModal();
    byId("explanation-title").focus();
    this.ask();
  }

  // news asks again soon if something of the cluster has changed.
  news(shards) {
    if (!this.cluster || !shards.some((x) => x.cluster === this.cluster)) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), Math.max(0, 1000 - (Date.now() - this.at)));
  }

  async ask() {
    clearTimeout(this.timer);
    this.asked?.abort();
    const asked = (this.asked = new AbortController());
    const cluster = this.cluster;
    this.at = Date.now();
    try {
      const response = await fetch(`/cluster?${new URLSearchParams({ name: cluster })}`, {
        headers: { Accept: "application/json" },
        signal: AbortSignal.any([asked.signal, AbortSignal.timeout(10_000)]),
      });
      const told = await response.json();
      if (cluster === this.cluster) this.show(told, response.ok);
    } catch (error) {
      if (asked.signal.aborted) return;
      if (!this.body.dataset.cluster || this.body.dataset.cluster !== cluster) this.fail("The replica does not answer; it is asked again.");
    }
    if (cluster === this.cluster) this.timer = setTimeout(() => this.ask(), every);
  }

  fail(text) {
    this.body.replaceChildren(h("p", { class: "alert", data: { level: "bad" } }, text));
    delete this.body.dataset.cluster;
  }

  show(told, ok) {
    if (!ok) {
      this.fail(told.error ?? "The replica cannot explain that.");
      return;
    }
    // Parts that say the same as before are left alone: somebody reads them.
    const parts = new Map();
    const part = (key, data, make) => parts.set(key, { said: JSON.stringify(data), make });
    part("head", [told.slices, told.reslice, told.proposals, told.detached], () => head(told));
    told.shards.forEach((shard) => part(`shard ${shard.id}`, shard, () => shardPart(shard, told.shards.length)));
    part("quarantine", told.quarantine, () => quarantinePart(told.quarantine));
    part("commands", told.commands, () => commandsPart(told.commands));

    if (this.body.dataset.cluster !== told.cluster) {
      this.body.replaceChildren();
      this.body.dataset.cluster = told.cluster;
    }
    const old = new Map([...this.body.children].map((e) => [e.key, e]));
    const list = [...parts].map(([key, { said, make }]) => {
      const before = old.get(key);
      if (before?.said === said) return before;
      const element = make();
      if (before?.tagName === "DETAILS") element.open = before.open;
      return Object.assign(element, { key, said });
    });
    if (list.length !== this.body.children.length || list.some((e, i) => e !== this.body.children[i])) this.body.replaceChildren(...list);
    refreshTimes();
  }
}

function wanted() {
  return new URLSearchParams(location.hash.slice(1)).get("cluster") ?? undefined;
}

function head(told) {
  const cut = told.slices > 1 ? `Cut into ${told.slices} slices, each with its own owner.` : "";
  const re = told.reslice;
  return h("div", { class: "part" },
    told.detached && h("p", { class: "alert", data: { level: "bad" } }, "This replica is cut off from etcd: what it says may be old."),
    cut && h("p", {}, cut),
    re && re.phase !== "done" && h("p", {}, `Being cut from ${re.from} into ${re.to} (${re.phase}): `, name(re.reason || "no reason given"), " (", name(re.author || "unknown"), ")."),
    told.proposals.map((p) => h("p", {}, "Proposed: ", name(p))));
}

function shardPart(shard, of) {
  const m = shard.measured;
  const content = [
    h("p", { class: "lead" },
      shard.owner ? ["Carried by ", h("strong", {}, name(who(shard.owner)))] : h("strong", {}, "Nobody carries it"),
      shard.next && [", on its way to ", h("strong", {}, name(who(shard.next)))],
      shard.since && [" (", phase(shard.phase), " for ", lasts(shard.since), ")"], "."),
    h("p", {}, "Why: ", why(shard.reason), ".", shard.text && h("span", { class: "quiet" }, " ", name(shard.text))),
    shard.unplaced && h("p", { class: "alert", data: { level: "bad" } }, "The planner finds no place for it: ", unplaced[shard.unplaced] ?? shard.unplaced, "."),
    m?.deaf && h("p", { class: "alert", data: { level: "warn" } }, "The owner cannot hear the cluster."),
    h("dl", { class: "facts" },
      fact("Epoch", shard.epoch === shard.held ? `${shard.epoch}, held by the owner` : `${shard.epoch}; held: ${shard.held || "none"}`),
      fact("Updates", m ? `${amount(m.rate)} a second` : "not measured"),
      fact("Live instances", m ? count(m.live) : "not measured"),
      fact("Lag", m ? duration(m.lagSeconds) : "not measured"),
      fact("Heard last", m?.lastEvent ? ago(m.lastEvent) : "not measured"),
      fact("Load", amount(shard.weight)),
      shard.pin && fact("Pinned", ["to ", name(shard.pin.replica), ": ", name(shard.pin.reason || "no reason given"), " (", name(shard.pin.author || "unknown"), ")", shard.pin.until && [", ends ", ago(shard.pin.until)]]),
      shard.planned && fact("Planned", ["to ", name(who(shard.planned.to)), ": ", why(shard.planned.reason), ". ", name(shard.planned.text)])),
    shard.preferences.length > 0 && [
      h("h4", {}, "Where it would rather be"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Preferences of ${shard.id}` },
        h("table", { class: "data" },
          h("thead", {}, h("tr", {}, ["Replica", "Score", "Load", "Even load", "Cap"].map((t, i) => h("th", { scope: "col", class: i && "number" }, t)))),
          h("tbody", {}, shard.preferences.map((p) => h("tr", { data: { owner: p.replica.incarnation === shard.owner?.incarnation ? "yes" : "no" } },
            h("th", { scope: "row" }, name(who(p.replica)), p.replica.incarnation === shard.owner?.incarnation && " (owner)", p.draining && " (drains)"),
            h("td", { class: "number" }, p.score.toFixed(2)),
            h("td", { class: "number" }, amount(p.load)), h("td", { class: "number" }, amount(p.fair)), h("td", { class: "number" }, p.cap ? amount(p.cap) : "none")))))),
    ],
    h("h4", {}, "Owners before"),
    shard.moves.length > 0
      ? h("ol", { class: "lines" }, shard.moves.map((x) => h("li", {},
          h("span", { class: "what" }, x.from ? [name(who(x.from)), " → "] : "→ ", name(who(x.to))),
          h("span", { class: "quiet why" }, `epoch ${x.epoch}: ${why(x.reason)}`),
          h("span", { class: "quiet when" }, ago(x.at)))))
      : h("p", { class: "empty" }, "It has not moved yet."),
  ];
  if (of === 1) return h("div", { class: "part" }, content);
  return h("details", { class: "part", open: of <= manyShards },
    h("summary", {}, h("span", { class: "state", data: { state: condition(shard) } }, name(shard.id)), " ", describe(shard)), content);
}

const fact = (title, value) => h("div", {}, h("dt", {}, title), h("dd", {}, value));

function quarantinePart(q) {
  if (q.error) return h("div", { class: "part" }, h("h3", {}, "Quarantine"), h("p", { class: "alert", data: { level: "warn" } }, "It cannot be read: ", name(q.error)));
  if (q.changes.length === 0) return h("div", { class: "part" }, h("h3", {}, "Quarantine"), h("p", { class: "empty" }, "The database has refused none of its changes."));
  return h("div", { class: "part" },
    h("h3", {}, "Quarantine"),
    h("p", {}, "Changes that the database refuses for their own sake, the last ones:"),
    h("ol", { class: "lines" }, q.changes.map((c) => h("li", {},
      h("span", { class: "what" }, h("code", {}, c.instance)),
      h("span", { class: "quiet why" }, name(c.kind), `, version ${c.statusVersion}: `, name(c.reason), ` (${c.sqlstate}), ${plural(c.times, "time")}`),
      h("span", { class: "quiet when" }, ago(c.last))))));
}

function commandsPart(commands) {
  return h("div", { class: "part" },
    h("h3", {}, "Asked for by operators"),
    commands.length > 0 ? h("ol", { class: "lines" }, commands.map(commandLine)) : h("p", { class: "empty" }, "Nothing of late."));
}
