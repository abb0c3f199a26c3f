// One job: why it is not running, what it was tried for, and what it carries.

import { mayOperate, one, tell } from "./actions.js";
import { get, jobPath, queuePath, text } from "./api.js";
import { h } from "./dom.js";
import { badge, distance, duration, exact, moment } from "./format.js";
import { links } from "./links.js";
import { part, pretty } from "./json.js";

const SHOWN_CHARACTERS = 100_000;

function content(title, source, empty) {
  const told = source === undefined || source === "null" ? null : pretty(source);
  const cut = told !== null && told.length > SHOWN_CHARACTERS;
  const copy = async () => {
    try { await navigator.clipboard.writeText(told); tell(`${title} copied.`); } catch { tell("The browser did not let it be copied.", true); }
  };
  return h("section", { class: "content" },
    h("h2", {}, title, told !== null && h("button", { type: "button", class: "quiet", onclick: copy, "aria-label": `Copy ${title}` }, "Copy")),
    told === null ? h("p", { class: "empty" }, empty)
      : h("pre", { tabindex: "0", role: "region", "aria-label": title }, h("code", {}, cut ? `${told.slice(0, SHOWN_CHARACTERS)}\n… (${exact(told.length)} characters; Copy takes all of them)` : told)));
}

function attempt(each) {
  const seconds = (new Date(each.ended_at) - new Date(each.started_at)) / 1000;
  return h("li", { key: each.attempt, class: `event ${each.outcome}` },
    h("p", {}, h("b", {}, `Attempt ${each.attempt} `), badge(each.outcome, each.outcome), ` after ${duration(seconds)}`, each.consumer !== null && [", by ", h("span", { class: "who" }, each.consumer)]),
    h("p", { class: "times" }, moment(each.started_at), " to ", moment(each.ended_at)),
    each.error && h("div", { class: "error" }, each.error.type && h("b", {}, each.error.type), each.error.message && h("pre", { tabindex: "0" }, each.error.message)));
}

function timeline(job) {
  const left = job.lease && (new Date(job.lease.expires_at) - Date.now()) / 1000;
  const forgotten = job.attempts - job.history.length - (job.lease ? 1 : 0);
  return h("ol", { class: "timeline" },
    h("li", { class: "event", key: "enqueued" }, h("p", {}, h("b", {}, "Enqueued "), distance(job.created_at)), h("p", { class: "times" }, moment(job.created_at))),
    forgotten > 0 && h("li", { class: "event", key: "earlier" }, h("p", {}, `${exact(forgotten)} earlier attempts are no longer kept`)),
    job.history.map(attempt),
    job.lease && h("li", { class: "event leased", key: "now" },
      h("p", {}, h("b", {}, `Attempt ${job.attempts} `), badge("in_progress", "running"), job.consumer !== null && [" by ", h("span", { class: "who" }, job.consumer)]),
      h("p", { class: "times" }, left > 0 ? `the lease ends in ${duration(left)}, ` : `the lease ended ${duration(-left)} ago, `, moment(job.lease.expires_at))),
    job.state === "scheduled" && job.not_before && h("li", { class: "event", key: "due" }, h("p", {}, h("b", {}, "Due "), distance(job.not_before)), h("p", { class: "times" }, moment(job.not_before))),
    job.finished_at && h("li", { class: `event ${job.state}`, key: "ended" },
      h("p", {}, h("b", {}, "Ended "), badge(job.state, job.state === "dead" ? `dead: ${job.reason}` : undefined), ` ${distance(job.finished_at)}`), h("p", { class: "times" }, moment(job.finished_at))));
}

function buttons(job, refresh) {
  if (!mayOperate(job.queue)) return null;
  const button = (label, verb, danger) => h("button", { type: "button", class: danger ? "danger" : "", onclick: () => one(verb, job.queue, job.id, refresh) }, label);
  const ended = job.finished_at !== null;
  return h("div", { class: "buttons", role: "group", "aria-label": "Actions" },
    job.state === "scheduled" && button("Run now", "run"),
    (job.state === "dead" || job.state === "cancelled") && button("Redrive", "redrive"),
    !ended && !job.cancel_requested && button("Cancel", "cancel", true),
    ended && button("Forget", "forget", true));
}

export const job = {
  title: ({ pieces }) => `Job ${pieces[3]} of ${pieces[1]}`,
  follows: ({ pieces }) => ({ queue: pieces[1] }),
  wants: ({ pieces }, data) => data.id === Number(pieces[3]) || data.verb === "dequeue",
  every: 1,
  load: async ({ pieces }, signal) => {
    const path = jobPath(pieces[1], pieces[3]);
    const [source, why, { policy }] = await Promise.all([text(path, signal), get(`${path}/why`, signal), get(queuePath(pieces[1]), signal)]);
    return { source, why, policy, job: JSON.parse(source) };
  },
  view: ({ source, why, policy, job: told }, _route, refresh) => {
    const attempts = told.max_attempts ?? policy.max_attempts; // null: no limit
    const facts = [
      ["State", badge(told.state, told.state === "dead" ? `dead: ${told.reason}` : undefined)],
      ["Position", why.ahead === null ? h("span", { class: "none" }, "–") : why.ahead === 0 ? "first in line" : `${exact(why.ahead)} ahead`],
      ["Priority", told.priority],
      ["Attempts", `${exact(told.attempts)}${attempts === null ? "" : ` of ${exact(attempts)}`} (${exact(told.fails)} failed, ${exact(told.stales)} stale)`],
      ["Worker", told.consumer ?? h("span", { class: "none" }, "–")],
      ["Enqueued", moment(told.created_at)],
      ["Not before", moment(told.not_before)],
      ["Expires", moment(told.expires_at)],
      ["Ended", moment(told.finished_at)],
      ["Unique key", told.unique_key ?? h("span", { class: "none" }, "–")],
      ["Trace", told.traceparent ?? h("span", { class: "none" }, "–")],
      ...Object.entries(told.meta).map(([name, value]) => [h("span", {}, "meta ", h("code", {}, name)), value]),
    ];
    return [
      h("div", { class: "head" }, h("div", {},
        h("p", { class: "crumbs" }, h("a", { href: links.overview() }, "Queues"), " / ", h("a", { href: links.queue(told.queue) }, told.queue), " / ", h("a", { href: links.jobs(told.queue) }, "Jobs")),
        h("h1", { tabindex: "-1" }, `Job ${told.id} `, h("small", {}, told.type))),
        buttons(told, refresh)),
      h("p", { class: `why ${told.state}` }, badge(told.state), " ", h("span", {}, why.text)),
      h("div", { class: "columns" },
        h("section", {}, h("h2", {}, "Facts"), h("dl", { class: "facts" }, facts.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))))),
        h("section", {}, h("h2", {}, "Timeline"), timeline(told))),
      h("div", { class: "columns" },
        content("Payload", part(source, "payload"), "It has none."),
        h("div", {}, told.progress !== null && content("Progress", part(source, "progress"), ""), content("Result", part(source, "result"), "It has none."))),
    ];
  },
};
