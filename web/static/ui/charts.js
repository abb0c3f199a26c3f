// Small charts, drawn as SVG by hand: bars and lines over the last hour need no library.

import { svg, h } from "./dom.js";
import { clock, duration, exact } from "./format.js";

/** Where the page is as narrow as a phone, a chart has fewer units of its drawing, so that its text can be read. */
const NARROW = matchMedia("(max-width: 40rem)");

const sum = (values) => values.reduce((all, value) => all + (value ?? 0), 0);

/** Bars of the last hour in one row of a table: what was done, and below the line what failed. */
export function spark(done, failed) {
  const width = 122, height = 26, most = Math.max(1, ...done.map((value, at) => value + failed[at]));
  const scale = (value) => (value ? Math.max(1.5, (value / most) * (height - 1)) : 0);
  const bars = done.flatMap((value, at) => {
    const good = scale(value), bad = scale(failed[at]), x = at * 2 + 1;
    return [
      good > 0 && svg("rect", { x, y: height - good, width: 1.6, height: good, class: "good" }),
      bad > 0 && svg("rect", { x, y: Math.max(0, height - good - bad), width: 1.6, height: bad, class: "bad" }),
    ];
  });
  const label = `last hour: ${exact(sum(done))} concluded, ${exact(sum(failed))} failed attempts`;
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("line", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5, class: "axis" }), bars);
}

const MINUTES = [1, 2, 4, 6, 10, 20, 30, 60, 120, 240, 480, 720, 1440].map((minutes) => minutes * 60);

function ceiling(value, of) {
  if (of === "seconds" && value > 60) return MINUTES.find((step) => step >= value) ?? Math.ceil(value / 86_400) * 86_400;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.999);
}

/** A value at the axis, in few characters. */
function short(value, unit) {
  if (unit !== "seconds") return exact(value);
  const [size, name] = value < 1 ? [0.001, "ms"] : value < 60 ? [1, "s"] : value < 7_200 ? [60, "min"] : [3_600, "h"];
  return value === 0 ? "0" : `${Number((value / size).toPrecision(3))} ${name}`;
}

function path(values, x, y) {
  let text = "", pen = false;
  values.forEach((value, at) => {
    if (value === null) { pen = false; return; }
    text += `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    // A value with nothing beside it would not be seen.
    if (!pen && (values[at + 1] ?? null) === null) text += "h1.5";
    pen = true;
  });
  return text;
}

/** A chart of some series over the minutes since a moment. `kind` is `bars` or `lines`, `unit` `jobs` or `seconds`. */
export function chart(title, since, series, { kind, unit }) {
  const width = NARROW.matches ? 340 : 520, height = 150, left = 46, right = 6, top = 10, bottom = 20;
  const minutes = series[0].values.length;
  const totals = series[0].values.map((_, at) => (kind === "bars" ? sum(series.map(({ values }) => values[at])) : 0));
  const highest = Math.max(...totals, ...series.flatMap(({ values }) => values.map((value) => value ?? 0)));
  const most = ceiling(highest || 1, unit);
  const told = (value) => (unit === "seconds" ? duration(value) : exact(Math.round(value * 100) / 100));
  const slot = (width - left - right) / minutes;
  const x = (at) => left + at * slot, y = (value) => height - bottom - (value / most) * (height - top - bottom);
  const start = new Date(since).getTime();
  const at = (minute) => clock(new Date(start + minute * 60_000));
  const grid = [0, 0.5, 1].map((share) => [
    svg("line", { x1: left, x2: width - right, y1: y(most * share), y2: y(most * share), class: "grid" }),
    svg("text", { x: left - 6, y: y(most * share) + 4, class: "tick", "text-anchor": "end" }, short(most * share, unit)),
  ]);
  const ticks = [0, 15, 30, 45, minutes - 1].map((minute, n) => svg("text", {
    x: x(minute) + slot / 2, y: height - 5, class: "tick", "text-anchor": n === 0 ? "start" : n === 4 ? "end" : "middle",
  }, n === 4 ? "now" : at(minute)));
  const drawn = kind === "bars"
    ? totals.map((_, minute) => {
        let base = 0;
        return series.map(({ style, values }) => {
          const value = values[minute] ?? 0;
          const bar = value > 0 && svg("rect", {
            x: x(minute) + 0.5, width: Math.max(1, slot - 1.5), class: style,
            y: y(base + value), height: Math.max(1, y(base) - y(base + value)),
          });
          base += value;
          return bar;
        });
      })
    : series.map(({ style, values }) => svg("path", { d: path(values, (n) => x(n) + slot / 2, y), class: `line ${style}` }));
  const hover = totals.map((_, minute) => {
    const values = series.map(({ name, values: its }) => `${name} ${its[minute] === null ? "–" : told(its[minute])}`);
    return svg("rect", { x: x(minute), y: top, width: slot, height: height - top - bottom, class: "hover" },
      svg("title", {}, `${at(minute)}  ${values.join(", ")}`));
  });
  const summary = series.map(({ name, values }) => {
    const known = values.filter((value) => value !== null);
    if (unit === "jobs") return `${name} ${exact(sum(values))} in the last hour`;
    return known.length ? `${name} lately ${told(known[known.length - 1])}` : `${name} unknown`;
  });
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("span", { class: "of" }, title),
      series.map(({ name, style, values }) => h("span", { class: `legend ${style}` }, name,
        unit === "jobs" && h("b", {}, ` ${exact(sum(values))}`)))),
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${summary.join(", ")}` },
      grid, ticks, drawn, hover));
}
