// One queue: how it stands, how it fared in the last hour, who works on it, and what an operator may do to it.

import { bulk, mayOperate, setPaused } from "./actions.js";
import { get, queuePath } from "./api.js";
import { chart } from "./charts.js";
import { h } from "./dom.js";
import { badge, count, duration, exact, NAMES, rate, STATES } from "./format.js";
import { links } from "./links.js";
import { editPolicy, mayAdmin, rules } from "./policy.js";

function buttons(queue, refresh) {
  const { name, counts, paused } = queue;
  if (!mayOperate(name) || !queue.exists) return null;
  const dead = counts.dead + counts.cancelled, waiting = counts.scheduled + counts.queued + counts.in_progress;
  return h("div", { class: "buttons", role: "group", "aria-label": "Actions" },
    h("button", { type: "button", onclick: () => setPaused(name, !paused, counts, refresh), class: paused ? "primary" : "" }, paused ? "Resume" : "Pause"),
    h("button", { type: "button", disabled: dead === 0, onclick: () => bulk("redrive", name, { state: ["dead"] }, refresh) }, "Redrive…"),
    h("button", { type: "button", disabled: waiting === 0, onclick: () => bulk("cancel", name, { state: ["scheduled", "queued"] }, refresh) }, "Cancel…"),
    h("button", { type: "button", class: "danger", onclick: () => bulk("purge", name, { state: ["concluded", "cancelled"] }, refresh) }, "Purge…"));
}

export const queue = {
  title: ({ pieces }) => pieces[1],
  follows: ({ pieces }) => ({ shape: "queues", queue: pieces[1] }),
  load: async ({ pieces }, signal) => {
    const path = queuePath(pieces[1]);
    const [figures, { since, trend }] = await Promise.all([get(path, signal), get(`${path}/trend`, signal)]);
    return { figures, since, trend };
  },
  view: ({ figures, since, trend }, _route, refresh) => {
    const { name, counts } = figures;
    return [
      h("div", { class: "head" },
        h("div", {}, h("p", { class: "crumbs" }, h("a", { href: links.overview() }, "Queues")),
          h("h1", { tabindex: "-1" }, name, " ", figures.paused && badge("paused", "paused"), !figures.exists && badge("warn", "does not exist"))),
        buttons(figures, refresh)),
      h("nav", { class: "tabs", "aria-label": "Queue" },
        h("a", { href: links.queue(name), "aria-current": "page" }, "Summary"), h("a", { href: links.jobs(name) }, "Jobs")),
      h("ul", { class: "tiles states" }, STATES.map((state) => h("li", { class: `tile ${counts[state] ? state : ""}` },
        h("a", { href: links.jobs(name, { state }) }, h("span", { class: "dt" }, NAMES[state]), h("span", { class: "dd" }, count(counts[state])))))),
      h("dl", { class: "facts line" },
        h("div", {}, h("dt", {}, "Oldest ready job"), h("dd", {}, duration(figures.oldest_age_seconds))),
        h("div", {}, h("dt", {}, "In"), h("dd", {}, rate(figures.per_minute.enqueue), " /min")),
        h("div", {}, h("dt", {}, "Done"), h("dd", {}, rate(figures.per_minute.conclude), " /min")),
        h("div", {}, h("dt", {}, "Failed"), h("dd", {}, rate(figures.per_minute.fail), " /min")),
        h("div", {}, h("dt", {}, "Gone stale"), h("dd", {}, rate(figures.per_minute.stale), " /min")),
        h("div", {}, h("dt", {}, "Waiting dequeues"), h("dd", {}, count(figures.waiters))),
        h("div", {}, h("dt", {}, "Last id"), h("dd", {}, exact(figures.last_id)))),
      h("div", { class: "charts" },
        chart("In and done", since, [{ name: "enqueued", style: "one", values: trend.enqueue }, { name: "concluded", style: "two", values: trend.conclude }], { kind: "lines", unit: "jobs" }),
        chart("Went wrong", since, [{ name: "failed", style: "four", values: trend.fail }, { name: "stale", style: "three", values: trend.stale }, { name: "dead", style: "five", values: trend.dead }], { kind: "bars", unit: "jobs" }),
        chart("Waiting time", since, [{ name: "p50", style: "one", values: trend.wait_p50 }, { name: "p95", style: "three", values: trend.wait_p95 }], { kind: "lines", unit: "seconds" }),
        chart("Running time", since, [{ name: "p50", style: "one", values: trend.run_p50 }, { name: "p95", style: "three", values: trend.run_p95 }], { kind: "lines", unit: "seconds" })),
      h("div", { class: "columns" },
        h("section", {}, h("h2", {}, "Workers seen in the last ten minutes"),
          figures.consumers.length
            ? h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Name"), h("th", { scope: "col", class: "n" }, "Asked"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Jobs")))),
                h("tbody", {}, [...figures.consumers].reverse().slice(0, 50).map((consumer) => h("tr", { key: consumer.name },
                  h("th", { scope: "row", class: "plain" }, consumer.name), h("td", { class: "n" }, `${duration(consumer.seen_seconds)} ago`),
                  h("td", { class: "n" }, h("a", { href: links.jobs(name, { consumer: consumer.name, state: "in_progress" }) }, "its jobs"))))))
            : h("p", { class: "empty" }, "None that gave a name.")),
        h("section", {}, h("h2", {}, "Policy", h("small", {}, figures.declared ? " set by an operator" : " as it comes"),
            mayAdmin(name) && h("button", { type: "button", onclick: () => editPolicy(figures, () => refresh()) }, figures.exists ? "Edit…" : "Declare it…")),
          h("dl", { class: "facts" }, rules(figures.policy).map(([term, told]) => h("div", {}, h("dt", {}, term), h("dd", {}, told)))))),
    ];
  },
};
