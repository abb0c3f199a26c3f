"""Asks for something and waits for the answer, which any worker may give.

queue-actor work request_reply:app
python request_reply.py 1280 720
"""

import sys

from queue_actor.client import Client
from queue_actor.worker import App

app = App(queue="questions")


@app.job("count_pixels")
def count_pixels(size: list[int]) -> int:
    width, height = size
    return width * height


if __name__ == "__main__":
    with Client() as client:
        # What nobody has begun after a minute, nobody shall begin: whoever asked is gone by then.
        question = client.enqueue("questions", "count_pixels", [int(size) for size in sys.argv[1:]], ttl_seconds=60)
        job = client.wait_for_end("questions", question.id, seconds=60)
        if job.state != "concluded":
            sys.exit(f"questions/{job.id} is {job.state}")
        print(job.result)
