// Alerts, health, replicas, moves and commands.

import { byId, h, keyed, name, setText } from "./dom.js";
import { ago, amount, condition, count, instant, phase, plural, setAgo, who, why, wish } from "./format.js";
import { linkTo } from "./table.js";

const mostLines = 8;
const collator = new Intl.Collator("en", { numeric: true });
const titles = { pipeline: "Pipeline", clusters: "List of clusters", etcd: "etcd", postgres: "PostgreSQL", redis: "Redis" };

export function renderAlerts(state, link) {
  const alerts = [];
  const add = (level, key, ...text) => alerts.push({ level, key, text, said: text.map((t) => t?.textContent ?? t).join("") });
  if (link === "lost" && state.at) add("bad", "lost", "The replica does not answer. Shown is what it told last, ", ago(state.at), "; it is tried again.");
  if (link === "lost" && !state.at) add("bad", "lost", "The replica does not answer; it is tried again.");
  const { answering, fleet } = state;
  if (answering && !answering.known) add("bad", "unread", "This replica has not read the fleet from etcd yet.");
  if (answering?.detached) add("bad", "detached", "This replica is cut off from etcd. It goes on with the shards that it has; what is shown of others may be old.");
  if (answering?.known && !fleet?.leader) add("warn", "leaderless", "Nobody leads: nothing moves until a leader is elected.");
  if (fleet?.brake) {
    const { brake } = fleet;
    add("bad", "brake", `The brake is on: more than half of ${plural(brake.roster, "replica")} vanished at once. `,
      brake.limited ? "Shards move again, within the caps. " : "Nothing moves. ", "On since ", ago(brake.since), ".");
  }
  if (fleet?.freeze) {
    const { freeze } = fleet;
    add("warn", "freeze", "The fleet is frozen: ", name(freeze.reason || "no reason given"), " (", name(freeze.author || "unknown"), ")", ...(freeze.until ? [", ends ", ago(freeze.until)] : []), ".");
  }
  const n = { unowned: 0, deaf: 0, late: 0 };
  for (const shard of state.shards.values()) {
    const c = condition(shard);
    if (c in n) n[c]++;
  }
  if (n.unowned) add("bad", "unowned", `${plural(n.unowned, "shard has", "shards have")} no owner: nobody writes what ${n.unowned === 1 ? "its cluster says" : "their clusters say"}.`);
  if (n.deaf) add("warn", "deaf", `${plural(n.deaf, "shard is", "shards are")} not heard: ${n.deaf === 1 ? "the owner" : "their owners"} cannot reach the ${n.deaf === 1 ? "cluster" : "clusters"}.`);
  if (n.late) add("warn", "late", `${plural(n.late, "shard is", "shards are")} late: updates wait for the database.`);
  byId("alerts").hidden = alerts.length === 0;
  keyed(byId("alerts"), alerts, (a) => a.key, () => h("p", { class: "alert" }), (p, a) => {
    p.dataset.level = a.level;
    if (p.said !== a.said) p.replaceChildren(...a.text);
    p.said = a.said;
  });
}

export function renderHealth({ health, answering }) {
  if (!health) return;
  const list = health.checks.map((c) => ({ key: c.name, title: titles[c.name] ?? c.name, good: c.ok, said: c.ok ? "well" : c.error, since: c.since }));
  const q = health.quarantine;
  if (list.length > 0) list.push({ key: "quarantine", title: "Quarantine", good: !q.error && q.changes === 0, mild: !q.error, said: q.error ?? (q.changes ? "" : "empty"), quarantine: q });
  else list.push({ key: "none", title: "Health", mild: true, said: "is being looked at …" });
  keyed(byId("health"), list, (c) => c.key, () => h("li", {}, h("strong"), h("span", { class: "said" }), h("span", { class: "quiet" })), (li, c) => {
    const [title, said, since] = li.children;
    li.dataset.state = c.good ? "good" : c.mild ? "mild" : "bad";
    setText(title, c.title);
    const text = c.said || JSON.stringify(c.quarantine);
    if (said.told !== text) said.replaceChildren(...(c.said ? [c.said] : refusals(c.quarantine)));
    said.told = text;
    if (c.since) setAgo(since, c.since);
  });
  byId("health").setAttribute("aria-label", `Health as ${who(answering) || "this replica"} sees it`);
}

function refusals(q) {
  const few = q.clusters.slice(0, 3).flatMap((c, i) => [i ? ", " : "", h("a", { href: linkTo(c.cluster) }, name(c.cluster)), ` ${count(c.changes)}`]);
  return [plural(q.changes, "change"), " refused: ", ...few, q.clusters.length > 3 ? ` and ${count(q.clusters.length - 3)} more` : ""];
}

export function renderReplicas(state) {
  const list = [...state.replicas.values()].sort((a, b) => collator.compare(who(a), who(b)));
  keyed(byId("replicas"), list, (r) => r.incarnation,
    () => h("tr", {}, h("th", { scope: "row" }), h("td"), h("td", { class: "number" }), h("td", { class: "number" }), h("td"), h("td"), h("td"), h("td")),
    (row, r) => {
      if (row.replica === r) return;
      row.replica = r;
      const [title, stands, shards, load, revision, address, joined, incarnation] = row.children;
      title.replaceChildren(name(who(r)));
      const drain = r.drain ? [": ", name(r.drain.reason || "no reason given"), " (", name(r.drain.author || "unknown"), ")"] : [];
      stands.replaceChildren(r.leads ? `${r.state}, leads` : r.state, ...drain);
      setText(shards, count(r.shards));
      setText(load, amount(r.load) + (r.cap ? ` of ${amount(r.cap)}` : ""));
      revision.replaceChildren(name(r.revision ?? "–"));
      address.replaceChildren(name(r.address ?? "–"));
      setAgo(joined, r.joined);
      incarnation.replaceChildren(name(r.incarnation));
    });
}

export function renderMoves(state) {
  const under = [...state.shards.values()].filter((x) => x.next || x.phase === "RAISE");
  under.sort((a, b) => instant(b.since) - instant(a.since));
  setText(byId("moves-now"), under.length ? `${plural(under.length, "shard changes hands", "shards change hands")} now` : "none under way");
  const lines = under.slice(0, mostLines).map((x) => ({
    key: `now ${x.id} ${x.phase} ${x.epoch}`, now: true, shard: x.id, cluster: x.cluster, phase: x.phase, at: x.since,
    from: x.next ? x.owner : x.former, to: x.next ?? x.owner, reason: x.reason, text: x.text,
  }));
  const rest = state.moves.filter((m) => !lines.some((l) => l.shard === m.shard && l.phase === "RAISE")).slice(0, mostLines - lines.length);
  for (const m of rest) {
    const current = state.shards.get(m.shard);
    lines.push({ key: `${m.shard} ${m.epoch} ${m.at}`, ...m, cluster: current?.cluster ?? m.shard, text: current?.epoch === m.epoch ? current.text : "" });
  }
  keyed(byId("moves"), lines, (l) => l.key, makeMove, (li, l) => (li.title = l.text ?? ""));
  if (lines.length === 0) byId("moves").dataset.empty = "Nothing has moved yet.";
  else delete byId("moves").dataset.empty;
}

function makeMove(m) {
  return h("li", { data: { now: m.now ? "yes" : "no" } },
    h("span", { class: "what" },
      h("a", { href: linkTo(m.cluster) }, name(m.shard)), " ",
      m.from ? [name(who(m.from)), " → "] : "→ ", name(who(m.to))),
    h("span", { class: "quiet why" }, m.now ? `${phase(m.phase)}: ${why(m.reason)}` : why(m.reason)),
    h("span", { class: "quiet when" }, ago(m.at)));
}

export function renderCommands(state) {
  keyed(byId("commands"), state.commands.slice(0, mostLines), (c) => `${c.at} ${c.kind} ${c.shard ?? c.replica ?? c.cluster ?? ""} ${c.done ?? ""} ${c.refused ?? ""}`,
    (c) => commandLine(c), () => {});
  if (state.commands.length === 0) byId("commands").dataset.empty = "Operators have asked for nothing yet.";
  else delete byId("commands").dataset.empty;
}

export function commandLine(c) {
  const came = c.refused ? ["refused: ", name(c.refused)] : c.done ? [] : ["waits for the leader"];
  return h("li", { data: { now: c.done ? "no" : "yes" } },
    h("span", { class: "what" }, wish(c).map((part, i) => (i === 1 ? part : name(part)))),
    h("span", { class: "quiet why" }, name(c.reason), " (", name(c.author), ")", came.length ? [" · ", came] : ""),
    h("span", { class: "quiet when" }, ago(c.at)));
}

// Announcer tells those who hear the page of moves, and does not talk all the
// time.
export class Announcer {
  constructor() {
    this.known = new Set();
    this.latest = 0;
    this.waiting = [];
  }

  hear(moves, still) {
    const key = (m) => `${m.shard} ${m.epoch} ${m.at}`;
    if (!still) this.waiting.push(...moves.filter((m) => !this.known.has(key(m)) && instant(m.at) >= this.latest));
    this.known = new Set(moves.map(key));
    this.latest = Math.max(this.latest, ...moves.map((m) => instant(m.at)));
  }

  speak() {
    if (this.waiting.length === 0) return;
    const said = this.waiting.slice(0, 3).map((m) => `${m.shard} moved ${m.from ? `from ${who(m.from)} ` : ""}to ${who(m.to)}: ${why(m.reason)}.`);
    if (this.waiting.length > 3) said.push(`${count(this.waiting.length - 3)} more moved.`);
    this.waiting = [];
    setText(byId("announce"), said.join(" "));
  }
}

