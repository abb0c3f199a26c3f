// The page: which view is shown, when it is loaded again, and who looks at it.

import { isSignedIn, learn, mayAll, Refusal, session, signOut } from "./api.js";
import { h, patch, say } from "./dom.js";
import { zone } from "./format.js";
import { health } from "./health.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { go, links, read } from "./links.js";
import { follow } from "./live.js";
import { overview } from "./overview.js";
import { queue } from "./queue.js";

const APART_MILLISECONDS = 500; // two loads that events ask for
const EVERY_SECONDS = 5; // ages grow although nothing happens
const main = document.getElementById("main");

let shown = null; // the view, its route, what was loaded last, and what ends it
let connection = "connecting";

function viewOf({ pieces }) {
  const [first, , third, fourth] = pieces;
  if (first === "health") return health;
  if (first === "queues" && pieces.length === 2) return queue;
  if (first === "queues" && third === "jobs") return fourth === undefined ? jobs : job;
  return overview;
}

function tools() {
  const words = { live: "Live", connecting: "Connecting…", lost: "Reconnecting…" };
  patch(document.getElementById("tools"), [
    h("span", { class: `live ${connection}`, title: "whether the server's events are followed" }, words[connection]),
    h("button", { type: "button", class: "quiet", "aria-pressed": String(zone.utc), onclick: () => { zone.utc = !zone.utc; draw(); } }, zone.utc ? "UTC" : "Local time"),
    session.name !== null && h("span", { class: "who", title: `${session.scopes.join(", ")} on ${session.queues.join(", ")}` }, session.name),
    isSignedIn() && h("button", { type: "button", class: "quiet", onclick: () => { signOut(); location.reload(); } }, "Sign out"),
  ]);
  const page = shown?.view;
  const link = (href, text, is) => h("a", { href, "aria-current": is ? "page" : undefined }, text);
  patch(document.getElementById("pages"), [
    link(links.overview(), "Queues", page && page !== health),
    mayAll("read") && link(links.health(), "Health", page === health),
    h("a", { href: "docs" }, "API"),
  ]);
}

function problem(error) {
  const sorry = error.status === 404 ? "There is no such thing (any more)" : error.status === 403 ? "This token may not see that" : "That did not work";
  return [h("h1", { tabindex: "-1" }, sorry), h("p", { class: "empty" }, error.message), h("p", {}, h("a", { href: links.overview() }, "All queues"))];
}

function draw() {
  tools();
  if (!shown?.loaded) return;
  const { loaded, view, route } = shown;
  patch(main, (loaded.error ? problem(loaded.error) : view.view(loaded.told, route, (again) => (again ? draw() : refresh(0)))));
}

async function load(page) {
  page.loading = true;
  page.wanted = false;
  page.at = performance.now();
  try {
    page.loaded = { told: await page.view.load(page.route, page.ends.signal) };
    page.lost = false;
  } catch (error) {
    if (page.ends.signal.aborted) return;
    // Without an answer what was there is shown on; live.js sees to the connection.
    if (error instanceof Refusal && error.status < 500) page.loaded = { error };
    else if (!page.loaded) page.loaded = { error };
    if (!(error instanceof Refusal)) page.lost = true;
  } finally {
    page.loading = false;
  }
  if (page !== shown) return;
  const first = !page.drawn;
  page.drawn = true;
  draw();
  if (first) {
    main.querySelector("h1")?.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
  if (page.wanted) refresh();
  // What it shows may be from before what it was loaded for.
  else if (page.view.settles && page.news > page.at - page.view.settles) refresh(page.view.settles);
}

/** Loads the page again: at once if it has been a while, else when it will have been. */
function refresh(apart = APART_MILLISECONDS) {
  const page = shown;
  if (!page) return;
  if (page.loading) { page.wanted = true; return; }
  clearTimeout(page.timer);
  page.timer = setTimeout(() => { if (page === shown && !page.loading) load(page); }, Math.max(0, page.at + apart - performance.now()));
}

function route() {
  shown?.ends.abort();
  clearTimeout(shown?.timer);
  const where = read(location.hash);
  const view = viewOf(where);
  const page = shown = { view, route: where, ends: new AbortController(), loaded: null, at: 0, news: -Infinity };
  document.title = `${view.title(where)} · queue-actor`;
  tools();
  load(page);
  followed(page);
}

/** Follows the events for a page. A page that nobody sees does not: a browser has six connections to a server in all. */
function followed(page) {
  const { view, route: where } = page;
  page.stream = new AbortController();
  page.ends.signal.addEventListener("abort", () => page.stream.abort());
  follow(view.follows(where) ?? { shape: "queues" }, {
    signal: page.stream.signal,
    happened: (data) => {
      if (data !== null && view.wants && !view.wants(where, data)) return;
      page.news = performance.now();
      refresh();
    },
    connected: (is) => {
      const before = connection;
      connection = is ? "live" : "lost";
      if (before !== connection) {
        if (connection === "lost") say("The connection to the server is lost; trying again.");
        else if (before === "lost") { say("The connection is there again."); learn().then(tools, () => {}); refresh(0); }
      }
      tools();
    },
  });
}

setInterval(() => {
  const every = (shown?.view.every ?? EVERY_SECONDS) * 1000;
  if (shown && !shown.loading && !document.hidden && performance.now() - shown.at >= every) refresh(0);
}, 1_000);
document.addEventListener("visibilitychange", () => {
  if (!shown) return;
  shown.stream.abort();
  if (document.hidden) return;
  followed(shown);
  refresh(0);
});

/** Asks for an access token, which is kept in memory alone; resolves with it. */
session.signIn = (detail, wrong) => new Promise((resolve) => {
  const field = h("input", { type: "password", name: "token", required: true, autocomplete: "off", spellcheck: "false", "aria-describedby": "sign-in-why" });
  const dialog = h("dialog", { class: "sign-in", "aria-labelledby": "sign-in" },
    h("form", { method: "dialog" },
      h("h2", { id: "sign-in" }, "Access token"),
      h("p", { id: "sign-in-why", class: wrong ? "wrong" : "" }, wrong ? `Not accepted: ${detail}.` : "This server asks for one. It stays in the memory of this page, and is gone when you leave it."),
      h("label", { class: "field" }, "Token", field),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Sign in"))));
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.addEventListener("close", () => {
    dialog.remove();
    const token = field.value.trim();
    // What no header can carry is no token; the server says so of any other that is wrong.
    resolve(/^[\x21-\x7e]+$/.test(token) ? token : "none");
  });
  document.body.append(dialog);
  dialog.showModal();
});

/** Called when another token has been typed than the one that was refused. */
session.renewed = () => learn().then(draw, () => {});

document.getElementById("go").addEventListener("submit", (event) => {
  event.preventDefault();
  const [name, id] = document.getElementById("go-to").value.trim().split("/");
  if (name) go(id ? links.job(name, id) : links.queue(name));
});
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, select, textarea, dialog")) {
    event.preventDefault();
    document.getElementById("go-to").focus();
  }
});

window.addEventListener("hashchange", route);
learn().then(route, (error) => patch(main, problem(error)));
tools();
