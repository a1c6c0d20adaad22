"""Measures how fast engines write summaries: many users in flight, against one prompt at a time.

The prompts are real ones: recurrent summaries of synthetic news readers, by the product's own templates and
defaults, written by `summarize` itself into an empty store. The naive way runs in the same process on the same
engine: the same users one after the other, so that one prompt is in flight; a few users are timed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import InputError
from trsr.llm.base import TextGenerator
from trsr.llm.engines import (
    REQUIRED_PACKAGES,
    FakeEngine,
    LlamaCppEngine,
    TransformersEngine,
    open_generator,
)
from trsr.pipeline.workbench import make_summariser
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.run import Summariser, SummaryProgress, summarize
from trsr.summarize.store import SummaryStore
from trsr.types import History

LOCAL_ENGINES = ("transformers", "llamacpp")
BLOCK_SIZE = 5


@dataclass(frozen=True)
class Workload:
    """Histories of equal length, so that every user is in flight to the end."""

    summariser: Summariser
    histories: list[History]


def installed_engines() -> list[str]:
    """Return the local engines whose package is installed."""
    needs = {kind: REQUIRED_PACKAGES[kind] for kind in LOCAL_ENGINES}
    return [kind for kind, need in needs.items() if need and importlib.util.find_spec(need[0])]


def open_local(kind: str, model: str) -> TextGenerator:
    """Start a local engine with its defaults.

    Raises:
        InputError: it is none of the local ones.
        MissingExtraError: its package is not installed.
        ModelError: its model is unknown or cannot be loaded.
    """
    match kind:
        case "transformers":
            return open_generator(TransformersEngine(model=model))
        case "llamacpp":
            return open_generator(LlamaCppEngine(model=model))
        case "fake":
            return open_generator(FakeEngine())
    raise InputError(f"The engine {kind!r} cannot be measured here; choose from {', '.join(LOCAL_ENGINES)}.")


def news_workload(folder: Path, users: int, blocks: int) -> Workload:
    """Make synthetic news readers, each with `blocks` full blocks of `BLOCK_SIZE` items.

    Args:
        folder: Where their dataset goes.
        users: Users in flight.
        blocks: Calls of a user, one after the other.
    """
    n_items = blocks * BLOCK_SIZE
    config = SyntheticConfig(
        domain="news",
        n_users=users,
        n_items=max(2000, 8 * n_items),
        mean_history=n_items,
        min_history=n_items,
        max_history=n_items,
    )
    data = generate(config, folder)
    return Workload(make_summariser(data, SummaryConfig()), list(data.histories()))


def measure_engine(engine: TextGenerator, workload: Workload, single_users: int) -> dict[str, Any]:
    """Return an engine's rates on a workload, and how much faster that is than one prompt at a time.

    Args:
        engine: What to measure; its model is loaded before the clock starts.
        workload: All its users are in flight at once.
        single_users: How many of its users are timed the naive way.
    """
    summariser, histories = workload.summariser, workload.histories
    _write(engine, summariser, histories[:1])
    together = _write(engine, summariser, histories)
    single = _added([_write(engine, summariser, [history]) for history in histories[:single_users]])
    return {
        "model": engine.model_id,
        **together.rates(),
        "single": {
            "timed_calls": single.calls,
            **single.rates(),
            "estimated_seconds": round(single.seconds / single.calls * together.calls, 3),
        },
        "speedup_vs_single": round(single.seconds / single.calls / (together.seconds / together.calls), 2),
    }


def faster_engine(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the engine with the most calls a second; all have made the same calls."""
    return max(measured, key=lambda name: float(measured[name]["calls_per_s"]))


@dataclass(frozen=True)
class _Cost:
    """What some calls cost."""

    seconds: float
    calls: int
    n_prompt_tokens: int
    n_generated_tokens: int

    def rates(self) -> dict[str, int | float]:
        """Return the counts, and the counts a second."""
        return {
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "prompt_tokens": self.n_prompt_tokens,
            "generated_tokens": self.n_generated_tokens,
            "calls_per_s": round(self.calls / self.seconds, 3),
            "prompt_tokens_per_s": round(self.n_prompt_tokens / self.seconds, 1),
            "generated_tokens_per_s": round(self.n_generated_tokens / self.seconds, 1),
        }


def _added(costs: Sequence[_Cost]) -> _Cost:
    return _Cost(
        sum(cost.seconds for cost in costs),
        sum(cost.calls for cost in costs),
        sum(cost.n_prompt_tokens for cost in costs),
        sum(cost.n_generated_tokens for cost in costs),
    )


def _write(engine: TextGenerator, summariser: Summariser, histories: Sequence[History]) -> _Cost:
    """Summarise the histories from nothing, and return what it cost."""
    last = SummaryProgress()

    def remember(progress: SummaryProgress) -> None:
        nonlocal last
        last = progress

    with SummaryStore(":memory:") as store:
        started = time.perf_counter()
        summarize(histories, summariser, engine, store, remember)
        seconds = time.perf_counter() - started
    return _Cost(seconds, last.n_calls_made, last.n_prompt_tokens, last.n_generated_tokens)
