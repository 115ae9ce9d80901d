// Numbers, times and words for people.

import { h, setText } from "./dom.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const count = (n) => whole.format(n);
export const amount = (x) => (x >= 100 ? whole : tenth).format(x);
export const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${tenth.format(seconds)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

// ahead is by how much the service's clock is ahead of this browser's, in
// milliseconds: what is long ago for the one may be yet to come for the other.
let ahead = 0;
export function setClock(at) {
  ahead = Date.parse(at) - Date.now();
}
export const now = () => Date.now() + ahead;

// instant makes times comparable, as their texts are not: their fractions have
// as many digits as they need.
export const instant = (at) => (at ? Date.parse(at) : 0);

const relative = (at) => {
  const seconds = (now() - Date.parse(at)) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  return seconds < 1.5 ? "just now" : `${duration(seconds)} ago`;
};

const lasting = (at) => duration(Math.max(0, now() - Date.parse(at)) / 1000);

// ago is a time that keeps its distance, and lasts is how long something has
// been so; refreshTimes sees to that.
export function ago(at) {
  if (!at) return h("span", {}, "–");
  return h("time", { datetime: at, title: absolute.format(new Date(at)) }, relative(at));
}

export function lasts(at) {
  return h("time", { datetime: at, title: `since ${absolute.format(new Date(at))}`, data: { form: "lasts" } }, lasting(at));
}

export function setAgo(element, at) {
  const time = element.firstElementChild;
  if (time?.tagName === "TIME" && time.dateTime === (at ?? "")) return;
  element.replaceChildren(ago(at));
}

export function refreshTimes() {
  for (const time of document.querySelectorAll("time")) setText(time, (time.dataset.form === "lasts" ? lasting : relative)(time.dateTime));
}

// who is a replica: its name, or what is known of a process that is forgotten.
export const who = (ref) => ref?.name || ref?.incarnation || "";

const reasons = {
  new: "it had no owner yet",
  orphan: "its owner was gone",
  pin: "pinned there by an operator",
  drain: "away from a replica that drains",
  upgrade: "to the new revision",
  join: "to a replica with room",
  level: "to even out the load",
  resumed: "its owner proved that it holds the fence",
  return: "a hand-over was given up",
  reslice: "its cluster is cut anew",
};
export const why = (reason) => reasons[reason] ?? reason ?? "";

const phases = {
  UNOWNED: "no owner",
  OWNED: "owned",
  PREPARE: "prepare",
  RELEASE: "release",
  RAISE: "raise",
  RETIRED: "retired",
};
export const phase = (name) => phases[name] ?? name;

const commands = {
  pin: (c) => [c.shard, " pinned to ", c.replica],
  unpin: (c) => [c.shard, " unpinned"],
  drain: (c) => [c.replica, " drained"],
  undrain: (c) => [c.replica, " drained no more"],
  freeze: () => ["fleet frozen"],
  unfreeze: () => ["fleet frozen no more"],
  slices: (c) => [c.cluster, " cut into ", String(c.slices)],
  "brake-release": () => ["brake released"],
};
export const wish = (c) => (commands[c.kind] ?? (() => [c.kind]))(c);

// lateSeconds is from when on a lag is worth a colour.
export const lateSeconds = 5;

// condition is what is most worth knowing of a shard.
export function condition(shard) {
  if (shard.phase === "UNOWNED") return "unowned";
  if (shard.phase === "RETIRED") return "retired";
  if (shard.measured?.deaf) return "deaf";
  if (shard.phase !== "OWNED") return "moving";
  return (shard.measured?.lagSeconds ?? 0) >= lateSeconds ? "late" : "owned";
}
