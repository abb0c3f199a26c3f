// The jobs of a queue: search, select, and act on what is selected or on all that match.

import { bulk, each, mayOperate } from "./actions.js";
import { get, query, queuePath } from "./api.js";
import { h } from "./dom.js";
import { badge, distance, duration, exact, moment, NAMES, STATES } from "./format.js";
import { go, links } from "./links.js";

const PAGE = 50;
const selected = { queue: null, ids: new Set() };

const filterOf = (values) => ({
  state: values.state ? values.state.split(",").filter((state) => STATES.includes(state)) : [],
  type: values.type ?? "", consumer: values.consumer ?? "", error: values.error ?? "",
});

function when(job) {
  if (job.finished_at) return ["ended ", h("span", {}, distance(job.finished_at))];
  if (job.lease) return ["lease ends ", h("span", {}, distance(job.lease.expires_at))];
  if (job.state === "scheduled" && job.not_before) return ["due ", h("span", {}, distance(job.not_before))];
  return ["waits since ", h("span", {}, distance(job.created_at))];
}

function row(job, operate, refresh) {
  return h("tr", { key: job.id },
    operate && h("td", { class: "pick" }, h("input", {
      type: "checkbox", "aria-label": `Select job ${job.id}`, key: `pick ${job.id}`, checked: selected.ids.has(job.id),
      onchange: (event) => { if (event.target.checked) selected.ids.add(job.id); else selected.ids.delete(job.id); refresh(true); },
    })),
    h("th", { scope: "row" }, h("a", { href: links.job(job.queue, job.id) }, String(job.id))),
    h("td", {}, badge(job.state, job.state === "dead" ? `dead: ${job.reason}` : undefined), job.cancel_requested && job.state === "in_progress" && badge("warn", "cancel asked")),
    h("td", { class: "text" }, h("span", { class: "cut", title: job.type }, job.type)),
    h("td", { class: "n wide" }, job.priority || h("span", { class: "none" }, "0")),
    h("td", { class: "n wide" }, exact(job.attempts)),
    h("td", { class: "text wide" }, h("span", { class: "cut", title: job.consumer ?? "" }, job.consumer ?? h("span", { class: "none" }, "–"))),
    h("td", { class: "wide" }, moment(job.created_at)),
    h("td", {}, when(job)));
}

function form(queue, values) {
  const filter = filterOf(values);
  const search = (event) => {
    event.preventDefault();
    const given = new FormData(event.target), id = given.get("id").trim();
    if (id) { go(links.job(queue, id)); return; }
    selected.ids.clear();
    go(links.jobs(queue, {
      state: given.getAll("state").join(","), type: given.get("type").trim(), consumer: given.get("consumer").trim(),
      error: given.get("error"), order: given.get("order"),
    }));
  };
  const text = (name, label, hint) => h("label", { class: "field" }, label,
    h("input", { name, type: "search", value: values[name] ?? "", maxlength: "200", placeholder: hint, autocomplete: "off", spellcheck: "false" }));
  return h("form", { class: "filter", onsubmit: search, key: `filter ${queue} ${query(values)}` },
    h("fieldset", { class: "chips" }, h("legend", {}, "State"), STATES.map((state) => h("label", { class: `chip ${state}` },
      h("input", { type: "checkbox", name: "state", value: state, checked: filter.state.includes(state) }), NAMES[state]))),
    text("id", "Id", "of one job"), text("type", "Type", "exactly"), text("consumer", "Worker", "exactly"), text("error", "Error contains", "in the last failure"),
    h("label", { class: "field" }, "Order", h("select", { name: "order" },
      ["newest", "oldest"].map((order) => h("option", { value: order, selected: (values.order ?? "newest") === order }, `${order} first`)))),
    h("button", { type: "submit", class: "primary" }, "Search"));
}

function actions(queue, found, values, refresh) {
  if (!mayOperate(queue)) return null;
  const filter = filterOf(values);
  const ids = found.jobs.map((job) => job.id).filter((id) => selected.ids.has(id));
  const states = new Set(found.jobs.filter((job) => selected.ids.has(job.id)).map((job) => job.state));
  const any = (...wanted) => wanted.some((state) => states.has(state));
  const done = () => { selected.ids.clear(); refresh(); };
  const button = (text, verb, able, danger) => h("button", { type: "button", disabled: !able, class: danger ? "danger" : "", onclick: () => each(verb, queue, ids, done) }, text);
  const all = (text, verb) => h("button", { type: "button", class: verb === "purge" ? "danger" : "", onclick: () => bulk(verb, queue, filter, done) }, text);
  return h("div", { class: "bulk" },
    h("div", { class: "buttons", role: "group", "aria-label": "Selected jobs" },
      h("span", { class: "of" }, `Selected: ${ids.length}`),
      button("Cancel…", "cancel", any("scheduled", "queued", "in_progress")),
      button("Redrive…", "redrive", any("dead", "cancelled")),
      button("Forget…", "purge", ids.length > 0 && !any("scheduled", "queued", "in_progress"), true)),
    h("div", { class: "buttons", role: "group", "aria-label": "All that match" },
      h("span", { class: "of" }, "All that match:"), all("Cancel…", "cancel"), all("Redrive…", "redrive"), all("Purge…", "purge")));
}

export const jobs = {
  title: ({ pieces }) => `Jobs of ${pieces[1]}`,
  follows: ({ pieces }) => ({ shape: "queues", queue: pieces[1] }),
  load: async ({ pieces, values }, signal) => {
    if (selected.queue !== pieces[1]) { selected.queue = pieces[1]; selected.ids.clear(); }
    const asked = { state: values.state, type: values.type, consumer: values.consumer, error: values.error, order: values.order ?? "newest", limit: PAGE };
    // A page may be empty and be followed by another: each looks at a bounded number of jobs.
    let cursor = values.cursor, found = null;
    const began = performance.now();
    do {
      found = await get(`${queuePath(pieces[1])}/jobs${query({ ...asked, cursor })}`, signal);
      cursor = found.next_cursor;
    } while (!found.jobs.length && cursor && performance.now() - began < 3_000);
    return found;
  },
  view: (found, { pieces, values }, refresh) => {
    const queue = pieces[1], operate = mayOperate(queue);
    const heads = [["Id", ""], ["State", ""], ["Type", ""], ["Priority", "n wide"], ["Attempts", "n wide"], ["Worker", "wide"], ["Enqueued", "wide"], ["", ""]];
    const whole = found.jobs.length > 0 && found.jobs.every((job) => selected.ids.has(job.id));
    return [
      h("div", { class: "head" }, h("div", {},
        h("p", { class: "crumbs" }, h("a", { href: links.overview() }, "Queues"), " / ", h("a", { href: links.queue(queue) }, queue)),
        h("h1", { tabindex: "-1" }, "Jobs of ", queue))),
      h("nav", { class: "tabs", "aria-label": "Queue" },
        h("a", { href: links.queue(queue) }, "Summary"), h("a", { href: links.jobs(queue), "aria-current": "page" }, "Jobs")),
      form(queue, values),
      actions(queue, found, values, refresh),
      found.jobs.length
        ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Jobs" }, h("table", { class: "jobs" },
            h("caption", { class: "unseen" }, `Jobs of ${queue} that match`),
            h("thead", {}, h("tr", {},
              operate && h("th", { scope: "col", class: "pick" }, h("input", {
                type: "checkbox", "aria-label": "Select all jobs of this page", checked: whole,
                onchange: (event) => { for (const job of found.jobs) { if (event.target.checked) selected.ids.add(job.id); else selected.ids.delete(job.id); } refresh(true); },
              })),
              heads.map(([text, style]) => (text ? h("th", { scope: "col", class: style }, text) : h("th", { scope: "col" }, h("span", { class: "unseen" }, "Time")))))),
            h("tbody", {}, found.jobs.map((job) => row(job, operate, refresh)))))
        : h("p", { class: "empty" }, found.next_cursor ? `No job that matches among those looked at in ${duration(3)}; there are more.` : "No job matches."),
      h("div", { class: "pager" },
        values.cursor && h("a", { class: "button", href: links.jobs(queue, { ...values, cursor: "" }) }, "First page"),
        found.next_cursor && h("a", { class: "button", href: links.jobs(queue, { ...values, cursor: found.next_cursor }) }, "Next page")),
    ];
  },
};
