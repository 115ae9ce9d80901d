import { byId, name, setText } from "./dom.js";
import { lasts, refreshTimes, setClock, who } from "./format.js";
import { Explanation } from "./explain.js";
import { Announcer, renderAlerts, renderCommands, renderHealth, renderMoves, renderReplicas } from "./lists.js";
import { Picture, totals } from "./picture.js";
import { State, watch } from "./stream.js";
import { Table, linkTo } from "./table.js";

const state = new State();
const table = new Table();
const picture = new Picture(byId("picture"), byId("tip"), {
  open: (cluster) => (location.hash = linkTo(cluster)),
  select(incarnation) {
    table.show(incarnation);
    byId("shards").scrollIntoView({ block: "start" });
    byId("shards").focus({ preventScroll: true });
  },
});
const explanation = new Explanation();
const announcer = new Announcer();

let link = "connecting";
let drawing = false;
let still = true; // what was told is not to be shown as a move

function draw() {
  drawing = false;
  renderAlerts(state, link);
  if (!state.at) return;
  renderHeader();
  renderHealth(state);
  picture.render(state, still);
  setText(byId("totals"), totals(state));
  renderReplicas(state);
  renderMoves(state);
  renderCommands(state);
  table.render(state);
  announcer.hear(state.moves, still);
  still = false;
  document.documentElement.dataset.drawn = state.at; // for whoever waits for it
}

function renderHeader() {
  const { answering, fleet } = state;
  const leader = fleet.leader ? ["leader ", name(who(fleet.leader)), ...(fleet.leaderSince ? [" for ", lasts(fleet.leaderSince)] : [])] : ["no leader"];
  const where = [name(answering.installation), " · seen by ", name(who(answering)), " · ", ...leader];
  const said = where.map((part) => part.textContent ?? part).join("");
  if (byId("where").said !== said) byId("where").replaceChildren(...where);
  byId("where").said = said;
  setText(byId("build"), `Trestle ${answering.version}${answering.logLevel ? `, log level ${answering.logLevel}` : ""}`);
  document.title = `Trestle · ${answering.installation}`;
}

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

watch({
  changed(document, all) {
    setClock(document.at);
    state.take(document, all);
    still ||= all;
    explanation.news(document.shards);
    redraw();
  },
  link(now) {
    if (now === link) return;
    link = now;
    byId("link").dataset.state = now;
    setText(byId("link"), { live: "live", connecting: "connecting …", lost: "no answer" }[now]);
    redraw();
  },
});

setInterval(refreshTimes, 1000);
setInterval(() => announcer.speak(), 5000);

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !byId("explanation").open) {
    event.preventDefault();
    byId("search").focus();
  } else if (event.key === "Escape" && event.target === byId("search") && byId("search").value) {
    event.preventDefault();
    byId("search").value = "";
    byId("search").dispatchEvent(new Event("input"));
  }
});
