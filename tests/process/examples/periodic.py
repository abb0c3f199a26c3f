"""Enqueues a job for each moment of a clock: `python periodic.py SECONDS [MOMENTS]`.

Start it on several machines, and one may fail: the idempotency key is that of the moment, so each has one job.
"""

import sys
import time

from queue_actor.client import Client

every = float(sys.argv[1])
moments = int(sys.argv[2]) if len(sys.argv) > 2 else None

with Client() as client:
    moment = int(time.time() // every)
    while moments is None or moments > 0:
        time.sleep(max(0.0, moment * every - time.time()))  # what the example is for: a program that lives by the clock
        # A report that was not begun when the next one is due is not made any more.
        job = client.enqueue(
            "reports", "report", {"moment": moment}, idempotency_key=f"report {every} {moment}", ttl_seconds=every
        )
        print(f"{moment} reports/{job.id}", flush=True)
        moment += 1
        moments = None if moments is None else moments - 1
