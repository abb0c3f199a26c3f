"""A worker: each job names a file, whose hash is the result."""

import hashlib
import http.client
import json
import sys
from pathlib import Path

server = http.client.HTTPConnection(sys.argv[1])

while True:
    server.request("POST", "/jobs/dequeue?wait=20")
    answer = server.getresponse()
    job = json.load(answer)
    if answer.status == 404:
        continue  # there was no job for 20 seconds
    token = answer.headers["Queue-Lease-Token"]

    digest = hashlib.sha256(Path(job["Payload"]).read_bytes()).hexdigest()

    server.request("POST", f"/jobs/{job['ID']}/conclude", headers={"Queue-Lease-Token": token})
    answer = server.getresponse()
    reply = json.load(answer)
    # 409 lease_lost: this took too long, another worker has the job, and the result is to be dropped.
    verdict = "accepted" if answer.status == 200 else reply["code"]
    print(verdict, digest, job["Payload"], flush=True)
