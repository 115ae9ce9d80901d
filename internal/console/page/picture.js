// The fleet as a picture: a panel for each replica, in it a block for each
// shard, as large as its load, by the same measure in all panels.

import { h, keyed, name, s, setAttributes, setText } from "./dom.js";
import { amount, condition, count, duration, instant, now, phase, plural, who } from "./format.js";
import { density, strips, weigh } from "./layout.js";
import { Overlay } from "./overlay.js";

const nobody = ""; // the key of the panel of shards without an owner
const goneFor = 120_000; // how long a replica without shards is shown after its end

let ids = 0; // of blocks, for aria-activedescendant

export class Picture {
  // open is called with a cluster, select with a replica's incarnation.
  constructor(root, tip, { open, select }) {
    this.tip = tip;
    this.open = open;
    this.select = select;
    this.panels = h("div", { class: "panels" });
    this.empty = h("p", { class: "empty", hidden: true });
    this.overlay = new Overlay();
    root.append(this.empty, this.panels, this.overlay.element);
    this.root = root;
    this.owners = new Map(); // shard -> incarnation, as drawn last
    this.places = new Map(); // shard -> its block within the picture
    new ResizeObserver(() => this.state && requestAnimationFrame(() => this.render(this.state, true))).observe(root);
  }

  // render draws a state; still leaves out that anything has moved since the
  // last time.
  render(state, still) {
    this.state = state;
    const panels = arrange(state);
    const shown = density(panels.length);
    this.panels.dataset.density = shown.name;
    this.empty.hidden = panels.length > 0;
    setText(this.empty, state.answering?.known ? "No replicas are known." : "The fleet has not been read yet.");
    keyed(this.panels, panels, (p) => p.key, (p) => this.panel(p), (element, p) => this.head(element, p, shown.name === "tiny"));

    const most = Math.max(1, ...panels.map((p) => p.weight));
    const elements = [...this.panels.children];
    const width = elements[0]?.blocks.clientWidth ?? 0;
    panels.forEach((p, i) => this.blocks(elements[i], p, width, shown.height, most));
    this.place(elements);
    this.move(state, panels, elements, still);
  }

  panel({ replica }) {
    const blocks = s("svg", { class: "blocks", role: "listbox", tabindex: "0" });
    const title = h("button", { class: "replica", type: "button" }, h("bdi"));
    const element = h("article", { class: "panel" }, h("header", {}, title, h("span", { class: "badges" })), h("p", { class: "load" }), blocks);
    element.blocks = blocks;
    title.addEventListener("click", () => this.select(replica?.incarnation ?? nobody));
    blocks.addEventListener("keydown", (event) => this.key(event, blocks));
    blocks.addEventListener("focus", () => this.activate(blocks, blocks.active ?? blocks.firstElementChild));
    blocks.addEventListener("blur", () => this.hush());
    blocks.addEventListener("click", (event) => {
      const block = event.target.closest("g");
      if (block) this.open(block.shard.cluster);
    });
    blocks.addEventListener("pointermove", (event) => {
      const block = event.target.closest("g");
      if (block) this.say(block.shard, event.clientX, event.clientY);
      else this.hush();
    });
    blocks.addEventListener("pointerleave", () => this.hush());
    return element;
  }

  head(element, { replica, shards, load }, tiny) {
    const [title, badges] = element.firstElementChild.children;
    const called = replica ? who(replica) : "No owner";
    setText(title.firstElementChild, called);
    title.title = replica ? `${called}, revision ${replica.revision || "unknown"}: show its shards in the table` : "Show these shards in the table";
    element.dataset.state = replica?.state ?? "nobody";
    const marks = [replica?.leads && "leads", replica && replica.state !== "live" && replica.state].filter(Boolean);
    keyed(badges, marks, (m) => m, (m) => h("span", { class: "badge", data: { mark: m } }, m), () => {});
    const cap = replica?.cap ? ` of ${amount(replica.cap)}` : "";
    setText(element.children[1], replica?.state === "gone" && shards === 0 ? "gone" : `${tiny ? count(shards) : plural(shards, "shard")} · ${tiny ? "" : "load "}${amount(load)}${cap}`);
    element.children[1].title = `${plural(shards, "shard")}, load ${amount(load)}${cap}`;
    setAttributes(element.blocks, { "aria-label": `Shards of ${called}: arrow keys choose one, Enter explains its cluster` });
  }

  blocks(element, { items, weight }, width, height, most) {
    const svg = element.blocks;
    setAttributes(svg, { viewBox: `0 0 ${width} ${height}`, height });
    // What a replica carries fills its panel from the bottom, by one measure.
    const high = height * Math.min(1, weight / most);
    const places = strips(items.map((i) => i.weight), width, high);
    const gap = items.length > 60 ? 0.4 : 0.75;
    let n = 0;
    keyed(svg, items, (i) => i.key, makeBlock, (g, item) => {
      const at = places[n++];
      g.shard = item.shard;
      g.at = { x: at.x + gap, y: at.y + height - high + gap, width: Math.max(at.width - 2 * gap, 0.5), height: Math.max(at.height - 2 * gap, 0.5) };
      g.shadow = item.shadow;
      drawBlock(g, item);
    });
    if (svg.active && !svg.active.isConnected) {
      svg.active = undefined;
      svg.removeAttribute("aria-activedescendant");
    }
  }

  // place finds where the blocks are within the picture.
  place(elements) {
    const origin = this.root.getBoundingClientRect();
    this.before = this.places;
    this.places = new Map();
    this.shadows = new Map();
    for (const element of elements) {
      const frame = element.blocks.getBoundingClientRect();
      const [left, top] = [frame.left - origin.left, frame.top - origin.top];
      element.middle = { x: left + frame.width / 2, y: top + frame.height / 2 };
      for (const g of element.blocks.children) {
        const at = { x: left + g.at.x, y: top + g.at.y, width: g.at.width, height: g.at.height };
        (g.shadow ? this.shadows : this.places).set(g.shard.id, at);
      }
    }
  }

  move(state, panels, elements, still) {
    const middles = new Map(panels.map((p, i) => [p.key, elements[i].middle]));
    const under = [];
    const flights = [];
    for (const shard of state.shards.values()) {
      const owner = shard.owner?.incarnation ?? nobody;
      const to = this.places.get(shard.id);
      const was = this.owners.get(shard.id);
      if (!still && to && was !== undefined && was !== owner) {
        flights.push({ from: this.before.get(shard.id) ?? middles.get(was), to });
      }
      this.owners.set(shard.id, owner);
      if (shard.next) {
        under.push({ phase: shard.phase, from: to, to: this.shadows.get(shard.id), ends: [middles.get(owner), middles.get(shard.next.incarnation)] });
      } else if (shard.phase === "RAISE" && shard.former) {
        const from = middles.get(shard.former.incarnation);
        if (from) under.push({ phase: shard.phase, from, to, ends: [from, middles.get(owner)] });
      }
    }
    if (this.owners.size > state.shards.size) {
      for (const id of this.owners.keys()) if (!state.shards.has(id)) this.owners.delete(id);
    }
    this.overlay.draw(this.root, under, flights);
  }

  // key moves among the blocks of a panel.
  key(event, svg) {
    const list = [...svg.children];
    const at = list.indexOf(svg.active);
    let next;
    switch (event.key) {
      case "ArrowRight": next = list[at + 1]; break;
      case "ArrowLeft": next = list[at - 1]; break;
      case "ArrowDown": next = beyond(list, svg.active, 1); break;
      case "ArrowUp": next = beyond(list, svg.active, -1); break;
      case "Home": next = list[0]; break;
      case "End": next = list.at(-1); break;
      case "Escape": this.hush(); return;
      case "Enter": case " ":
        if (svg.active) this.open(svg.active.shard.cluster);
        break;
      default: return;
    }
    event.preventDefault();
    if (next) this.activate(svg, next);
  }

  activate(svg, block) {
    svg.active?.setAttribute("aria-selected", "false");
    svg.active = block ?? undefined;
    if (!block) return;
    block.setAttribute("aria-selected", "true");
    svg.setAttribute("aria-activedescendant", block.id);
    if (svg.matches(":focus-visible")) {
      const at = block.getBoundingClientRect();
      this.say(block.shard, at.left + at.width / 2, at.bottom);
    }
  }

  say(shard, x, y) {
    const m = shard.measured;
    this.tip.replaceChildren(
      h("strong", {}, name(shard.id)),
      h("span", {}, describe(shard)),
      h("span", {}, m ? `${amount(m.rate)} updates/s · ${plural(m.live, "live instance")} · lag ${duration(m.lagSeconds)}` : "nothing is measured"),
    );
    this.tip.hidden = false;
    const { width, height } = this.tip.getBoundingClientRect();
    const below = y + 16 + height < window.innerHeight;
    this.tip.style.left = `${Math.max(8, Math.min(x + 12, window.innerWidth - width - 8))}px`;
    this.tip.style.top = `${below ? y + 16 : Math.max(8, y - height - 12)}px`;
  }

  hush() {
    this.tip.hidden = true;
  }
}

// arrange puts the shards to those who carry them, and their shadows to those
// who are about to.
function arrange(state) {
  const panels = new Map();
  const replicas = [...state.replicas.values()].sort((a, b) => compareIDs(a.name ?? "", b.name ?? "") || instant(a.joined) - instant(b.joined));
  for (const replica of replicas) panels.set(replica.incarnation, { key: replica.incarnation, replica, items: [], shards: 0, load: 0, weight: 0 });
  const add = (key, replica, shard, shadow) => {
    let panel = panels.get(key);
    if (!panel) {
      panel = { key, replica, items: [], shards: 0, load: 0, weight: 0 };
      panels.set(key, panel);
    }
    const weight = weigh(shard.weight);
    panel.items.push({ key: (shadow ? "shadow " : "") + shard.id, shard, shadow, weight });
    panel.weight += weight;
    if (!shadow) {
      panel.shards++;
      panel.load += shard.weight;
    }
  };
  for (const shard of state.shards.values()) {
    if (shard.phase === "RETIRED") continue;
    const owner = shard.owner?.incarnation ?? nobody;
    add(owner, shard.owner && { ...shard.owner, state: "unknown" }, shard, false);
    if (shard.next) add(shard.next.incarnation, { ...shard.next, state: "unknown" }, shard, true);
  }
  const long = now() - goneFor;
  const list = [...panels.values()].filter((p) => p.items.length > 0 || (p.replica && !(p.replica.gone && instant(p.replica.gone) < long)));
  for (const p of list) p.items.sort((a, b) => compareIDs(a.shard.id, b.shard.id) || compare(a.key, b.key));
  // Those without an owner come last, so that nothing shifts when they come.
  return list.sort((a, b) => (a.key === nobody) - (b.key === nobody));
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const collator = new Intl.Collator("en", { numeric: true });
const compareIDs = (a, b) => collator.compare(a, b) || compare(a, b);

function makeBlock() {
  return s("g", { role: "option", id: `block-${++ids}`, "aria-selected": "false" }, s("rect", { rx: 1.5 }));
}

function drawBlock(g, { shard, shadow }) {
  const { x, y, width, height } = g.at;
  const state = shadow ? "shadow" : condition(shard);
  const label = width > 44 && height > 17 ? fit(shard.id, width - 8) : "";
  const second = label && height > 34 && shard.measured && !shadow ? fit(`${amount(shard.measured.rate)}/s`, width - 8) : "";
  const said = `${shard.id}: ${shadow ? `to come, ${phase(shard.phase)}` : describe(shard)}`;
  const drawn = [x, y, width, height, state, label, second, said].join("\u0001");
  if (g.drawn === drawn) return;
  g.drawn = drawn;
  g.dataset.state = state;
  setAttributes(g, { "aria-label": said });
  const [rect, ...texts] = g.children;
  setAttributes(rect, { x: x.toFixed(2), y: y.toFixed(2), width: width.toFixed(2), height: height.toFixed(2) });
  const lines = [label, second].filter(Boolean);
  while (texts.length > lines.length) texts.pop().remove();
  lines.forEach((line, i) => {
    if (!texts[i]) g.append((texts[i] = s("text", { class: i ? "second" : "first" })));
    setText(texts[i], line);
    setAttributes(texts[i], { x: (x + 5).toFixed(2), y: (y + 13 + i * 14).toFixed(2) });
  });
}

// fit shortens a text to a width; letters of this size are about 6.6 wide.
function fit(text, width) {
  const most = Math.floor(width / 6.6);
  const letters = [...text];
  return letters.length <= most ? text : most < 4 ? "" : letters.slice(0, most - 1).join("") + "…";
}

// beyond is the block above or below another.
function beyond(list, from, direction) {
  if (!from) return list[0];
  const middle = from.at.x + from.at.width / 2;
  const rows = list.filter((g) => direction * (g.at.y - from.at.y) > 1);
  if (rows.length === 0) return undefined;
  const nearest = Math.min(...rows.map((g) => Math.abs(g.at.y - from.at.y)));
  const row = rows.filter((g) => Math.abs(g.at.y - from.at.y) < nearest + 1);
  return row.reduce((best, g) => (Math.abs(g.at.x + g.at.width / 2 - middle) < Math.abs(best.at.x + best.at.width / 2 - middle) ? g : best));
}

// describe says in words what the colours say.
export function describe(shard) {
  const owner = shard.owner ? `carried by ${who(shard.owner)}` : "no owner";
  const deaf = shard.measured?.deaf ? ", cluster not heard" : "";
  switch (shard.phase) {
    case "OWNED": return owner + deaf + (condition(shard) === "late" ? `, ${duration(shard.measured.lagSeconds)} behind` : "");
    case "UNOWNED": return owner;
    case "RAISE": return `${owner}, which raises its fence${deaf}`;
    default: return `${owner}, ${phase(shard.phase)}${shard.next ? ` for ${who(shard.next)}` : ""}${deaf}`;
  }
}

export const totals = (state) => {
  let [load, live, rate] = [0, 0, 0];
  for (const shard of state.shards.values()) {
    load += shard.weight;
    live += shard.measured?.live ?? 0;
    rate += shard.measured?.rate ?? 0;
  }
  const replicas = [...state.replicas.values()].filter((r) => r.state !== "gone").length;
  return `${plural(replicas, "replica")} · ${plural(state.shards.size, "shard")} · ${amount(rate)} updates/s · ${count(live)} live instances`;
};
