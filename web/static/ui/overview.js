// All queues at a glance.

import { get, query } from "./api.js";
import { spark } from "./charts.js";
import { h } from "./dom.js";
import { badge, count, duration, exact, rate } from "./format.js";
import { go, links } from "./links.js";
import { editPolicy, mayAdmin } from "./policy.js";

const ORDERS = { busiest: "Busiest first", name: "By name", waiting: "Most waiting first", failing: "Most failures first", oldest: "Oldest job first" };
const NOBODY_SECONDS = 60;

const tile = (name, value, style, more) => h("div", { class: `tile ${style ?? ""}` },
  h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)));

function states(queue) {
  return [
    queue.paused && badge("paused", "paused"),
    !queue.paused && queue.counts.queued > 0 && queue.waiters === 0 && queue.asked_seconds > NOBODY_SECONDS &&
      h("span", { class: "badge warn", title: `no consumer has asked for ${duration(queue.asked_seconds)}` }, "no consumer"),
  ];
}

function row(queue) {
  const { counts, per_minute: moved, trend } = queue;
  const failed = trend.fail;
  const number = (value, style, state) => h("td", { class: `n ${style} ${value ? "" : "none"}` },
    value ? h("a", { href: links.jobs(queue.name, { state }) }, count(value)) : "0");
  return h("tr", { key: queue.name },
    h("th", { scope: "row" }, h("a", { href: links.queue(queue.name), class: "name" }, queue.name), states(queue)),
    number(counts.queued, "", "queued"),
    number(counts.scheduled, "wide", "scheduled"),
    number(counts.in_progress, "running", "in_progress"),
    number(counts.dead, "bad", "dead"),
    number(counts.concluded + counts.cancelled, "wide", "concluded,cancelled"),
    h("td", { class: "n wide" }, rate(moved.enqueue)),
    h("td", { class: "n" }, rate(moved.conclude)),
    h("td", { class: `n wide ${moved.fail ? "bad" : ""}` }, rate(moved.fail)),
    h("td", { class: "n" }, duration(queue.oldest_age_seconds)),
    h("td", { class: "n wide" }, duration(queue.wait_seconds_p50)),
    h("td", { class: "n wide" }, duration(queue.run_seconds_p50)),
    h("td", { class: "drawn" }, spark(trend.conclude, failed)));
}

const heads = [["Queue", ""], ["Queued", "n"], ["Scheduled", "n wide"], ["Running", "n"], ["Dead", "n"], ["Ended", "n wide"],
  ["In /min", "n wide"], ["Done /min", "n"], ["Failed /min", "n wide"], ["Oldest", "n"], ["Wait p50", "n wide"], ["Run p50", "n wide"], ["Last hour", "drawn"]];

export const overview = {
  title: () => "Queues",
  follows: () => ({ shape: "queues" }),
  settles: 550, // milliseconds; the server tells everybody the same for half a second
  load: ({ values }, signal) => get(`v1/overview${query({ order: values.order, prefix: values.prefix, cursor: values.cursor })}`, signal),
  view: (told, { values }) => {
    const { counts, per_minute: moved } = told;
    const set = (changes) => go(links.overview({ ...values, cursor: "", ...changes }));
    return [
      h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Queues"),
        mayAdmin() && h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => editPolicy(null, (name) => go(links.queue(name))) }, "New queue…"))),
      h("dl", { class: "tiles" },
        tile("Queues", exact(told.queues_count), "", told.paused_count > 0 && `${exact(told.paused_count)} paused`),
        tile("Queued", count(counts.queued), "queued", counts.scheduled > 0 && [count(counts.scheduled), " scheduled"]),
        tile("Running", count(counts.in_progress), "in_progress"),
        tile("Dead", count(counts.dead), counts.dead ? "dead" : ""),
        tile("In", rate(moved.enqueue), "", "a minute"),
        tile("Done", rate(moved.conclude), "concluded", "a minute"),
        tile("Failed", rate(moved.fail), moved.fail ? "dead" : "", "a minute")),
      h("form", { class: "controls", onsubmit: (event) => { event.preventDefault(); set({ prefix: event.target.prefix.value.trim() }); } },
        h("label", {}, "Begins with ", h("input", { name: "prefix", type: "search", value: values.prefix ?? "", maxlength: "80", pattern: "[A-Za-z0-9][A-Za-z0-9_.:\\-]*", autocomplete: "off", spellcheck: "false",
          onchange: (event) => { if (event.target.checkValidity()) set({ prefix: event.target.value.trim() }); } })),
        h("label", {}, "Order ", h("select", { name: "order", onchange: (event) => set({ order: event.target.value }) },
          Object.entries(ORDERS).map(([name, text]) => h("option", { value: name, selected: (values.order ?? "busiest") === name }, text))))),
      told.queues.length
        ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Queues" }, h("table", { class: "queues" },
            h("caption", { class: "unseen" }, "Queues, with their jobs by state and what moved in the last minute"),
            h("thead", {}, h("tr", {}, heads.map(([text, style]) => h("th", { scope: "col", class: style }, text)))),
            h("tbody", {}, told.queues.map(row))))
        : h("p", { class: "empty" }, values.prefix ? "No queue that you may see begins so." : ["There is no queue yet. The first job makes one: ", h("code", {}, "curl -d '{\"Type\":\"hello\"}' …/jobs/enqueue")]),
      h("div", { class: "pager" },
        values.cursor && h("a", { class: "button", href: links.overview({ ...values, cursor: "" }) }, "First page"),
        told.next_cursor && h("a", { class: "button", href: links.overview({ ...values, cursor: told.next_cursor }) }, "Next page")),
    ];
  },
};
