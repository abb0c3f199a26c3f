// Follows the server's events and says when something has happened; connects again for as long as the page lives.

import { query, request } from "./api.js";

const PAUSE_MILLISECONDS = 1_000; // between two attempts
const SILENCE_MILLISECONDS = 40_000; // the server breaks silence every 15 s

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let timer;
    const silence = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("silence")), SILENCE_MILLISECONDS);
    });
    const { done, value } = await Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer));
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = new Map();
      for (const line of part.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) fields.set(line.slice(0, at), line.slice(at + 2));
      }
      if (fields.has("event")) yield { event: fields.get("event"), id: fields.get("id"), data: JSON.parse(fields.get("data")) };
    }
  }
}

/** Calls `happened` after each event, and `connected(true or false)`, until the signal aborts. */
export async function follow(filter, { signal, happened, connected }) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const answer = await request(`v1/events${query(filter)}`, { signal, headers });
      connected(true);
      for await (const { event, id, data } of events(answer.body)) {
        last = id ?? last;
        if (event === "open") {
          if (!data.resumed) happened(null);
        } else if (event !== "end") {
          happened(event === "gap" ? null : data);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 400) last = null;
    }
    connected(false);
    await pause(PAUSE_MILLISECONDS);
  }
}
