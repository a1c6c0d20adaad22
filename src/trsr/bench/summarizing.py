"""Times how fast engines write summaries: many users in flight, against one prompt at a time.

The prompts are real ones: recurrent summaries of synthetic news readers, by the product's own templates and
defaults, written by `summarize` itself into an empty store. The naive way is timed in the same process on the
same engine: some of the users one after the other, so that one prompt is in flight.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import InputError
from trsr.llm.base import Generation, GenerationParams, Prompt, TextGenerator
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
from trsr.summarize.executor import summarize
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import SqliteStore
from trsr.summarize.user_plan import Summariser, make_summariser
from trsr.types import History

LOCAL_ENGINES = ("transformers", "llamacpp")
BLOCK_SIZE = 5


@dataclass(frozen=True)
class Workload:
    """Histories of equal length, so that every user is in flight to the end."""

    summariser: Summariser
    histories: list[History]


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
        engines: `transformers`, `llamacpp`; None for those that are installed.
        model: Model of all of them.
        users: Users to summarise, all handed over at once.
        blocks: Calls of a user, one after the other.
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
    workload = news_workload(folder, users, blocks)
    measured = {}
    for kind, config in configs.items():
        engine = open_generator(config)
        try:
            measured[kind] = measure_engine(engine, workload, min(single_users, users))
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
        "faster_engine": faster_engine(measured),
    }


def installed_engines() -> list[str]:
    """Return the local engines whose package is installed."""
    needs = {kind: REQUIRED_PACKAGES[kind] for kind in LOCAL_ENGINES}
    return [kind for kind, need in needs.items() if need and importlib.util.find_spec(need[0])]


def local_engine(kind: str, model: str, in_flight: int | None = None) -> EngineConfig:
    """Return a local engine (or `fake`, for tests) with its defaults, or with so many calls in flight.

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


def news_workload(folder: Path, users: int, blocks: int) -> Workload:
    """Make synthetic news readers, each with `blocks` full blocks of `BLOCK_SIZE` items."""
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
    histories = workload.histories
    _write(engine, workload.summariser, [histories[:1]])  # loads the model
    together = _write(engine, workload.summariser, [histories])
    single = _write(engine, workload.summariser, [[history] for history in histories[:single_users]])
    single_seconds = single.seconds / single.calls * together.calls
    return {
        "model": engine.model_id,
        **together.rates(),
        "single": {
            "calls": single.calls,
            "seconds": round(single.seconds, 3),
            "calls_per_s": round(single.calls / single.seconds, 3),
            "estimated_seconds_for_all_calls": round(single_seconds, 3),
        },
        "speedup_vs_single": round(single_seconds / together.seconds, 2),
    }


def faster_engine(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the engine with the most calls a second; all have made the same calls."""
    return max(measured, key=lambda name: float(measured[name]["calls_per_s"]))


@dataclass
class Recorder:
    """An engine that hands everything on, and remembers what it was asked and what it answered."""

    engine: TextGenerator
    prompts: list[Prompt] = field(default_factory=list)
    results: list[Generation] = field(default_factory=list)
    params: GenerationParams = field(default_factory=GenerationParams)

    @property
    def model_id(self) -> str:
        """The engine's."""
        return self.engine.model_id

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield the engine's results."""
        self.params = params
        for result in self.engine.generate(prompts, params):
            self.results.append(result)
            self.prompts.append(prompts[result.index])  # now: the caller may let it go after its result
            yield result

    @property
    def reading_seconds(self) -> float | None:
        """The engine's time of reading so far; None where it does not say."""
        seconds: float | None = getattr(self.engine, "reading_seconds", None)
        return seconds

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


@dataclass(frozen=True)
class Cost:
    """What some calls cost; `reading_seconds` is the part in which prompts are read, timed or estimated."""

    seconds: float
    reading_seconds: float
    calls: int
    n_prompt_tokens: int
    n_generated_tokens: int
    reading_was_timed: bool = False

    def rates(self) -> dict[str, int | float]:
        """Return counts and rates; the two last ones are of reading alone and of writing alone."""
        writing = max(self.seconds - self.reading_seconds, 1e-9)
        return {
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "prompt_tokens": self.n_prompt_tokens,
            "generated_tokens": self.n_generated_tokens,
            "calls_per_s": round(self.calls / self.seconds, 3),
            "prompt_tokens_per_s": round(self.n_prompt_tokens / self.seconds, 1),
            "generated_tokens_per_s": round(self.n_generated_tokens / self.seconds, 1),
            "reading_seconds": round(self.reading_seconds, 3),
            "reading_was_timed": self.reading_was_timed,
            "reading_tokens_per_s": round(self.n_prompt_tokens / self.reading_seconds, 1),
            "writing_tokens_per_s": round(self.n_generated_tokens / writing, 1),
        }


def _write(engine: TextGenerator, summariser: Summariser, groups: Sequence[Sequence[History]]) -> Cost:
    """Summarise groups of users from nothing, one group after the other, and return what it cost.

    An engine that times its own reading is believed. For others as many of the prompts are asked again as
    there were users, for one token each; what that says of all their tokens is taken from the whole, and the
    rest is writing.
    """
    recorder = Recorder(engine)
    read_before = recorder.reading_seconds
    started = time.perf_counter()
    for histories in groups:
        with SqliteStore(":memory:") as store:
            summarize(histories, summariser, recorder, store)
    seconds = time.perf_counter() - started
    n_prompt_tokens = sum(result.n_prompt_tokens for result in recorder.results)
    read_after = recorder.reading_seconds
    was_timed = read_before is not None and read_after is not None
    if read_before is not None and read_after is not None:
        reading_seconds = read_after - read_before
    else:
        reading_seconds = _seconds_a_token_read(recorder, len(groups[0])) * n_prompt_tokens
    return Cost(
        seconds=seconds,
        reading_seconds=reading_seconds,
        calls=len(recorder.results),
        n_prompt_tokens=n_prompt_tokens,
        n_generated_tokens=sum(result.n_generated_tokens for result in recorder.results),
        reading_was_timed=was_timed,
    )


def _seconds_a_token_read(recorder: Recorder, n_prompts: int) -> float:
    """Ask the first prompts again, for one token each."""
    one_token = replace(recorder.params, max_new_tokens=1)
    started = time.perf_counter()
    read_again = list(recorder.engine.generate(recorder.prompts[:n_prompts], one_token))
    return (time.perf_counter() - started) / sum(result.n_prompt_tokens for result in read_again)
