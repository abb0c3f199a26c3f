"""Works a queue off and ends: no worker around it, just the client.

for number in 1 2 3; do queue-actor enqueue square -p $number -q numbers; done
python script.py
"""

from queue_actor.client import Client, LeaseLost

with Client() as client:
    jobs = client.dequeue("numbers", lease_seconds=30)
    while jobs:
        (job,) = jobs
        try:
            result = job.payload**2
        except TypeError as error:
            client.fail(job, error, retry=False)
        else:
            try:
                client.conclude(job, result)
                print(f"{job.payload} squared is {result}")
            except LeaseLost:
                print(f"{job.payload} took too long, and somebody else has it")
        jobs = client.dequeue("numbers", lease_seconds=30)
