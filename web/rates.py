"""How often a token may ask, and how many jobs it may move: token buckets. Pure: time is an argument, in seconds.

A bucket fills with so many units a second and holds those of one second, at least one unit. A request is let pass
while there is a whole unit, and takes what it takes: a batch larger than the bucket passes and leaves a debt, which
has to be made up for before the next. So the rate holds in the long run, whatever the size of a batch, and none is
too large to pass at all.
"""

from collections.abc import Collection
from math import ceil
from typing import Literal

Unit = Literal["requests", "jobs"]

ROUNDING = 1e-9
"""What sums of floating point may be wrong by."""


class Bucket:
    """One limit of one name."""

    __slots__ = ("_at", "_level", "per_second")

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._level = self.capacity
        self._at = now

    @property
    def capacity(self) -> float:
        """The units it holds at most."""
        return max(1.0, self.per_second)

    def level(self, now: float) -> float:
        """The units in it; below 0 it is in debt."""
        self._level = min(self.capacity, self._level + max(0.0, now - self._at) * self.per_second)
        self._at = max(self._at, now)
        return self._level

    def wait_seconds(self, now: float) -> float:
        """How long until a request passes; 0 if one passes now."""
        missing = 1.0 - self.level(now)
        return 0.0 if missing <= ROUNDING else missing / self.per_second

    def take(self, units: float, now: float) -> None:
        """Take what a request has used, into debt if need be."""
        self._level = self.level(now) - units

    def remaining(self, now: float) -> int:
        """Whole units that are left."""
        return max(0, int(self.level(now) + ROUNDING))

    def full_seconds(self, now: float) -> int:
        """How long until it is full, in whole seconds."""
        return ceil((self.capacity - self.level(now)) / self.per_second - ROUNDING)


class Rates:
    """The buckets of all names that are limited. They stay when the file of tokens is read again."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, Unit], Bucket] = {}

    def bucket(self, name: str, unit: Unit, per_second: float, now: float) -> Bucket:
        """The bucket of a name, full if it is a new one; its rate is what it is now."""
        bucket = self._buckets.get((name, unit))
        if bucket is None:
            bucket = self._buckets[name, unit] = Bucket(per_second, now)
        elif bucket.per_second != per_second:
            bucket.level(now)  # up to now it filled at the former rate
            bucket.per_second = per_second
        return bucket

    def keep(self, names: Collection[str]) -> None:
        """Drop the buckets of all other names."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if key[0] in names}


def policy_field(buckets: dict[Unit, Bucket]) -> str:
    """The field RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers: how much in which window."""
    return ", ".join(
        f'"{unit}";q={ceil(bucket.capacity)};w={ceil(bucket.capacity / bucket.per_second)}'
        for unit, bucket in buckets.items()
    )


def rate_field(buckets: dict[Unit, Bucket], now: float) -> str:
    """The field RateLimit of the same draft: how much is left, and in how many seconds all of it is there again."""
    return ", ".join(
        f'"{unit}";r={bucket.remaining(now)};t={bucket.full_seconds(now)}' for unit, bucket in buckets.items()
    )
