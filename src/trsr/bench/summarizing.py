"""Measure how fast engines write summaries: many users in flight, against one prompt at a time.

The prompts are real ones: recurrent summaries of synthetic news readers, with the product's own templates and
defaults, written by `summarize` into an empty store. The naive way is timed in the same process on the same
engine: some of the users one after the other, with one prompt in flight.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import InputError
from trsr.llm.base import TextGenerator
from trsr.llm.engines import (
    IN_FLIGHT,
    REQUIRED_PACKAGES,
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    TransformersEngine,
    require_package,
)
from trsr.llm.opening import open_generator
from trsr.summarize.executor import SummaryProgress, summarize
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import SqliteStore
from trsr.summarize.user_plan import BoundSummarizer, bind_summarizer
from trsr.types import History

LOCAL_ENGINES = ("transformers", "llamacpp")
BLOCK_SIZE = 5


def bench_summarize(
    folder: Path,
    engines: Sequence[str] | None,
    model: str,
    *,
    users: int,
    blocks: int,
    single_users: int,
    in_flight: int | None = None,
) -> dict[str, Any]:
    """Return the rates of engines and which is faster, as `trsr bench summarize` prints them.

    Args:
        folder: An empty one, for the dataset.
        engines: `transformers`, `llamacpp`; None for all installed ones.
        model: Model of all of them.
        users: Users to summarize, all submitted at once.
        blocks: Calls per user, one after the other.
        single_users: How many of the users are timed the naive way.
        in_flight: Most calls that an engine works on at the same time; None for its default.

    Raises:
        InputError: an engine is none of the local ones, or none is installed.
        MissingExtraError: an engine's package is not installed.
        ModelError: the model is unknown or cannot be loaded.
    """
    kinds = list(engines) if engines else installed_engines()
    if not kinds:
        raise InputError("No local engine is installed: run `pip install 'trsr[hf]'`, or `trsr[llamacpp]`.")
    configs = {kind: local_engine(kind, model, in_flight) for kind in kinds}
    summarizer, histories = news_readers(folder, users, blocks)
    measured = {}
    for kind, config in configs.items():
        engine = open_generator(config)
        try:
            measured[kind] = measure_engine(engine, summarizer, histories, min(single_users, users))
        finally:
            engine.close()
    return {
        "benchmark": "summarize",
        "users": users,
        "in_flight": in_flight,
        "calls_per_user": blocks,
        "block_size": BLOCK_SIZE,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "engines": measured,
        "faster_engine": max(measured, key=lambda name: float(measured[name]["calls_per_s"])),
    }


def installed_engines() -> list[str]:
    """Return the local engines whose package is installed."""
    needs = {kind: REQUIRED_PACKAGES[kind] for kind in LOCAL_ENGINES}
    return [kind for kind, need in needs.items() if need and importlib.util.find_spec(need[0])]


def local_engine(kind: str, model: str, in_flight: int | None = None) -> EngineConfig:
    """Return a local engine (or `fake`, for tests) with its defaults, or with `in_flight` calls at a time.

    Raises:
        InputError: there is no such local engine.
        MissingExtraError: its package is not installed.
    """
    match kind:
        case "transformers":
            config: EngineConfig = TransformersEngine(model=model)
        case "llamacpp":
            config = LlamaCppEngine(model=model)
        case "fake":
            config = FakeEngine()
        case _:
            raise InputError(f"--engines: found {kind!r}, expected {' or '.join(LOCAL_ENGINES)}.")
    require_package(kind)
    if in_flight is not None and kind in IN_FLIGHT:
        config = config.model_copy(update={IN_FLIGHT[kind]: in_flight})
    return config


def news_readers(folder: Path, users: int, blocks: int) -> tuple[BoundSummarizer, list[History]]:
    """Make synthetic news readers with `blocks` full blocks each: every user is in flight to the end."""
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
    return bind_summarizer(data, SummaryConfig()), list(data.histories())


def measure_engine(
    engine: TextGenerator, summarizer: BoundSummarizer, histories: Sequence[History], single_users: int
) -> dict[str, Any]:
    """Return an engine's rates on users in flight at once, and against `single_users` of them one by one."""
    _write(engine, summarizer, [histories[:1]])  # loads the model
    together = _write(engine, summarizer, [histories])
    single = _write(engine, summarizer, [[history] for history in histories[:single_users]])
    single_seconds = single["seconds"] / single["calls"] * together["calls"]
    return {
        "model": engine.model_id,
        **{name: round(value, 3) for name, value in together.items()},
        "single": {
            "calls": single["calls"],
            "seconds": round(single["seconds"], 3),
            "calls_per_s": round(single["calls_per_s"], 3),
            "estimated_seconds_for_all_calls": round(single_seconds, 3),
        },
        "speedup_vs_single": round(single_seconds / together["seconds"], 2),
    }


def _write(
    engine: TextGenerator, summarizer: BoundSummarizer, groups: Sequence[Sequence[History]]
) -> dict[str, float]:
    """Summarize groups of users from nothing, one group after the other, and return counts and rates.

    Reading and writing have rates of their own where the engine times its reading.
    """
    done = []
    read_before: float | None = getattr(engine, "reading_seconds", None)
    started = time.perf_counter()
    for histories in groups:
        last: list[SummaryProgress] = []
        with SqliteStore(":memory:") as store:
            summarize(histories, summarizer, engine, store, last.append)
        done.append(last[-1])
    seconds = time.perf_counter() - started
    calls = sum(progress.n_calls_made for progress in done)
    n_prompt_tokens = sum(progress.n_prompt_tokens for progress in done)
    n_generated_tokens = sum(progress.n_generated_tokens for progress in done)
    facts = {
        "calls": calls,
        "seconds": seconds,
        "prompt_tokens": n_prompt_tokens,
        "generated_tokens": n_generated_tokens,
        "calls_per_s": calls / seconds,
        "prompt_tokens_per_s": n_prompt_tokens / seconds,
        "generated_tokens_per_s": n_generated_tokens / seconds,
    }
    if read_before is not None:
        reading = float(engine.reading_seconds) - read_before  # type: ignore[attr-defined]
        facts["reading_seconds"] = reading
        facts["reading_tokens_per_s"] = n_prompt_tokens / reading
        facts["writing_tokens_per_s"] = n_generated_tokens / max(seconds - reading, 1e-9)
    return facts
