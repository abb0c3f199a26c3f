// What an operator may do. Each action shows first what it will touch, and asks.

import { act, jobPath, may, queuePath, Refusal } from "./api.js";
import { h, say } from "./dom.js";
import { exact } from "./format.js";

const TRIED_AT_ONCE = 6;

/** A question, answered yes or no. `preview` fills in what will be touched, and says whether there is anything. */
export function ask({ title, text, verb, danger, preview, fields = [] }) {
  return new Promise((resolve) => {
    const shown = h("p", { class: "preview", "aria-live": "polite" }, preview ? "Counting…" : "");
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary", value: "yes" }, verb);
    const dialog = h("dialog", { "aria-labelledby": "asked" },
      h("form", { method: "dialog" },
        h("h2", { id: "asked" }, title), text && h("p", {}, text), fields, shown,
        h("div", { class: "buttons" }, h("button", { type: "submit", value: "no", class: "quiet" }, "Leave it"), go)));
    let turn = 0;
    const count = async () => {
      if (!preview) return;
      turn += 1;
      const mine = turn;
      go.disabled = true;
      try {
        const { told, any } = await preview(dialog);
        if (mine === turn) { shown.textContent = told; go.disabled = !any; }
      } catch (error) {
        if (mine === turn) shown.textContent = error.message;
      }
    };
    dialog.addEventListener("change", count);
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? new FormData(dialog.querySelector("form")) : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    count();
  });
}

/** Tells how an action ended, to those who look and to those who listen. */
export function tell(text, failed = false) {
  say(text);
  const toast = h("div", { class: failed ? "toast failed" : "toast" }, text);
  document.body.append(toast);
  setTimeout(() => toast.remove(), 6_000);
}

export async function attempt(doing, done) {
  try {
    const result = await doing();
    tell(typeof done === "function" ? done(result) : done);
    return true;
  } catch (error) {
    if (!(error instanceof Refusal) && error.name !== "TypeError") throw error;
    tell(`Not done: ${error.message}`, true);
    return false;
  }
}

const jobs = (count) => (count === 1 ? "1 job" : `${exact(count)} jobs`);

const BULK = {
  cancel: {
    title: "Cancel jobs", verb: "Cancel them", danger: true, past: "cancelled", states: ["scheduled", "queued", "in_progress"],
    text: "Jobs that wait end at once. Of those in progress it is a wish: their workers are told when they extend their leases.",
  },
  redrive: {
    title: "Redrive jobs", verb: "Redrive them", past: "redriven", states: ["dead", "cancelled"],
    text: "They are queued again, at the back, with all their attempts before them.",
  },
  purge: {
    title: "Purge jobs", verb: "Forget them for good", danger: true, past: "forgotten", states: ["scheduled", "queued", "concluded", "dead", "cancelled"],
    text: "They are forgotten, whatever becomes of them elsewhere; that cannot be undone. Jobs in progress are never touched.",
  },
};

export const bulkStates = (verb) => BULK[verb].states;

/** A verb on all jobs of a queue that match a filter, after a dry run of the same. */
export async function bulk(verb, queue, filter, changed) {
  const { title, text, verb: button, danger, past, states } = BULK[verb];
  const chosen = (filter.state?.length ? filter.state : states).filter((state) => states.includes(state));
  const boxes = h("fieldset", {}, h("legend", {}, "In the states"), states.map((state) => h("label", {},
    h("input", { type: "checkbox", name: "state", value: state, checked: chosen.includes(state) }), ` ${state.replace("_", " ")}`)));
  const rate = verb === "redrive" && h("label", { class: "field" }, "Not more than this many a second (empty: all at once) ",
    h("input", { type: "number", name: "per_second", min: "0.001", max: "1000000", step: "any", inputmode: "decimal" }));
  const conditions = Object.entries(filter).filter(([name, value]) => name !== "state" && value);
  const where = conditions.length > 0 && h("p", { class: "where" }, "Only jobs with ", conditions.map(([name, value], n) => [n > 0 && ", ", `${name} `, h("code", {}, value)]));
  const body = (form) => ({
    ...Object.fromEntries(conditions),
    state: form.getAll("state"),
    ...(form.get("per_second") ? { per_second: Number(form.get("per_second")) } : {}),
  });
  const form = await ask({
    title: `${title} of ${queue}`, text, verb: button, danger, fields: [where, boxes, rate],
    preview: async (dialog) => {
      const wanted = body(new FormData(dialog.querySelector("form")));
      if (!wanted.state.length) return { told: "No state is chosen.", any: false };
      const { count } = await act(`${queuePath(queue)}/${verb}`, { ...wanted, dry_run: true });
      return { told: `This touches ${jobs(count)}.`, any: count > 0 };
    },
  });
  if (form === null) return;
  await attempt(() => act(`${queuePath(queue)}/${verb}`, body(form)),
    ({ count, refused }) => `${jobs(count)} ${past}${refused ? `, ${exact(refused)} could not be` : ""}.`);
  changed();
}

/** A verb on some jobs by their ids. */
export async function each(verb, queue, ids, changed) {
  const { title, text, verb: button, danger, past } = BULK[verb];
  const form = await ask({
    title: `${title} of ${queue}`, text, verb: button, danger,
    preview: async () => ({ told: `This touches ${jobs(ids.length)}: ${ids.slice(0, 12).join(", ")}${ids.length > 12 ? ", …" : ""}.`, any: true }),
  });
  if (form === null) return;
  const left = [...ids];
  let done = 0;
  const refusals = [];
  const work = async () => {
    for (let id = left.shift(); id !== undefined; id = left.shift()) {
      try {
        await (verb === "purge" ? act(jobPath(queue, id), undefined, "DELETE") : act(`${jobPath(queue, id)}/${verb}`));
        done += 1;
      } catch (error) {
        refusals.push(error.message);
      }
    }
  };
  await Promise.all(Array.from({ length: TRIED_AT_ONCE }, work));
  tell(`${jobs(done)} ${past}${refusals.length ? `; ${refusals.length} not: ${refusals[0]}` : ""}.`, done === 0);
  changed();
}

/** Pause and resume. */
export async function setPaused(queue, paused, counts, changed) {
  const form = await ask(paused ? {
    title: `Pause ${queue}`, verb: "Pause it", danger: true,
    text: "No more jobs are handed out until it is resumed. Jobs are taken in, and those in progress go on.",
    preview: async () => ({ told: `${jobs(counts.queued)} would wait, ${jobs(counts.in_progress)} in progress go on.`, any: true }),
  } : {
    title: `Resume ${queue}`, verb: "Resume it", text: "Its jobs are handed out again.",
    preview: async () => ({ told: `${jobs(counts.queued)} can be handed out.`, any: true }),
  });
  if (form === null) return;
  await attempt(() => act(`${queuePath(queue)}/${paused ? "pause" : "resume"}`), paused ? `${queue} is paused.` : `${queue} is resumed.`);
  changed();
}

/** One verb on one job. */
export async function one(verb, queue, id, changed) {
  const said = {
    cancel: { title: `Cancel job ${id}`, verb: "Cancel it", danger: true, text: BULK.cancel.text, done: `Job ${id}: cancel asked for.` },
    redrive: { title: `Redrive job ${id}`, verb: "Redrive it", text: "It is queued again, at the back, with all its attempts before it.", done: `Job ${id} is queued again.` },
    run: { title: `Run job ${id} now`, verb: "Make it ready", text: "It does not wait for its time, and is queued at the back.", done: `Job ${id} is queued.` },
    forget: { title: `Forget job ${id}`, verb: "Forget it for good", danger: true, text: "It has ended, and is kept no longer. That cannot be undone.", done: `Job ${id} is forgotten.` },
  }[verb];
  if ((await ask(said)) === null) return false;
  const path = jobPath(queue, id);
  const done = await attempt(() => (verb === "forget" ? act(path, undefined, "DELETE") : act(`${path}/${verb}`)), said.done);
  changed();
  return done;
}

export const mayOperate = (queue) => may("operate", queue);
