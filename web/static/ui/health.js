// How the server fares, and what a crash would lose.

import { get } from "./api.js";
import { h } from "./dom.js";
import { bytes, count, duration, exact } from "./format.js";

const facts = (rows) => h("dl", { class: "facts" }, rows.map(([term, value, more]) => h("div", {}, h("dt", {}, term), h("dd", {}, value, more && h("small", {}, ` ${more}`)))));

function gauge(name, value, most) {
  const share = Math.min(1, value / most);
  const fill = h("meter", { min: "0", max: "1", low: "0.6", high: "0.85", optimum: "0", value: String(share), "aria-label": `${name}: ${value} of ${most}` });
  return h("div", { class: "gauge" }, h("dt", {}, name), h("dd", {}, h("b", {}, exact(value)), h("small", {}, ` of ${exact(most)}`), fill));
}

const twice = ({ p50, p99 }, told) => [told(p50), h("small", {}, " p99 "), told(p99)];
const number = (value) => exact(Math.ceil(value));

export const health = {
  title: () => "Health",
  follows: () => null,
  every: 1,
  load: async (_route, signal) => {
    const [now, overview] = await Promise.all([get("v1/statistics", signal), get("v1/overview?limit=1", signal)]);
    return { now, overview };
  },
  view: ({ now, overview }) => {
    const { engine, store, limits } = now;
    return [
      h("h1", { tabindex: "-1" }, "Health"),
      h("p", { class: `why ${now.durability === "memory" ? "in_progress" : "concluded"}` },
        h("b", {}, now.durability === "memory" ? "Jobs are kept in memory. " : `Jobs are kept on disk (${now.durability}). `), `A crash would lose ${now.a_crash_loses}.`),
      h("dl", { class: "tiles gauges" },
        gauge("Inbox", now.inbox_requests, limits.inbox_requests), gauge("Waiting dequeues", now.waiters, limits.waiters),
        gauge("Connections", now.connections, limits.connections), gauge("Readers of events", now.readers, limits.readers)),
      h("div", { class: "columns" },
        h("section", {}, h("h2", {}, "The engine ", h("small", {}, "since the start")), facts([
          ["Batches", count(engine.batches)],
          ["Commands in a batch", twice(engine.batch_requests, number)],
          ["Changes in a batch", twice(engine.batch_changes, number)],
          ["Time to apply one", twice(engine.apply_seconds, duration)],
          ["Time to commit one", twice(engine.commit_seconds, duration)],
          ["Event loop late by", twice(now.loop_lag_seconds, duration)],
          ["Sweeps", count(engine.sweeps)],
        ])),
        h("section", {}, h("h2", {}, "The queues"), facts([
          ["Queues", exact(overview.queues_count)],
          ["Jobs that wait", count(overview.counts.scheduled + overview.counts.queued)],
          ["Jobs that ended and are kept", count(overview.counts.concluded + overview.counts.dead + overview.counts.cancelled)],
          ["Slots of ready arrays", count(overview.slots)],
          ["Compactions", count(overview.compactions)],
          ["Instance", h("code", {}, now.instance)],
        ])),
        h("section", {}, h("h2", {}, "The store"), store === null
          ? h("p", { class: "empty" }, "None: with a data directory (QUEUE_ACTOR_DATA) the jobs survive the process.")
          : facts([
            ["File", bytes(store.file_bytes)],
            ["Log beside it", bytes(store.wal_bytes)],
            ["Room left", store.room_bytes === null ? "–" : bytes(store.room_bytes)],
            ["Commits", count(store.commits)],
            ["A commit takes", twice({ p50: store.commit_seconds_p50, p99: store.commit_seconds_p99 }, duration), "of the last thousand"],
          ]))),
    ];
  },
};
