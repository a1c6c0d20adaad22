"""Each caller has a bucket of requests that fills at a steady rate."""

from __future__ import annotations

import pytest

from trsr.serve.middleware import RateLimit


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_ten_seconds_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    assert [limit.seconds_to_wait("a") for _ in range(10)] == [0.0] * 10
    assert limit.seconds_to_wait("a") == pytest.approx(1.0)
    clock.now += 0.6
    assert limit.seconds_to_wait("a") == pytest.approx(0.4)
    clock.now += 0.4
    assert limit.seconds_to_wait("a") == 0.0
    assert limit.seconds_to_wait("a") > 0


def test_callers_do_not_take_from_each_other() -> None:
    limit = RateLimit(6, Clock())
    assert limit.seconds_to_wait("a") == 0.0
    assert limit.seconds_to_wait("a") == pytest.approx(10.0)
    assert limit.seconds_to_wait("b") == 0.0


def test_silence_is_not_saved_up() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    limit.seconds_to_wait("a")
    clock.now += 3600
    assert sum(limit.seconds_to_wait("a") == 0.0 for _ in range(50)) == 10


def test_memory_is_bounded() -> None:
    limit = RateLimit(6, Clock())
    for number in range(12_000):
        limit.seconds_to_wait(str(number))
    assert len(limit._buckets) == 10_000
    assert limit.seconds_to_wait("11999") > 0  # those who asked last are the ones that are kept
