"""Rates that cost an addition: how often something happened in the last minute, without remembering when."""


class Meter:
    """Counts this minute and the last one. The last sixty seconds are this one and a share of that one."""

    __slots__ = ("_before", "_count", "_minute")

    def __init__(self) -> None:
        self._minute = 0
        self._count = 0
        self._before = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count something that happened so many times at this moment of a monotonic clock."""
        minute = int(seconds // 60)
        if minute != self._minute:
            self._roll(minute)
        self._count += times

    def per_minute(self, seconds: float) -> float:
        """How often it happened in the sixty seconds before this moment, evenly spread."""
        minute, into = divmod(seconds, 60)
        if int(minute) != self._minute:
            self._roll(int(minute))
        return self._count + self._before * (1 - into / 60)

    def _roll(self, minute: int) -> None:
        self._before = self._count if minute == self._minute + 1 else 0
        self._minute, self._count = minute, 0
