// The table of shards: search, filters, sorting.

import { byId, h, keyed, name, setText } from "./dom.js";
import { ago, amount, condition, count, duration, instant, phase, plural, setAgo, who, why } from "./format.js";
import { describe } from "./picture.js";

const page = 100; // rows at first, and more with each click
const collator = new Intl.Collator("en", { numeric: true });

const text = (value) => (cell, shard) => setText(cell, value(shard));

const columns = [
  {
    id: "shard", title: "Shard", by: (x) => x.id, head: true,
    fill(cell, shard) {
      if (cell.firstChild) return;
      cell.append(h("a", { href: linkTo(shard.cluster) }, name(shard.id)));
    },
  },
  {
    id: "replica", title: "Replica", by: (x) => who(x.owner),
    fill(cell, shard) {
      const said = [who(shard.owner) || "nobody", shard.next ? who(shard.next) : ""];
      if (cell.said === said.join("\n")) return;
      cell.said = said.join("\n");
      cell.replaceChildren(shard.owner ? name(said[0]) : said[0], ...(said[1] ? [" → ", name(said[1])] : []));
    },
  },
  {
    id: "phase", title: "Phase", by: (x) => x.phase,
    fill(cell, shard) {
      cell.firstChild ?? cell.append(h("span", { class: "state" }));
      const state = condition(shard);
      cell.firstChild.dataset.state = state;
      const said = { deaf: "not heard", late: "late" }[state] ?? phase(shard.phase);
      setText(cell.firstChild, shard.pin ? `${said}, pinned` : said);
      cell.title = describe(shard);
    },
  },
  { id: "rate", title: "Updates/s", number: true, by: (x) => x.measured?.rate ?? -1, fill: text((x) => (x.measured ? amount(x.measured.rate) : "–")) },
  { id: "live", title: "Live", number: true, rank: 2, by: (x) => x.measured?.live ?? -1, fill: text((x) => (x.measured ? count(x.measured.live) : "–")) },
  { id: "lag", title: "Lag", number: true, by: (x) => x.measured?.lagSeconds ?? -1, fill: text((x) => (x.measured ? duration(x.measured.lagSeconds) : "–")) },
  { id: "weight", title: "Load", number: true, rank: 2, by: (x) => x.weight, fill: text((x) => amount(x.weight)) },
  {
    id: "epoch", title: "Epoch", number: true, rank: 2, by: (x) => x.epoch,
    fill: text((x) => (x.epoch === x.held ? String(x.epoch) : `${x.epoch} (held: ${x.held || "none"})`)),
  },
  {
    id: "why", title: "Why there", rank: 3, by: (x) => why(x.reason),
    fill(cell, shard) {
      setText(cell, why(shard.reason));
      cell.title = shard.text ?? "";
    },
  },
  {
    id: "since", title: "Changed", rank: 2, by: (x) => instant(x.since),
    fill: (cell, shard) => (cell.firstChild ? setAgo(cell, shard.since) : cell.append(ago(shard.since))),
  },
];

const filters = [
  ["all", "All", () => true],
  ["moving", "Changing hands", (x) => x.phase !== "OWNED" && x.phase !== "UNOWNED" && x.phase !== "RETIRED"],
  ["unowned", "No owner", (x) => x.phase === "UNOWNED"],
  ["deaf", "Not heard", (x) => !!x.measured?.deaf],
  ["late", "Late", (x) => condition(x) === "late"],
  ["pinned", "Pinned", (x) => !!x.pin],
];

export const linkTo = (cluster) => `#${new URLSearchParams({ cluster })}`;

export class Table {
  constructor() {
    this.sort = { column: columns[0], down: false };
    this.filter = "all";
    this.replica = undefined;
    this.most = page;
    for (const column of columns) {
      column.button = h("button", { type: "button", on: { click: () => this.sortBy(column) } }, column.title);
      column.header = h("th", { scope: "col", class: column.number && "number", data: { rank: column.rank ?? 1 } }, column.button);
      byId("columns").append(column.header);
    }
    this.search = byId("search");
    this.search.addEventListener("input", () => {
      this.most = page;
      this.render(this.state);
    });
    byId("search-form").addEventListener("submit", (event) => event.preventDefault());
    byId("more").addEventListener("click", () => {
      this.most += 2 * page;
      this.render(this.state);
    });
    this.only = h("button", { type: "button", class: "chip", hidden: true, "aria-pressed": "true", on: { click: () => this.show(undefined) } }, h("bdi"), " ✕");
    byId("filters").append(
      ...filters.map(([id, title]) => h("button", { type: "button", class: "chip", data: { filter: id }, on: { click: () => this.choose(id) } }, title, " ", h("span"))),
      this.only,
    );
  }

  sortBy(column) {
    this.sort = { column, down: this.sort.column === column ? !this.sort.down : !!column.number };
    this.render(this.state);
  }

  choose(filter) {
    this.filter = filter;
    this.most = page;
    this.render(this.state);
  }

  // show leaves only the shards of a replica, given by its incarnation; "" is
  // nobody, undefined is all.
  show(incarnation) {
    this.replica = incarnation;
    this.most = page;
    if (incarnation !== undefined) this.filter = "all";
    this.render(this.state);
  }

  render(state) {
    this.state = state;
    if (!state) return;
    const shards = [...state.shards.values()];
    for (const [id, , holds] of filters) {
      const chip = byId("filters").querySelector(`[data-filter="${id}"]`);
      const n = shards.reduce((sum, shard) => sum + (holds(shard) ? 1 : 0), 0);
      setText(chip.lastElementChild, count(n));
      chip.setAttribute("aria-pressed", String(id === this.filter));
      chip.hidden = n === 0 && id !== "all" && id !== this.filter;
    }
    this.only.hidden = this.replica === undefined;
    const replica = state.replicas.get(this.replica);
    setText(this.only.firstElementChild, this.replica === "" ? "of nobody" : `of ${who(replica) || this.replica}`);
    for (const { header, id } of columns) {
      const sorted = this.sort.column.id === id;
      if (sorted) header.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    }

    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [, , holds] = filters.find(([id]) => id === this.filter);
    const list = shards.filter(
      (x) =>
        holds(x) &&
        (this.replica === undefined || (x.owner?.incarnation ?? "") === this.replica || (this.replica && x.next?.incarnation === this.replica)) &&
        (words.length === 0 || matches(x, words)),
    );
    const { by } = this.sort.column;
    const turn = this.sort.down ? -1 : 1;
    list.sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return turn * (typeof x === "number" ? x - y : collator.compare(x, y)) || collator.compare(a.id, b.id);
    });
    keyed(byId("rows"), list.slice(0, this.most), (x) => x.id, makeRow, fillRow);

    const all = list.length === shards.length;
    setText(byId("found"), all ? plural(shards.length, "shard") : `${count(list.length)} of ${plural(shards.length, "shard")}`);
    byId("more").hidden = list.length <= this.most;
    setText(byId("more"), `Show more: ${count(list.length - this.most)} are not shown`);
    byId("none").hidden = list.length > 0;
    setText(byId("none"), shards.length > 0 ? "No shard is like that." : state.answering?.known ? "There are no shards: no cluster is registered yet." : "The shards have not been read yet.");
  }
}

function matches(shard, words) {
  const all = [shard.id, who(shard.owner), who(shard.next), phase(shard.phase), why(shard.reason), shard.text, shard.pin?.author, shard.pin?.reason]
    .join("\n")
    .toLowerCase();
  return words.every((word) => all.includes(word));
}

function makeRow() {
  return h("tr", {}, columns.map((c) => h(c.head ? "th" : "td", { scope: c.head && "row", class: c.number && "number", data: { rank: c.rank ?? 1 } })));
}

function fillRow(row, shard) {
  if (row.shard === shard) return;
  row.shard = shard;
  row.dataset.state = condition(shard);
  columns.forEach((column, i) => column.fill(row.children[i], shard));
}
