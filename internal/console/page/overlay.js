// What lies above the picture: where hand-overs go, and shards in flight from
// their last owner to the new one.

import { s, keyed, setAttributes, setText } from "./dom.js";
import { count, phase } from "./format.js";

const mostPaths = 40; // beyond that, one path for each pair of replicas
const mostFlights = 60;
const still = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Overlay {
  constructor() {
    this.paths = s("g");
    this.flights = s("g");
    this.element = s("svg", { class: "overlay", "aria-hidden": "true" }, this.paths, this.flights);
  }

  draw(root, under, flights) {
    setAttributes(this.element, { width: root.clientWidth, height: root.clientHeight });
    let paths = under.filter((u) => u.from && u.to).map((u, i) => ({ key: i, phase: u.phase, from: middle(u.from), to: middle(u.to), text: phase(u.phase) }));
    if (under.length > mostPaths) paths = together(under);
    keyed(this.paths, paths, (p) => p.key, () => s("g", {}, s("path"), s("circle", { r: 4 }), s("text")), (g, p) => {
      g.dataset.phase = p.phase;
      const [line, end, text] = g.children;
      const { d, top } = curve(p.from, p.to);
      setAttributes(line, { d });
      setAttributes(end, { cx: p.to.x.toFixed(1), cy: p.to.y.toFixed(1) });
      setAttributes(text, { x: top.x.toFixed(1), y: (top.y - 5).toFixed(1) });
      setText(text, paths.length <= 12 || under.length > mostPaths ? p.text : "");
    });
    for (const flight of flights.slice(0, mostFlights)) if (flight.from) this.fly(flight);
  }

  fly({ from, to }) {
    const rect = s("rect", { class: "flight", x: to.x, y: to.y, width: to.width, height: to.height, rx: 2 });
    this.flights.append(rect);
    const start = middle(from);
    const end = middle(to);
    const frames = still.matches
      ? [{ opacity: 1 }, { opacity: 0 }]
      : [
          { transform: `translate(${start.x - end.x}px, ${start.y - end.y}px)`, opacity: 1 },
          { transform: "none", opacity: 1, offset: 0.6 },
          { transform: "none", opacity: 0 },
        ];
    rect.animate(frames, { duration: 1400, easing: "cubic-bezier(.3,.1,.2,1)" }).finished.then(
      () => rect.remove(),
      () => rect.remove(),
    );
  }
}

const middle = (place) => ({ x: place.x + (place.width ?? 0) / 2, y: place.y + (place.height ?? 0) / 2 });

function together(under) {
  const pairs = new Map();
  for (const { ends: [from, to], phase: stage } of under) {
    if (!from || !to) continue;
    const key = `${from.x},${from.y} ${to.x},${to.y}`;
    const pair = pairs.get(key) ?? { key, from, to, phase: stage, n: 0 };
    pair.text = count(++pair.n);
    pairs.set(key, pair);
  }
  return [...pairs.values()];
}

// curve bends to the left of the way, so that there and back are two lines.
function curve(from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const bend = { x: (from.x + to.x) / 2 + dy * 0.15, y: (from.y + to.y) / 2 - dx * 0.15 };
  const f = (x) => x.toFixed(1);
  return {
    d: `M${f(from.x)} ${f(from.y)}Q${f(bend.x)} ${f(bend.y)} ${f(to.x)} ${f(to.y)}`,
    top: { x: (from.x + to.x) / 4 + bend.x / 2, y: (from.y + to.y) / 4 + bend.y / 2 },
  };
}
