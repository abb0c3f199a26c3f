// The policy of a queue: its fields with their units and defaults, how they are told, and how they are set.

import { tell } from "./actions.js";
import { act, get, may, queuePath, Refusal } from "./api.js";
import { h } from "./dom.js";
import { duration, exact } from "./format.js";

const NAME = "name";

/**
 * The fields, in the order in which they are shown: `none` is what no value means, where there may be none; `initial` is
 * the value of a queue that was never given a policy, and `default_` that of the queue `default`, if it is another.
 */
const FIELDS = [
  { name: "max_attempts", label: "Attempts at most", unit: "attempts", none: "no limit", initial: 25, default_: null },
  { name: "max_stale", label: "Of these gone stale", unit: "attempts", none: "no limit", initial: 5, default_: null },
  { name: "retry.kind", label: "Pauses between attempts", initial: "exponential", choices: { exponential: "grow", fixed: "are alike" } },
  { name: "retry.base_seconds", label: "The first pause", unit: "seconds", initial: 1 },
  { name: "retry.factor", label: "Grows by the factor", initial: 2 },
  { name: "retry.cap_seconds", label: "Grows up to", unit: "seconds", initial: 3600 },
  { name: "retry.jitter", label: "A pause is", initial: "full", choices: { full: "drawn at random, up to its length", none: "as long as it says" } },
  { name: "lease_seconds", label: "Length of a lease", unit: "seconds", none: "the server's", initial: null },
  { name: "run_seconds_max", label: "Longest run", unit: "seconds", none: "no limit", initial: null },
  { name: "ttl_seconds", label: "Time to live", of: "of a new job", unit: "seconds", none: "no limit", initial: null },
  { name: "queued_jobs_max", label: "Waiting jobs at most", unit: "jobs", none: "the server's limit", initial: null },
  { name: "in_progress_max", label: "In progress at most", unit: "jobs", none: "no limit", initial: null },
  { name: "oldest_every", label: "Takes the oldest", of: "each n-th time", unit: "dequeues", initial: 0, zero: "never before its turn" },
  { name: "retention_seconds", label: "Keeps ended jobs", unit: "seconds", none: "as the server does", initial: null },
  { name: "dead_retention_seconds", label: "Keeps dead jobs", unit: "seconds", none: "as the server does", initial: null },
];

const WHOLE = ["attempts", "jobs", "dequeues"];

const initialOf = (field, queue) => (queue === "default" && "default_" in field ? field.default_ : field.initial);
const valueOf = (policy, { name }) => name.split(".").reduce((within, part) => within[part], policy);

/** Whether policies may be set: of a queue, or of any. */
export const mayAdmin = (queue) => may("admin", queue);

/** A value as people say it. */
function said(field, value) {
  if (value === null) return field.none;
  if (field.choices) return field.choices[value] ?? value;
  if (field.zero) return value === 0 ? field.zero : `each ${exact(value)}. time`;
  return field.unit === "seconds" ? duration(value) : exact(value);
}

const pauses = (retry) => (retry.kind === "fixed"
  ? `each ${duration(retry.base_seconds)}`
  : `${duration(retry.base_seconds)}, then × ${retry.factor}, up to ${duration(retry.cap_seconds)}`) +
  (retry.jitter === "full" ? ", spread at random" : "");

/** A policy to be read: what stands for what. */
export const rules = (policy) => FIELDS.filter(({ name }) => name === "retry.kind" || !name.includes(".")).map((field) => {
  if (field.name === "retry.kind") return ["Tried again after", pauses(policy.retry)];
  const value = valueOf(policy, field), none = value === null || (value === 0 && field.zero);
  return [field.label, h("span", { class: none ? "none" : "" }, said(field, value))];
});

/** What was typed, as the value it means; undefined where the default is meant. Text that is no number stays as it is. */
function meant(field, typed) {
  const text = typed.trim();
  if (text === "") return field.none === undefined ? undefined : null;
  const value = Number(text);
  return !field.choices && /^-?[\d.]+(e[-+]?\d+)?$/i.test(text) && Number.isFinite(value) ? value : text;
}

/** What stands below a field: its unit, its default, and what it means to leave it empty. */
function hint(field, queue) {
  const initial = initialOf(field, queue);
  const default_ = initial === null ? `default: empty, ${field.none}` : `default: ${field.choices?.[initial] ?? initial}${field.zero ? `, ${field.zero}` : ""}`;
  const empty = initial !== null && field.none !== undefined && `empty: ${field.none}`;
  return [field.of, field.unit && `in ${field.unit}`, default_, empty].filter(Boolean).join("; ");
}

/** What a body says of a policy: all of it, so that nothing depends on what was there before. */
function bodyOf(form) {
  const body = {};
  for (const field of FIELDS) {
    const value = meant(field, form.elements[field.name].value);
    const [outer, inner] = field.name.split(".");
    if (inner === undefined) body[outer] = value;
    else (body[outer] ??= {})[inner] = value;
  }
  return body;
}

/** What is wrong with a value that no server has to be asked about. */
function wrongAtOnce(field, typed) {
  const value = meant(field, typed);
  if (field.choices || value === undefined || value === null) return null;
  if (typeof value === "string") return "This is no number.";
  return WHOLE.includes(field.unit) && !Number.isInteger(value) ? "This is no whole number." : null;
}

function changes(form, policy, queue) {
  return FIELDS.flatMap((field) => {
    const before = valueOf(policy, field), typed = form.elements[field.name].value;
    if (wrongAtOnce(field, typed)) return [];
    const after = meant(field, typed) ?? (field.none === undefined ? initialOf(field, queue) : null);
    return before === after ? [] : [`${field.label}: ${said(field, before)} → ${said(field, after)}`];
  });
}

function entry(name, label, control, more) {
  control.setAttribute("aria-describedby", `hint-${name} wrong-${name}`);
  return h("div", { class: "entry" },
    h("label", { class: "field" }, label, control),
    h("p", { class: "hint", id: `hint-${name}` }, more), h("p", { class: "wrong", id: `wrong-${name}` }));
}

function control(field, policy) {
  const value = valueOf(policy, field);
  if (field.choices) {
    return h("select", { name: field.name }, Object.entries(field.choices).map(([name, text]) => h("option", { value: name, selected: name === value }, text)));
  }
  // A field for text: one for numbers keeps what is none to itself.
  return h("input", { name: field.name, type: "text", inputmode: "decimal", value: value ?? "", placeholder: field.none, maxlength: "40", autocomplete: "off", spellcheck: "false" });
}

/** Sets a queue's policy, or declares a queue, of which the name is asked if there is none. What was typed stays until it is saved, or left. */
export async function editPolicy(known, changed) {
  const queue = known?.name;
  const initial = { retry: {} };
  for (const field of FIELDS) {
    const [outer, inner] = field.name.split(".");
    if (inner === undefined) initial[outer] = field.initial;
    else initial[outer][inner] = field.initial;
  }
  let before = known?.policy ?? initial; // what is there as far as the reader has seen
  const title = known?.exists ? `Policy of ${queue}` : queue ? `Declare ${queue}` : "Declare a queue";
  const general = h("p", { class: "wrong", role: "alert" });
  const preview = h("p", { class: "preview", "aria-live": "polite" });
  const form = h("form", { novalidate: true },
    h("h2", { id: "edited" }, title),
    h("p", {}, "It holds for all jobs of the queue that do not say otherwise."),
    queue === undefined && entry(NAME, "Name", h("input", { name: NAME, maxlength: "80", autocomplete: "off", spellcheck: "false" }), "letters, digits, and _ . : - after the first"),
    h("div", { class: "entries" }, FIELDS.map((field) => entry(field.name, field.label, control(field, before), hint(field, queue)))),
    preview, general,
    h("div", { class: "buttons" },
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Leave it"),
      h("button", { type: "submit", class: "primary" }, known?.exists ? "Save it" : "Declare it")));
  const dialog = h("dialog", { class: "policy", "aria-labelledby": "edited" }, form);
  const asItWas = () => new URLSearchParams(new FormData(form)).toString();
  let busy = false, left = false;

  const show = () => {
    const told = changes(form, before, queue);
    preview.textContent = told.length ? `Changes: ${told.join("; ")}.` : known?.exists ? "Nothing is changed." : "All as by default.";
  };
  const complain = (name, text) => {
    const wrong = form.elements[name];
    wrong.setAttribute("aria-invalid", "true");
    document.getElementById(`wrong-${name}`).textContent = text;
    return wrong;
  };
  const calm = () => {
    general.textContent = "";
    for (const each of form.querySelectorAll("[aria-invalid]")) {
      each.removeAttribute("aria-invalid");
      document.getElementById(`wrong-${each.name}`).textContent = "";
    }
  };
  const save = async () => {
    calm();
    const name = queue ?? form.elements[NAME].value.trim();
    const complaints = FIELDS.map((field) => [field.name, wrongAtOnce(field, form.elements[field.name].value)]).filter(([, text]) => text);
    // Such a name would lead the path elsewhere; of any other the server says what is wrong.
    if (/^\.*$/.test(name)) complaints.unshift([NAME, "A queue has a name."]);
    if (complaints.length) {
      complaints.map(([field, text]) => complain(field, text))[0].focus();
      return;
    }
    const now = await get(queuePath(name));
    if (queue === undefined && now.exists) {
      complain(NAME, "There is such a queue already: its policy is on its page.").focus();
      return;
    }
    if (known && JSON.stringify(now.policy) !== JSON.stringify(before)) {
      before = now.policy;
      show();
      general.textContent = "Somebody else has changed the policy meanwhile. Saving once more replaces theirs.";
      return;
    }
    await act(queuePath(name), bodyOf(form), "PUT");
    dialog.close();
    tell(known?.exists ? `The policy of ${name} is saved.` : `${name} is declared.`);
    changed(name);
  };
  form.addEventListener("input", () => { left = false; show(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    try {
      await save();
    } catch (error) {
      const field = error.field === "queue" ? NAME : error.field;
      if (error instanceof Refusal && field && form.elements[field] instanceof HTMLElement) complain(field, error.message).focus();
      else general.textContent = error instanceof Refusal ? `Not saved: ${error.message}.` : "Not saved: the server cannot be reached. What you typed is still here.";
    } finally {
      busy = false;
    }
  });
  dialog.addEventListener("cancel", (event) => {
    if (left || asItWas() === opened) return;
    event.preventDefault();
    left = true;
    general.textContent = "This is not saved yet. Escape once more leaves it.";
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  const opened = asItWas();
  show();
  dialog.showModal();
}
