"""Metrics for Prometheus: requests counted here, and counts of the other parts, read on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Facts = Mapping[str, float]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Metrics:
    """The metrics of one server.

    Args:
        facts: Returns what the queue, the store and the updater count; names in `_total` only ever grow.
    """

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trsr_requests", "Answered requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "trsr_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_FactsCollector(facts))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the template, so that there are few of them."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _FactsCollector(Collector):
    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        return []  # else registering would read the facts before the server has started

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self._facts().items()):
            words = name.removesuffix("_total").replace("_", " ")
            if name.endswith("_total"):
                yield CounterMetricFamily(f"trsr_{name}", f"Counted so far: {words}.", value)
            else:
                yield GaugeMetricFamily(f"trsr_{name}", f"Now: {words}.", value)
