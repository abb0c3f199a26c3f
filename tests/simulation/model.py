"""The queue, told naively: dicts of facts in plain lists, and a scan for every question.

It says what is right, so that `test_model.py` can hold the state machine to it. It shares no code with it: of
`queue_actor` only the commands come in, which are plain data, and every rule is written again here, as its reader
would look it up in the contract. Replies are what a caller could print: dicts, lists, words. Times are on the two
clocks of `Now`.

What the model does not say itself is how a pause is jittered: it is told what was drawn, and checks the bounds. Nor
does it know lease tokens, which are opaque to everybody: whoever runs it says which fence a token was given out with.
"""

from collections.abc import Callable, Iterable
from math import floor
from typing import Any

import msgspec

from queue_actor import commands as c
from queue_actor.jobs import Now
from queue_actor.settings import Settings

Facts = dict[str, Any]
Key = tuple[str, int]

FINISHED = ("concluded", "dead", "cancelled")
WAITING = ("scheduled", "queued")
STATES = ("scheduled", "queued", "in_progress", *FINISHED)
METERED = ("enqueue", "dequeue", "conclude", "fail", "release", "stale", "dead")
CONSUMERS_SECONDS = 600
ROUNDING = 1e-6
"""Seconds that a sum of floats may be off."""


class Refused(Exception):
    """A refusal: its code, and the field it names."""

    def __init__(self, code: str, field: str | None = None) -> None:
        super().__init__(code, field)
        self.code = code
        self.field = field


class Model:
    """All queues."""

    def __init__(
        self, settings: Settings, *, bulk_jobs_max: int, scanned_ids_max: int, history_attempts_max: int
    ) -> None:
        self.settings = settings
        self.bulk_jobs_max = bulk_jobs_max
        self.scanned_ids_max = scanned_ids_max
        self.history_attempts_max = history_attempts_max
        self.now = Now(0.0, 0.0)
        self.queues: dict[str, Facts] = {}
        self.revision = 0
        self.services = 0
        self.first_id = 1  # of the next queue that is made
        self.first_fence = 1  # at least
        self.lease_ends: dict[Key, float] = {}  # monotonic
        self.run_ends: dict[Key, float] = {}  # monotonic; of attempts that may not last for ever
        self.kept_until: dict[Key, float] = {}  # monotonic; of finished jobs
        self.started: set[Key] = set()  # jobs handed out since they were enqueued, replaced or redriven
        self.answers: dict[str, list[Facts]] = {"enqueue": [], "dequeue": []}
        self.fences: dict[str, tuple[str, int, int]] = {}  # token -> queue, id, fence
        self.drawn: dict[Key, list[float]] = {}  # until when jobs were put off by a jittered pause
        self.transitions: set[tuple[str, str, str]] = set()  # all that were ever made

    def apply(self, command: c.Command[Any], now: Now, drawn: dict[Key, list[float]]) -> Any:
        """Carry out a command.

        Raises:
            Refused: The refusal.
        """
        self.now, self.drawn = now, drawn
        verbs: dict[Any, Callable[[Any], Any]] = {
            c.Enqueue: self.enqueue,
            c.Dequeue: self.dequeue,
            c.Conclude: self.each_claim(self.conclude),
            c.Fail: self.each_claim(self.fail),
            c.Extend: self.each_claim(self.extend),
            c.Release: self.each_claim(self.release),
            c.Cancel: self.each_id(self.cancel),
            c.Redrive: self.each_id(self.redrive),
            c.RunNow: self.each_id(self.run_now),
            c.TakeBack: self.each_id(self.take_back),
            c.Forget: self.each_id(self.forget_finished),
            c.Bulk: self.bulk,
            c.SetPolicy: self.set_policy,
            c.Pause: self.pause,
            c.DeleteQueue: self.delete_queue,
            c.ReadJob: lambda read: dict(self.find(read.queue, read.id)),
            c.ReadPosition: self.read_position,
            c.ReadQueue: lambda read: self.view(read.queue),
            c.ListQueues: self.list_queues,
            c.Search: self.search,
            c.Sweep: self.sweep,
        }
        return verbs[type(command)](command)

    # --- looking

    def all_jobs(self, *states: str) -> list[Facts]:
        return [job for queue in self.queues.values() for job in queue["jobs"] if not states or job["state"] in states]

    def jobs_of(self, queue: Facts, *states: str) -> list[Facts]:
        return [job for job in queue["jobs"] if job["state"] in states]

    def in_order(self, queue: Facts) -> list[Facts]:
        """The queued jobs, the next one to be handed out first."""
        return sorted(self.jobs_of(queue, "queued"), key=lambda job: (-job["priority"], job["place"]))

    def find(self, name: str, id_: int) -> Facts:
        queue = self.queues.get(name)
        for job in queue["jobs"] if queue else ():
            if job["id"] == id_:
                found: Facts = job
                return found
        raise Refused("forgotten" if queue and 1 <= id_ < queue["next_id"] else "unknown_job", "id")

    def existing(self, name: str) -> Facts:
        if name not in self.queues:
            raise Refused("unknown_queue", "queue")
        return self.queues[name]

    def holder(self, queue: Facts, unique_key: str | None) -> Facts | None:
        """The job that has a unique key."""
        for job in queue["jobs"]:
            options = job["options"]
            given_back = options["unique_until"] == "started" and (job["queue"], job["id"]) in self.started
            ended = job["state"] in FINISHED
            if unique_key is not None and options["unique_key"] == unique_key and not given_back and not ended:
                held: Facts = job
                return held
        return None

    def kept_bytes(self) -> int:
        """Payloads, results, progress, and the characters of errors."""
        texts = [job[name] for job in self.all_jobs() for name in ("payload", "result", "progress")]
        for job in self.all_jobs():
            for attempt in job["history"]:
                if attempt["error"] is not None:
                    texts += [attempt["error"]["type"], attempt["error"]["message"]]
        return sum(len(text) for text in texts if text is not None)

    def available(self, name: str) -> bool:
        """Whether a dequeue of this queue would be given a job."""
        queue = self.queues.get(name)
        if queue is None or queue["paused"]:
            return False
        most = queue["policy"]["in_progress_max"]
        if most is not None and len(self.jobs_of(queue, "in_progress")) >= most:
            return False
        return any(not self.is_expired(job) for job in self.jobs_of(queue, "queued"))

    def is_expired(self, job: Facts) -> bool:
        return job["expires_at"] is not None and job["expires_at"] <= self.now.wall

    # --- moving

    def move(self, job: Facts, verb: str, to: str, **facts: Any) -> Facts:
        self.transitions.add((job["state"], verb, to))
        self.revision += 1
        job.update(facts, state=to, revision=self.revision)
        self.count(job["queue"], verb)
        return job

    def count(self, name: str, verb: str) -> None:
        self.queues[name]["events"].append((verb, self.now.monotonic))

    def queue_up(self, job: Facts, verb: str, **facts: Any) -> Facts:
        """Queue a job at the back."""
        queue = self.queues[job["queue"]]
        queue["next_place"] += 1
        return self.move(job, verb, "queued", place=queue["next_place"] - 1, ready_at=self.now.wall, **facts)

    def put_off(self, job: Facts, verb: str, until: float | None, **facts: Any) -> Facts:
        """Let a job whose attempt has ended wait until a moment, or not at all."""
        if self.is_expired(job):
            return self.finish(job, verb, "dead", reason="expired", **facts)
        if until is None or until <= self.now.wall:
            return self.queue_up(job, verb, **facts)
        return self.move(job, verb, "scheduled", not_before=until, **facts)

    def give_back(self, job: Facts, verb: str, **facts: Any) -> Facts:
        """Return a job to its place."""
        if job["cancel_requested"]:
            return self.finish(job, verb, "cancelled", **facts)
        if self.is_expired(job):
            return self.finish(job, verb, "dead", reason="expired", **facts)
        return self.move(job, verb, "queued", **facts)

    def finish(self, job: Facts, verb: str, to: str, **facts: Any) -> Facts:
        kind = "dead_retention_seconds" if to == "dead" else "retention_seconds"
        seconds = self.queues[job["queue"]]["policy"][kind]
        if seconds is None:
            seconds = getattr(self.settings, kind)
        self.kept_until[job["queue"], job["id"]] = self.now.monotonic + seconds
        if to == "dead":
            self.count(job["queue"], "dead")
        return self.move(job, verb, to, finished_at=self.now.wall, kept_until=self.now.wall + seconds, **facts)

    def forget(self, job: Facts) -> Facts:
        self.revision += 1
        self.queues[job["queue"]]["jobs"].remove(job)
        self.kept_until.pop((job["queue"], job["id"]), None)
        self.started.discard((job["queue"], job["id"]))
        return job

    def end_attempt(self, job: Facts, outcome: str, error: Facts | None = None) -> Facts:
        del self.lease_ends[job["queue"], job["id"]]
        self.run_ends.pop((job["queue"], job["id"]), None)
        attempt = {
            "fence": job["fence"],
            "consumer": job["consumer"],
            "started_at": job["started_at"],
            "ended_at": self.now.wall,
            "outcome": outcome,
            "error": error,
        }
        history = (*job["history"], attempt)
        return {"history": history[-self.history_attempts_max :], "lease_expires_at": None}

    def pause_until(self, job: Facts, tries: int) -> float | None:
        """Until when the retry policy makes a job wait after so many tries without success."""
        retry = job["options"]["retry"] or self.queues[job["queue"]]["policy"]["retry"]
        seconds = retry["base_seconds"]
        if retry["kind"] == "exponential":
            seconds = min(seconds * retry["factor"] ** (tries - 1), retry["cap_seconds"])
        if retry["jitter"] == "none":
            return float(self.now.wall + seconds)
        until = self.drawn[job["queue"], job["id"]].pop(0)
        if not self.now.wall <= until <= self.now.wall + seconds + ROUNDING:
            raise AssertionError(f"a pause of {until - self.now.wall} s was drawn, of at most {seconds} s")
        return until

    def is_spent(self, job: Facts, tries: int) -> bool:
        most = job["options"]["max_attempts"]
        if most is None:
            most = self.queues[job["queue"]]["policy"]["max_attempts"]
        return most is not None and tries >= most

    # --- answers under a key

    def answered(self, kind: str, key: c.IdempotencyKey | None) -> Any:
        for answer in self.answers[kind] if key is not None else ():
            if key is not None and (answer["scope"], answer["key"]) == (key.scope, key.key):
                if answer["at"] + self.settings.idempotency_seconds <= self.now.monotonic:
                    return None
                if answer["fingerprint"] != key.fingerprint:
                    raise Refused("key_reused", "Idempotency-Key")
                return answer["reply"]
        return None

    def remember(self, kind: str, key: c.IdempotencyKey | None, reply: Any) -> None:
        if key is None:
            return
        others = [a for a in self.answers[kind] if (a["scope"], a["key"]) != (key.scope, key.key)]
        facts = {"scope": key.scope, "key": key.key, "fingerprint": key.fingerprint, "at": self.now.monotonic}
        most = self.settings.idempotency_keys_max
        self.answers[kind] = [*others, {**facts, "reply": reply}][-most:] if most else []

    # --- queues

    def check_new_queue(self, name: str) -> None:
        if name not in self.queues and len(self.queues) >= self.settings.queues_max:
            raise Refused("too_many_queues", "queue")

    def open_queue(self, name: str) -> Facts:
        if name not in self.queues:
            self.queues[name] = {
                "name": name,
                "jobs": [],  # by id
                "policy": first_policy(name),
                "declared": False,
                "paused": False,
                "next_id": self.first_id,
                "next_place": 1,
                "next_fence": max(self.first_fence, floor(self.now.wall * 1_000_000)),
                "dequeues": 0,
                "served": 0,
                "seen": {},
                "events": [],
            }
        return self.queues[name]

    def set_policy(self, command: c.SetPolicy) -> Facts:
        self.check_new_queue(command.queue)
        queue = self.open_queue(command.queue)
        queue["policy"] = msgspec.to_builtins(command.policy)
        queue["declared"] = True
        if command.paused is not None:
            queue["paused"] = command.paused
        return self.view(command.queue)

    def pause(self, command: c.Pause) -> Facts:
        self.existing(command.queue)["paused"] = command.paused
        return self.view(command.queue)

    def delete_queue(self, command: c.DeleteQueue) -> Facts:
        queue = self.existing(command.queue)
        if queue["jobs"]:
            raise Refused("queue_not_empty", "queue")
        del self.queues[command.queue]
        self.first_id = max(self.first_id, queue["next_id"])
        self.first_fence = max(self.first_fence, queue["next_fence"])
        return self.view(command.queue)

    def view(self, name: str) -> Facts:
        queue = self.queues.get(name)
        if queue is None:
            queue = {"jobs": [], "policy": first_policy(name), "declared": False, "paused": False, "next_id": 1}
            queue.update(events=[], seen={})
        ready = min(self.jobs_of(queue, "queued"), key=lambda job: job["place"], default=None)
        minute, into = divmod(self.now.monotonic, 60)
        rates = {}
        for verb in METERED:
            minutes = [at // 60 for what, at in queue["events"] if what == verb]
            rates[verb] = minutes.count(minute) + minutes.count(minute - 1) * (1 - into / 60)
        seen = {name: self.now.monotonic - at for name, at in queue["seen"].items()}
        return {
            "name": name,
            "exists": name in self.queues,
            "counts": {state: len(self.jobs_of(queue, state)) for state in STATES},
            "paused": queue["paused"],
            "policy": queue["policy"],
            "declared": queue["declared"],
            "oldest_age_seconds": None if ready is None else max(0.0, self.now.wall - ready["ready_at"]),
            "per_minute": rates,
            "consumers": {name: seconds for name, seconds in seen.items() if seconds <= CONSUMERS_SECONDS},
            "last_id": queue["next_id"] - 1,
        }

    def list_queues(self, command: c.ListQueues) -> Facts:
        names = sorted(name for name in self.queues if name > command.after and name.startswith(command.prefix))
        page, rest = names[: command.limit], names[command.limit :]
        return {"queues": [self.view(name) for name in page], "next_after": page[-1] if rest else None}

    # --- enqueue

    def enqueue(self, command: c.Enqueue) -> Facts:
        answer = self.answered("enqueue", command.key)
        if answer is not None:
            return {"jobs": answer}
        for n, new in enumerate(command.jobs):
            if new.not_before is not None and new.not_before > self.now.wall + self.settings.delay_seconds_max:
                raise Refused("invalid", f"jobs[{n}].not_before")
        if command.queue not in self.queues:
            if self.settings.queues == "declared" and command.queue != "default":
                raise Refused("unknown_queue", "queue")
            self.check_new_queue(command.queue)
        self.check_room(command)
        queue = self.open_queue(command.queue)
        reply = [answer_of(self.enqueue_one, queue, new) for new in command.jobs]
        self.remember("enqueue", command.key, reply)
        return {"jobs": reply}

    def check_room(self, command: c.Enqueue) -> None:
        """Refuse what would make more jobs wait, or more bytes be kept, than allowed."""
        queue: Facts = self.queues.get(command.queue, {"jobs": [], "policy": first_policy(command.queue)})
        made = grown = 0
        newest: dict[str, int] = {}  # the payload bytes under each unique key, as the batch goes on
        for new in command.jobs:
            key, size = new.options.unique_key, len(new.payload or b"")
            held = self.holder(queue, key)
            if key is None or (held is None and key not in newest):
                made, grown = made + 1, grown + size
            elif new.on_existing == "replace" and (held is None or held["state"] in WAITING):
                grown += size - newest.get(key, 0 if held is None else len(held["payload"] or b""))
            else:
                continue
            if key is not None:
                newest[key] = size
        self.check_waiting(queue, made)
        if grown > 0 and self.kept_bytes() + grown > self.settings.memory_bytes_max:
            raise Refused("memory_full")

    def check_waiting(self, queue: Facts, more: int) -> None:
        if more and len(self.all_jobs(*WAITING, "in_progress")) + more > self.settings.queued_jobs_max:
            raise Refused("queue_full")
        most = queue["policy"]["queued_jobs_max"]
        if more and most is not None and len(self.jobs_of(queue, *WAITING)) + more > most:
            raise Refused("queue_full")

    def enqueue_one(self, queue: Facts, new: c.NewJob) -> Facts:
        options = msgspec.to_builtins(new.options)
        not_before = self.now.wall + new.delay_seconds if new.not_before is None else new.not_before
        ttl = queue["policy"]["ttl_seconds"] if new.ttl_seconds is None else new.ttl_seconds
        content = {
            "type": new.type,
            "payload": new.payload,
            "priority": new.priority,
            "options": options,
            "not_before": not_before if not_before > self.now.wall else None,
            "expires_at": None if ttl is None else self.now.wall + ttl,
        }
        held = self.holder(queue, options["unique_key"])
        if held is not None:
            if new.on_existing == "refuse":
                raise Refused("unique_key_taken", "unique_key")
            if new.on_existing == "replace" and held["state"] in WAITING:
                self.replace(held, content)
            return {"id": held["id"], "state": held["state"], "existing": True}
        job = {**NEW_JOB, **content, "queue": queue["name"], "id": queue["next_id"], "created_at": self.now.wall}
        queue["next_id"] += 1
        queue["jobs"].append(job)
        self.revision += 1
        job["revision"] = self.revision
        self.count(queue["name"], "enqueue")
        if job["not_before"] is None:
            job.update(state="queued", place=queue["next_place"], ready_at=self.now.wall)
            queue["next_place"] += 1
        return {"id": job["id"], "state": job["state"]}

    def replace(self, job: Facts, content: Facts) -> None:
        self.started.discard((job["queue"], job["id"]))
        if content["not_before"] is not None:
            self.move(job, "replace", "scheduled", **content)
        elif job["state"] == "scheduled":
            self.queue_up(job, "replace", **content)
        else:
            self.move(job, "replace", "queued", **content)

    # --- dequeue

    def dequeue(self, command: c.Dequeue) -> Facts:
        answer = self.answered("dequeue", command.key)
        if answer is not None:
            leased = {(job["queue"], job["id"], job["fence"]): job for job in self.all_jobs("in_progress")}
            return {"leases": [dict(leased[given]) for given in answer if given in leased], "repeated": True}
        count = command.count
        if command.holder is not None and command.holder_in_progress_max is not None:
            held = [job for job in self.all_jobs("in_progress") if job["holder"] == command.holder]
            count = min(count, command.holder_in_progress_max - len(held))
            if count <= 0:
                raise Refused("in_progress_limit", None)
        leases: list[Facts] = []
        full: list[Facts] = []  # the job that had no room in the reply, if there was one
        queues = self.named(command.queue)
        if command.order == "listed" or command.queue in self.queues:  # of one queue there is no order
            for queue in queues:
                self.take(queue, command, count - len(leases), leases, full)
        else:
            queues = sorted(queues, key=lambda queue: int(queue["served"]))
            before = -1
            while before < len(leases) < count:
                before = len(leases)
                for queue in queues:
                    self.take(queue, command, min(1, count - len(leases)), leases, full)
        if leases:
            self.remember("dequeue", command.key, [(job["queue"], job["id"], job["fence"]) for job in leases])
        return {"leases": leases, "repeated": False}

    def named(self, names: str | tuple[str, ...]) -> list[Facts]:
        if isinstance(names, tuple):
            return [self.queues[name] for name in dict.fromkeys(names) if name in self.queues]
        if names in self.queues:
            return [self.queues[names]]
        if not names.endswith("*"):
            return []
        queues = [self.queues[name] for name in sorted(self.queues) if name.startswith(names[:-1])]
        return [queue for queue in queues if self.jobs_of(queue, "queued")]

    def take(self, queue: Facts, command: c.Dequeue, count: int, leases: list[Facts], full: list[Facts]) -> None:
        """Hand out up to so many jobs of one queue."""
        if command.consumer is not None:
            queue["seen"].pop(command.consumer, None)
            queue["seen"][command.consumer] = self.now.monotonic
        patience = count + self.settings.sweep_slice
        while count > 0 and patience > 0 and not queue["paused"]:
            policy = queue["policy"]
            most = policy["in_progress_max"]
            if most is not None and len(self.jobs_of(queue, "in_progress")) >= most:
                return
            order = self.in_order(queue)
            if policy["oldest_every"] and (queue["dequeues"] + 1) % policy["oldest_every"] == 0:
                order.sort(key=lambda job: int(job["place"]))
            if not order:
                return
            job = order[0]
            if self.is_expired(job):
                self.finish(job, "expire", "dead", reason="expired")
                patience -= 1
                continue
            taken = sum(len(lease["payload"] or b"") for lease in leases)
            if leases and taken + len(job["payload"] or b"") > self.settings.reply_bytes_max:
                full.append(job)
            if full:
                return
            leases.append(dict(self.lease(queue, job, command)))
            count -= 1

    def lease(self, queue: Facts, job: Facts, command: c.Dequeue) -> Facts:
        key, policy = (job["queue"], job["id"]), queue["policy"]
        asked = (command.lease_seconds, job["options"]["lease_seconds"], policy["lease_seconds"])
        seconds = next((one for one in asked if one is not None), self.settings.lease_seconds)
        if policy["run_seconds_max"] is not None:
            seconds = min(seconds, policy["run_seconds_max"])
            self.run_ends[key] = self.now.monotonic + policy["run_seconds_max"]
        self.lease_ends[key] = self.now.monotonic + seconds
        self.started.add(key)
        self.services += 1
        queue["served"] = self.services
        queue["dequeues"] += 1
        queue["next_fence"] += 1
        return self.move(
            job,
            "dequeue",
            "in_progress",
            attempts=job["attempts"] + 1,
            consumer=command.consumer,
            holder=command.holder,
            fence=queue["next_fence"] - 1,
            lease_seconds=seconds,
            lease_expires_at=self.now.wall + seconds,
            started_at=self.now.wall,
            key_freed=job["options"]["unique_until"] == "started",
        )

    # --- the holder's verbs

    def each_claim(self, verb: Callable[[Any], Facts]) -> Callable[[Any], Facts]:
        return lambda command: {"jobs": [answer_of(verb, claim) for claim in command.claims]}

    def held(self, claim: c.Claim, outcome: str | None) -> tuple[Facts, bool]:
        """The job that the claim holds, and whether it has ended so already."""
        job = self.find(claim.queue, claim.id)
        leased = job["state"] == "in_progress"
        if claim.token is not None:
            queue, id_, fence = self.fences.get(claim.token, ("", 0, 0))
            mine = (queue, id_) == (claim.queue, claim.id)
            if leased and mine and job["fence"] == fence:
                return job, False
            if mine and [fence, outcome] in [[attempt["fence"], attempt["outcome"]] for attempt in job["history"]]:
                return job, True
            raise Refused("lease_lost", "token")
        again = job["state"] == "concluded" and outcome == "concluded"
        if not leased and not again:
            raise Refused("not_in_progress")
        if job["consumer"] not in {None, claim.consumer}:
            raise Refused("other_consumer", "consumer")
        return job, again

    def conclude(self, claim: c.Claim) -> Facts:
        job, again = self.held(claim, "concluded")
        if again:
            return job
        result = getattr(claim, "result", None)
        return self.finish(job, "conclude", "concluded", result=result, **self.end_attempt(job, "concluded"))

    def fail(self, claim: c.FailClaim) -> Facts:
        job, again = self.held(claim, "failed")
        if again:
            return job
        facts = self.end_attempt(job, "failed", msgspec.to_builtins(claim.error))
        fails = facts["fails"] = job["fails"] + 1
        if job["cancel_requested"]:
            return self.finish(job, "fail", "cancelled", **facts)
        if not claim.retry:
            return self.finish(job, "fail", "dead", reason="killed", **facts)
        if self.is_spent(job, fails + job["stales"]):
            return self.finish(job, "fail", "dead", reason="failed", **facts)
        if claim.retry_after_seconds is not None:
            return self.put_off(job, "fail", self.now.wall + claim.retry_after_seconds, **facts)
        until = None if self.is_expired(job) else self.pause_until(job, fails)
        return self.put_off(job, "fail", until, **facts)

    def extend(self, claim: c.ExtendClaim) -> Facts:
        job, _ = self.held(claim, None)
        key = (job["queue"], job["id"])
        seconds = job["lease_seconds"] if claim.lease_seconds is None else claim.lease_seconds
        if key in self.run_ends and self.now.monotonic + seconds > self.run_ends[key]:
            raise Refused("run_too_long", "lease_seconds")
        self.lease_ends[key] = self.now.monotonic + seconds
        progress = job["progress"] if claim.progress is None else claim.progress
        facts = {"lease_seconds": seconds, "lease_expires_at": self.now.wall + seconds, "progress": progress}
        return self.move(job, "extend", "in_progress", **facts)

    def release(self, claim: c.ReleaseClaim) -> Facts:
        job, again = self.held(claim, "released")
        return job if again else self.release_held(job, claim.delay_seconds)

    def release_held(self, job: Facts, delay_seconds: float) -> Facts:
        facts = self.end_attempt(job, "released")
        if delay_seconds > 0 and not job["cancel_requested"]:
            return self.put_off(job, "release", self.now.wall + delay_seconds, **facts)
        return self.give_back(job, "release", **facts)

    # --- the operator's verbs

    def each_id(self, verb: Callable[[Facts], Facts]) -> Callable[[Any], Facts]:
        return lambda command: {
            "jobs": [answer_of(lambda id_: verb(self.find(command.queue, id_)), id_) for id_ in command.ids]
        }

    def cancel(self, job: Facts) -> Facts:
        if job["state"] in ("concluded", "dead"):
            raise Refused("already_finished")
        if job["state"] == "cancelled" or job["cancel_requested"]:
            return job
        if job["state"] == "in_progress":
            return self.move(job, "cancel", "in_progress", cancel_requested=True)
        return self.finish(job, "cancel", "cancelled", cancel_requested=True)

    def redrive(self, job: Facts, not_before: float | None = None) -> Facts:
        if job["state"] not in FINISHED:
            raise Refused("not_finished")
        if job["state"] == "concluded":
            raise Refused("already_finished")
        if self.holder(self.queues[job["queue"]], job["options"]["unique_key"]) is not None:
            raise Refused("unique_key_taken")
        self.check_waiting(self.queues[job["queue"]], 1)
        del self.kept_until[job["queue"], job["id"]]
        self.started.discard((job["queue"], job["id"]))
        facts: Facts = {"fails": 0, "stales": 0, "reason": None, "finished_at": None, "cancel_requested": False}
        facts |= {"expires_at": None, "not_before": not_before, "kept_until": None, "key_freed": False}
        if not_before is None:
            return self.queue_up(job, "redrive", **facts)
        return self.move(job, "redrive", "scheduled", **facts)

    def run_now(self, job: Facts) -> Facts:
        if job["state"] not in WAITING:
            raise Refused("not_waiting")
        return job if job["state"] == "queued" else self.queue_up(job, "run", not_before=None)

    def take_back(self, job: Facts) -> Facts:
        if job["state"] != "in_progress":
            raise Refused("not_in_progress")
        return self.release_held(job, 0)

    def forget_finished(self, job: Facts) -> Facts:
        if job["state"] not in FINISHED:
            raise Refused("not_finished")
        return self.forget(job)

    def matching(self, job: Facts, where: c.JobFilter) -> bool:
        errors = [attempt["error"] for attempt in job["history"] if attempt["error"] is not None]
        said = [errors[-1]["type"], errors[-1]["message"]] if errors else []
        return (
            (not where.states or job["state"] in where.states)
            and where.type in {None, job["type"]}
            and (where.consumer is None or where.consumer == job["consumer"])
            and (where.since is None or where.since <= job["created_at"])
            and (where.error is None or any(where.error in text for text in said))
        )

    def bulk(self, command: c.Bulk) -> Facts:
        queue = self.existing(command.queue)
        able = {"redrive": ("dead", "cancelled"), "purge": (*WAITING, *FINISHED), "release": ("in_progress",)}
        able["cancel"] = (*WAITING, "in_progress")
        ids = [job["id"] for job in queue["jobs"]]
        first = max([command.after_id + 1, min(ids, default=queue["next_id"])])
        last = queue["next_id"] - 1 if command.until_id is None else min(queue["next_id"] - 1, command.until_id)
        spread = self.now.wall if command.spread_from is None else command.spread_from
        rate = command.per_second if command.verb == "redrive" else None
        done = refused = 0
        looked_at = first - 1
        while looked_at < min(last, first - 1 + self.scanned_ids_max) and done + refused < self.bulk_jobs_max:
            looked_at += 1
            for job in [job for job in queue["jobs"] if job["id"] == looked_at]:
                if job["state"] not in able[command.verb] or not self.matching(job, command.where):
                    continue
                try:
                    if command.dry_run:
                        pass
                    elif command.verb == "redrive":
                        self.redrive(job, None if rate is None else spread + done / rate)
                    elif command.verb == "purge":
                        self.forget(job)
                    elif command.verb == "cancel":
                        self.cancel(job)
                    else:
                        self.take_back(job)
                    done += 1
                except Refused:
                    refused += 1
        if command.per_second is not None:
            spread += done / command.per_second
        next_after = looked_at if looked_at < last else None
        return {"count": done, "refused": refused, "next_after": next_after, "spread_to": spread}

    # --- reads

    def read_position(self, command: c.ReadPosition) -> Facts:
        job = self.find(command.queue, command.id)
        order = [other["id"] for other in self.in_order(self.queues[command.queue])]
        return {"ahead": order.index(job["id"]) if job["state"] == "queued" else None}

    def search(self, command: c.Search) -> Facts:
        queue = self.queues.get(command.queue)
        if queue is None:
            return {"jobs": [], "next_after": None}
        lowest = min((job["id"] for job in queue["jobs"]), default=queue["next_id"])
        ids = list(range(lowest, queue["next_id"]))
        if command.newest_first:
            ids.reverse()
        if command.after_id is not None:
            ids = [id_ for id_ in ids if (id_ < command.after_id) == command.newest_first and id_ != command.after_id]
        found: list[Facts] = []
        for looked_at in ids[: self.scanned_ids_max]:
            found += [job for job in queue["jobs"] if job["id"] == looked_at and self.matching(job, command.where)]
            if len(found) == command.limit or looked_at == ids[: self.scanned_ids_max][-1]:
                return {"jobs": found, "next_after": None if looked_at == ids[-1] else looked_at}
        return {"jobs": [], "next_after": None}

    # --- time

    def sweep(self, _command: c.Sweep) -> Facts:
        limit = self.settings.sweep_slice
        monotonic, wall = self.now.monotonic, self.now.wall
        stale = self.first(limit, self.all_jobs("in_progress"), self.lease_end, monotonic)
        for job in stale:
            self.return_stale(job)
        due = self.first(limit, self.all_jobs("scheduled"), lambda job: job["not_before"], wall)
        for job in due:
            self.queue_up(job, "due")
        mortal = [job for job in self.all_jobs(*WAITING) if job["expires_at"] is not None]
        expired = self.first(limit, mortal, lambda job: job["expires_at"], wall)
        for job in expired:
            self.finish(job, "expire", "dead", reason="expired")
        forgotten: list[list[Facts]] = []
        for age in (monotonic, None):
            for states, most in (
                (("concluded", "cancelled"), self.settings.retention_jobs),
                (("dead",), self.settings.dead_retention_jobs),
            ):
                jobs = self.all_jobs(*states)
                over = max(0, len(jobs) - most)
                number = limit if age is not None else min(limit, over)
                gone = self.first(number, jobs, self.kept_end, age)
                for job in gone:
                    self.forget(job)
                forgotten.append(gone)
        return {
            "stale": len(stale),
            "due": len(due),
            "expired": len(expired),
            "forgotten": sum(len(gone) for gone in forgotten),
            "dead_lost": len(forgotten[-1]),
            "over": 0,
            "dead_over": 0,
            "more": any(len(moved) == limit for moved in (stale, due, expired, *forgotten)),
            "next_due_seconds": self.next_due_seconds(),
        }

    def first(
        self, number: int, jobs: Iterable[Facts], deadline: Callable[[Facts], float], moment: float | None
    ) -> list[Facts]:
        """So many jobs whose deadline has come by a moment (None: whatever it is), the earliest first."""
        due = [job for job in jobs if moment is None or deadline(job) <= moment]
        return sorted(due, key=lambda job: (deadline(job), job["queue"], job["id"]))[:number]

    def lease_end(self, job: Facts) -> float:
        return self.lease_ends[job["queue"], job["id"]]

    def kept_end(self, job: Facts) -> float:
        return self.kept_until[job["queue"], job["id"]]

    def return_stale(self, job: Facts) -> None:
        facts = self.end_attempt(job, "stale")
        stales = facts["stales"] = job["stales"] + 1
        most = self.queues[job["queue"]]["policy"]["max_stale"]
        spent = (most is not None and stales >= most) or self.is_spent(job, job["fails"] + stales)
        if job["cancel_requested"]:
            self.finish(job, "stale", "cancelled", **facts)
        elif spent:
            self.finish(job, "stale", "dead", reason="stale", **facts)
        elif stales == 1:
            self.give_back(job, "stale", **facts)
        else:
            until = None if self.is_expired(job) else self.pause_until(job, stales - 1)
            self.put_off(job, "stale", until, **facts)

    def next_due_seconds(self) -> float | None:
        seconds = [self.lease_end(job) - self.now.monotonic for job in self.all_jobs("in_progress")]
        seconds += [job["not_before"] - self.now.wall for job in self.all_jobs("scheduled")]
        expiries = [job["expires_at"] for job in self.all_jobs(*WAITING)]
        seconds += [at - self.now.wall for at in expiries if at is not None]
        return max(0.0, min(seconds)) if seconds else None


def answer_of(verb: Callable[..., Facts], *subject: Any) -> Any:
    """One answer of many: a copy of the job as it is now, or the refusal."""
    try:
        return dict(verb(*subject))
    except Refused as refusal:
        return refusal.code, refusal.field


def first_policy(name: str) -> Facts:
    """The policy of a queue that was never given one."""
    limits: Facts = {"max_attempts": None, "max_stale": None}
    return {**NO_POLICY, **(limits if name == "default" else {"max_attempts": 25, "max_stale": 5})}


NO_POLICY: Facts = {
    "retry": {
        "kind": "exponential",
        "base_seconds": 1.0,
        "factor": 2.0,
        "cap_seconds": 3_600.0,
        "jitter": "full",
    },
    "lease_seconds": None,
    "ttl_seconds": None,
    "queued_jobs_max": None,
    "in_progress_max": None,
    "run_seconds_max": None,
    "oldest_every": 0,
    "retention_seconds": None,
    "dead_retention_seconds": None,
}

NEW_JOB: Facts = {
    "state": "scheduled",
    "place": 0,
    "ready_at": 0.0,
    "attempts": 0,
    "fails": 0,
    "stales": 0,
    "consumer": None,
    "holder": None,
    "fence": 0,
    "lease_seconds": 0.0,
    "lease_expires_at": None,
    "started_at": None,
    "finished_at": None,
    "kept_until": None,
    "key_freed": False,
    "cancel_requested": False,
    "progress": None,
    "result": None,
    "reason": None,
    "history": (),
}
