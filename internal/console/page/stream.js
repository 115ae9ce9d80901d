// What the service tells, kept up to date.

const silence = 25_000; // two heartbeats and a half
const longestPause = 10_000;

// State is all that is known. Replicas are by incarnation, shards by id.
export class State {
  constructor() {
    this.replicas = new Map();
    this.shards = new Map();
    this.moves = [];
    this.commands = [];
  }

  // take merges a document and gives the ids of the shards that it speaks of.
  take(document, all) {
    if (all) {
      this.replicas.clear();
      this.shards.clear();
    }
    for (const member of ["answering", "fleet", "health", "moves", "commands"]) {
      if (member in document) this[member] = document[member];
    }
    for (const incarnation of document.removedReplicas ?? []) this.replicas.delete(incarnation);
    for (const id of document.removedShards ?? []) this.shards.delete(id);
    for (const replica of document.replicas) this.replicas.set(replica.incarnation, replica);
    for (const shard of document.shards) this.shards.set(shard.id, shard);
    this.at = document.at;
  }
}

// watch keeps a stream open while the page can be seen, and opens it anew when
// it breaks or falls silent. link is told "live", "connecting" or "lost".
export function watch({ changed, link }) {
  let source, pulse, retry;
  let failures = 0;

  const close = () => {
    clearTimeout(pulse);
    clearTimeout(retry);
    source?.close();
    source = undefined;
  };
  const again = () => {
    close();
    link("lost");
    const pause = Math.min(longestPause, 500 * 2 ** failures++) * (0.75 + Math.random() / 2);
    retry = setTimeout(open, pause);
  };
  const alive = () => {
    clearTimeout(pulse);
    pulse = setTimeout(again, silence);
  };
  const open = () => {
    close();
    source = new EventSource("/events");
    alive();
    const told = (event) => {
      failures = 0;
      alive();
      link("live");
      changed(JSON.parse(event.data), event.type === "all");
    };
    for (const kind of ["all", "change", "alive"]) source.addEventListener(kind, told);
    source.addEventListener("error", again);
  };

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
    } else if (!source) {
      failures = 0;
      link("connecting");
      open();
    }
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) open();
  });
  open();
}
