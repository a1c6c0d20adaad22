"""How often one caller may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CALLERS = 10_000
_BURST_SECONDS = 10.0


class RateLimit:
    """A token bucket for each caller: `per_minute` requests on average, ten seconds' worth of them at once.

    Memory is bounded: the callers that were silent longest are forgotten first. To be used by one thread.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60.0
        self._burst = max(1.0, self._rate * _BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, caller: str) -> float:
        """Count a request of `caller`; return 0 if it may go on, else after how many seconds it might."""
        now = self._clock()
        left, then = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate
