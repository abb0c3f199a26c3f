// Where each page is: everything stands behind the #, so a link works wherever the server is mounted.

import { query } from "./api.js";

const part = encodeURIComponent;

export const links = {
  overview: (values = {}) => `#/${query(values)}`,
  health: () => "#/health",
  queue: (queue) => `#/queues/${part(queue)}`,
  jobs: (queue, values = {}) => `#/queues/${part(queue)}/jobs${query(values)}`,
  job: (queue, id) => `#/queues/${part(queue)}/jobs/${part(id)}`,
};

export function go(link) {
  location.hash = link;
}

/** The path in pieces, and the query. */
export function read(hash) {
  const [path, search] = hash.replace(/^#\/?/, "").split("?");
  const pieces = path.split("/").filter(Boolean).map((piece) => {
    try { return decodeURIComponent(piece); } catch { return piece; }
  });
  return { pieces, values: Object.fromEntries(new URLSearchParams(search ?? "")) };
}
