"""Writes profiles with an engine and a store, for a run or for every user of a dataset."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from trsr.llm.engines import EngineConfig, open_generator
from trsr.storage import write_whole
from trsr.summarize.stores import open_store
from trsr.summarize.summarizer import Fold, Summariser, SummaryProgress, profile, summarize
from trsr.types import History, PreferenceSummary


class Bar:
    """One bar; `update` may be called as often as convenient."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None, note="")

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`, with a short note behind."""
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(name: str) -> Iterator[Bar]:
    """Show a bar on standard error while the block runs; only when that is a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(progress, name)


@dataclass(frozen=True)
class WrittenProfiles:
    """Profiles in the order of their histories, with what they cost."""

    folds: list[Fold]
    profiles: list[PreferenceSummary]
    progress: SummaryProgress
    seconds: float

    def facts(self) -> dict[str, int | float]:
        """Return counts: of this process, and what the store answered."""
        return profile_facts(len(self.profiles), self.progress, self.seconds)


def profile_facts(n_profiles: int, made: SummaryProgress, seconds: float) -> dict[str, int | float]:
    """Return what the command says about profiles that were written in so many seconds."""
    return {
        "profiles": n_profiles,
        "calls": made.n_calls,
        "calls_made": made.n_calls_made,
        "calls_from_store": made.n_calls_known,
        "prompt_tokens": made.n_prompt_tokens,
        "generated_tokens": made.n_generated_tokens,
        "tokens_per_second": round(made.n_generated_tokens / max(seconds, 1e-9), 1),
    }


def write_profiles(
    histories: Sequence[History], summariser: Summariser, engine_config: EngineConfig, store: str | Path
) -> WrittenProfiles:
    """Write the profile of every history; calls that the store (see `open_store`) knows are not made.

    Raises:
        EngineError: some calls failed; the finished ones are kept.
        StoreError, OutputError: the store cannot be used.
    """
    started = time.perf_counter()
    last = SummaryProgress()
    with open_store(store) as kept, bar("Summarising") as shown:
        engine = open_generator(engine_config) if summariser.config.needs_calls else None

        def show(progress: SummaryProgress) -> None:
            nonlocal last
            last = progress
            rate = progress.n_generated_tokens / (time.perf_counter() - started)
            note = f"{progress.n_users_done} of {progress.n_users} users, {rate:.0f} tokens/s"
            shown.update(progress.n_calls_known + progress.n_calls_made, progress.n_calls, note)

        try:
            folds = summarize(histories, summariser, engine, kept, show)
        finally:
            if engine is not None:
                engine.close()
    profiles = [profile(fold, summariser) for fold in folds]
    return WrittenProfiles(folds, profiles, last, time.perf_counter() - started)


def save_profiles(file: Path, names: Sequence[str], written: WrittenProfiles) -> None:
    """Write a Parquet file of profiles in one move (see `profile_table`); `names` are example ids."""
    write_whole(file, profile_table(names, written.folds, written.profiles).write_parquet)


def profile_table(
    names: Sequence[str], folds: Sequence[Fold], profiles: Sequence[PreferenceSummary]
) -> pl.DataFrame:
    """Return one row a profile; `names` are example ids.

    The column `texts` holds the texts of all calls of a profile's plan, those of its blocks first.
    """
    return pl.DataFrame(
        {
            "example_id": pl.Series(names, dtype=pl.String),
            "user_id": pl.Series([p.user_id for p in profiles], dtype=pl.String),
            "text": pl.Series([p.text for p in profiles], dtype=pl.String),
            "n_items": pl.Series([p.n_items for p in profiles], dtype=pl.Int64),
            "key": pl.Series([p.key for p in profiles], dtype=pl.String),
            "texts": pl.Series(
                [[fold.texts[i] for i in range(len(fold.calls))] for fold in folds],
                dtype=pl.List(pl.String),
            ),
        }
    )
