#!/usr/bin/env node
// A worker for Node 18 or newer, Deno and Bun, without packages: each job names a file, whose SHA-256 is its result.
//
//     node worker.mjs http://127.0.0.1:8080 files
//
// Copy it, and put your own work into `work`. SIGTERM lets it finish the job in hand, and end. ACCESS_TOKEN is shown.
import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { hostname } from "node:os";
import process from "node:process";

const [server, queue] = process.argv.slice(2);
const consumer = process.env.CONSUMER || `${hostname()}-${process.pid}`;
const shown = process.env.ACCESS_TOKEN ? { Authorization: `Bearer ${process.env.ACCESS_TOKEN}` } : {};
const leaseSeconds = Number(process.env.LEASE_SECONDS || 30);
const waitSeconds = 5; // of a poll. None is cut short, for its answer may bring a job: SIGTERM is heeded after it
const again = [408, 429, 500, 502, 503, 504]; // nothing was done, or nobody knows: the same may be sent again

let ending = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => (ending = true));

const sleep = (seconds) => new Promise((wake) => setTimeout(wake, seconds * 1000));

// Sends a request until it is answered: the status and the answer, or 0 after too many tries, in about a minute.
// It may be sent twice without harm: the token tells that it is the same, and of a dequeue the key does. Under it, one
// that is sent again gets the job of the answer that was lost.
async function call(path, body, triesMax = 10) {
  const headers = path === "dequeue" ? { ...shown, "Idempotency-Key": randomUUID() } : shown;
  for (let tries = 0; tries < triesMax; tries++) {
    let pause = Math.random() * Math.min(0.1 * 2 ** tries, 10); // or all workers would return at the same moment
    try {
      const answer = await fetch(`${server}/v1/queues/${queue}/${path}`, {
        method: "POST",
        headers,
        body: JSON.stringify(body),
        signal: AbortSignal.timeout((waitSeconds + 10) * 1000),
      });
      const text = await answer.text();
      if (!again.includes(answer.status)) return [answer.status, JSON.parse(text)];
      pause = Math.max(pause, Number(answer.headers.get("Retry-After")) || 0);
    } catch {
      // The connection broke, the server was too slow, or it is something else than the server.
    }
    if (ending && path === "dequeue") break;
    await sleep(pause);
  }
  return [0, {}];
}

// The work itself: its result. What it throws is told to the server, which tries the job again later. Once `stop` is
// aborted, nobody waits for the result. What computes for long without an `await` belongs into a worker thread, or it
// keeps the heart from beating.
async function work(payload, stop) {
  const digest = createHash("sha256");
  for await (const block of createReadStream(payload, { signal: stop })) digest.update(block);
  return { sha256: digest.digest("hex") };
}

// Does a job: a word for what came of it.
async function perform(job) {
  const path = `jobs/${job.id}`;
  const token = job.lease.token;
  const stop = new AbortController();
  // Extends the lease until the work is done, or is to stop: the lease is lost, or somebody has cancelled the job.
  const beat = async () => {
    const [status, answer] = await call(`${path}/extend`, { token }, 1);
    if ([404, 409].includes(status) || answer.cancel_requested) stop.abort();
  };
  const heart = setInterval(beat, (leaseSeconds * 1000) / 3); // so one or two beats may get lost
  let verb, more;
  try {
    [verb, more] = ["conclude", { result: await work(job.payload, stop.signal) }];
  } catch (error) {
    [verb, more] = ["fail", { error: { type: error.code ?? error.name, message: error.message.slice(0, 1000) } }];
  }
  clearInterval(heart);
  if (stop.signal.aborted) [verb, more] = ["release", {}];
  const [status, answer] = await call(`${path}/${verb}`, { token, ...more });
  // `lease_lost`: it took too long, the job is somebody else's, and the result is dropped.
  return status === 200 ? verb : (answer.code ?? "unanswered");
}

while (!ending) {
  const poll = { wait_seconds: waitSeconds, lease_seconds: leaseSeconds, consumer };
  const [status, found] = await call("dequeue", poll);
  if (![0, 200].includes(status)) throw new Error(`the server hands out no jobs: ${found.detail}`);
  for (const job of found.jobs ?? []) console.log(await perform(job), job.id);
}
