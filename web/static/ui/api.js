// Asks the server. The access token is kept here, in memory, and nowhere else.

let token = null;
let asking = null; // a sign-in under way: whoever is refused meanwhile waits for the same

export const session = { name: null, scopes: [], queues: [], signIn: null, renewed: null };

export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the server answered ${status}`);
    this.status = status;
    this.code = problem.code ?? "unknown";
    this.field = problem.field;
  }
}

export const isSignedIn = () => token !== null;

export function signOut() {
  token = null;
}

/** A request, with the token if there is one; relative, so that it works behind a path prefix. */
export async function request(path, { method = "GET", body, signal, headers = {} } = {}) {
  for (;;) {
    const shown = token;
    const answer = await fetch(path, {
      method, signal,
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
      headers: { ...headers, ...(shown ? { Authorization: `Bearer ${shown}` } : {}), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    if (answer.status !== 401) throw new Refusal(answer.status, problem);
    if (token === shown) {
      asking ??= session.signIn(problem.detail, shown !== null).then((typed) => {
        token = typed;
        asking = null;
        // Another token may do other things than the one before.
        if (shown !== null) session.renewed();
      });
      await asking;
    }
    signal?.throwIfAborted();
  }
}

export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

/** The text of an answer: payloads are shown as they were sent, with all digits of their numbers. */
export async function text(path, signal) {
  return (await request(path, { signal })).text();
}

export async function act(path, body, method = "POST") {
  return (await request(path, { method, body })).json();
}

export async function learn() {
  Object.assign(session, await get("v1/access"));
}

const covers = (pattern, queue) =>
  pattern === queue || (pattern.endsWith("*") && queue.startsWith(pattern.slice(0, -1)));

/** Whether the token has a scope on a queue: what is not allowed is not offered. The server decides. */
export function may(scope, queue) {
  return session.scopes.includes(scope) && (queue === undefined || session.queues.some((pattern) => covers(pattern, queue)));
}

export const mayAll = (scope) => may(scope) && session.queues.includes("*");

export const queuePath = (queue) => `v1/queues/${encodeURIComponent(queue)}`;
export const jobPath = (queue, id) => `${queuePath(queue)}/jobs/${encodeURIComponent(id)}`;

export function query(values) {
  const pairs = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
  const text = new URLSearchParams(pairs).toString();
  return text ? `?${text}` : "";
}
