// Figures and times as people read them.

import { h } from "./dom.js";

export const STATES = ["scheduled", "queued", "in_progress", "concluded", "dead", "cancelled"];
export const NAMES = {
  scheduled: "Scheduled", queued: "Queued", in_progress: "In progress",
  concluded: "Concluded", dead: "Dead", cancelled: "Cancelled",
};

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const zone = { utc: false };

/** A count: short where it is large, and exact when asked. */
export function count(value) {
  if (value < 10_000) return WHOLE.format(value);
  return h("span", { title: WHOLE.format(value) }, SHORT.format(value));
}

export const exact = (value) => WHOLE.format(value);

export function rate(value) {
  if (!value) return h("span", { class: "none" }, "0");
  return value < 10 ? value.toFixed(1).replace(/\.0$/, "") : count(Math.round(value));
}

/** A length of time in its two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const sign = seconds < 0 ? "−" : "";
  const value = Math.abs(seconds);
  if (value === 0) return "0 s";
  if (value < 0.01) return `${sign}${Number((value * 1000).toPrecision(2))} ms`;
  if (value < 1) return `${sign}${Math.round(value * 1000)} ms`;
  if (value < 10) return `${sign}${value.toFixed(1).replace(/\.0$/, "")} s`;
  const whole = Math.round(value);
  for (const [unit, name, smaller, its] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= unit) {
      const rest = Math.floor((whole % unit) / smaller);
      return `${sign}${Math.floor(whole / unit)} ${name}${rest ? ` ${rest} ${its}` : ""}`;
    }
  }
  return `${sign}${whole} s`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

function local(date) {
  const pad = (value, width = 2) => String(value).padStart(width, "0");
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ` +
    `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

const universal = (date) => date.toISOString().slice(0, 19).replace("T", " ");

/** A moment, in the zone that was chosen; the other one and the distance are told when asked. */
export function moment(text) {
  if (!text) return h("span", { class: "none" }, "–");
  const date = new Date(text);
  const both = `${local(date)} local, ${universal(date)} UTC`;
  return h("time", { datetime: text, title: both }, zone.utc ? `${universal(date)} UTC` : local(date));
}

export function clock(date) {
  return zone.utc ? date.toISOString().slice(11, 16) : local(date).slice(11, 16);
}

/** How long ago, or how far off, a moment is. */
export function distance(text) {
  const seconds = (Date.now() - new Date(text).getTime()) / 1000;
  return seconds >= 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
}

export const badge = (state, text) => h("span", { class: `badge ${state}` }, text ?? NAMES[state] ?? state);
