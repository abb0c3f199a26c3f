"""Answers that are remembered, so that a command which is repeated under its key is carried out once.

After the draft of the IETF's HTTPAPI group on the Idempotency-Key header field, and Stripe's practice.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from queue_actor.changes import AnswerKind, AnswerRecord
from queue_actor.commands import IdempotencyKey
from queue_actor.errors import KeyReused
from queue_actor.jobs import Now

A = TypeVar("A")

ANSWERED_JOBS_MAX = 1_000_000
"""Jobs in all remembered answers together; the oldest answers go first."""


class Answers(Generic[A]):
    """The answers given under a key, the oldest first."""

    def __init__(self, kind: AnswerKind, *, seconds: float, keys_max: int) -> None:
        self._kind = kind
        self._seconds = seconds
        self._keys_max = keys_max
        self._answers: OrderedDict[tuple[str, str], tuple[float, bytes, int, A]] = OrderedDict()
        self._jobs = 0
        self.records: dict[tuple[str, str], AnswerRecord] = {}  # what changed since `take_records`

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: IdempotencyKey, now: Now) -> A | None:
        """The answer given under this key, or None.

        Raises:
            KeyReused: It was given to another body.
        """
        remembered = self._answers.get((key.scope, key.key))
        if remembered is None:
            return None
        at, fingerprint, _, answer = remembered
        if at + self._seconds <= now.monotonic:
            return None
        if fingerprint != key.fingerprint:
            raise KeyReused("the idempotency key was used with another body", field="Idempotency-Key")
        return answer

    def remember(self, key: IdempotencyKey, answer: A, jobs: int, now: Now) -> None:
        """Keep an answer that speaks of so many jobs."""
        self._drop((key.scope, key.key))
        self._keep(key, answer, jobs, now.monotonic)
        self.records[key.scope, key.key] = AnswerRecord(
            self._kind, key.scope, key.key, key.fingerprint, now.wall, answer
        )
        while self._answers and (
            len(self._answers) > self._keys_max
            or self._jobs > ANSWERED_JOBS_MAX
            or next(iter(self._answers.values()))[0] + self._seconds <= now.monotonic
        ):
            self._drop(next(iter(self._answers)))

    def restore(self, record: AnswerRecord, answer: A, jobs: int, now: Now) -> None:
        """Go on remembering an answer of a former life, no longer than it would have been then."""
        age_seconds = max(0.0, now.wall - record.at)
        if age_seconds < self._seconds:
            self._keep(record.idempotency_key, answer, jobs, now.monotonic - age_seconds)
        else:
            self.records[record.scope, record.key] = AnswerRecord(self._kind, record.scope, record.key)

    def take_records(self) -> Sequence[AnswerRecord]:
        """What was remembered and dropped since the last call."""
        records, self.records = self.records, {}
        return list(records.values())

    def _keep(self, key: IdempotencyKey, answer: A, jobs: int, at: float) -> None:
        self._answers[key.scope, key.key] = (at, key.fingerprint, jobs, answer)
        self._jobs += jobs

    def _drop(self, name: tuple[str, str]) -> None:
        remembered = self._answers.pop(name, None)
        if remembered is not None:
            self._jobs -= remembered[2]
            self.records[name] = AnswerRecord(self._kind, *name)
