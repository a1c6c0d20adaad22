"""Write the profiles of users: the public `Summarizer`, and the files of runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError
from trsr.llm.engines import EngineConfig
from trsr.llm.opening import open_generator
from trsr.progress import bar
from trsr.storage import atomic_write
from trsr.summarize.executor import SummaryProgress, summarize
from trsr.summarize.plan import Method, SummaryConfig
from trsr.summarize.store import open_store
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan, bind_summarizer, profile
from trsr.types import History, Profile, RankingExample

_ENGINE: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)


class Summarizer:
    """Writes users' preference profiles with a language model.

    Every text is kept in a store under a key of its whole prompt, model and parameters, so a repeated or
    resumed call is not made again.

    Args:
        method: `recurrent`, `hierarchical`, `counted` (no model) or `none`.
        model: The model of the engine: `smollm2-135m`, a folder or a hub id; by default the engine's own.
        engine: `transformers`, `llamacpp`, `openai` or `fake`; or its settings, as a mapping with `kind`.
        store: Where texts are kept: a file, or the URL of a database; by default `summaries.sqlite` in the
            dataset folder.
        block_size: Items in a block.
        settings: Other settings of `summary` in a configuration, such as `grounded` or `max_new_tokens`.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        method: Method = "recurrent",
        *,
        model: str | None = None,
        engine: str | Mapping[str, Any] | EngineConfig = "transformers",
        store: str | Path | None = None,
        block_size: int | None = None,
        **settings: Any,
    ) -> None:
        if block_size is not None:
            settings["segmentation"] = {"kind": "count", "block_size": block_size}
        given: Any = {"kind": engine} if isinstance(engine, str) else engine
        if isinstance(given, Mapping) and model is not None:
            given = {**given, "model": model}
        try:
            self.config = SummaryConfig.model_validate({"method": method, **settings})
            self.engine = _ENGINE.validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{where}: found {first['input']!r}, {first['msg']}.") from error
        self.store = store

    @classmethod
    def of(cls, config: SummaryConfig, engine: EngineConfig, store: str | Path | None) -> Summarizer:
        """Return a summarizer with settings that are already checked."""
        made = cls.__new__(cls)
        made.config, made.engine, made.store = config, engine, store
        return made

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make an equal summarizer, ready for JSON."""
        store = None if self.store is None else str(self.store)
        return {
            "engine": self.engine.model_dump(mode="json"),
            "store": store,
            **self.config.model_dump(mode="json"),
        }

    def summarize(self, data: Dataset, users: Iterable[str] | None = None) -> Profiles:
        """Write the profile of every user, or of some, from their whole history.

        Items without text are skipped, and so are users without other items.

        Raises:
            DataError: a user is not in the dataset.
            EngineError: some calls failed; the finished ones are kept, and the next call tries the others.
            StoreError, OutputError: the store cannot be used.
        """
        histories = data.histories() if users is None else map(data.history, users)
        readable = [one for history in histories if len(one := data.readable(history))]
        return Profiles(self, data, self.write(data, readable).profiles)

    def before(self, data: Dataset, examples: Sequence[RankingExample]) -> dict[str, str]:
        """Return by example id the profile of each example's history, which ends before the target."""
        written = self.write(data, [History(example.user_id, example.history) for example in examples])
        return {e.example_id: one.text for e, one in zip(examples, written.profiles, strict=True)}

    def write(self, data: Dataset, histories: Sequence[History]) -> WrittenProfiles:
        """Write one profile per history; raises what `summarize` raises."""
        store = self.store or data.path / "summaries.sqlite"
        return write_profiles(histories, bind_summarizer(data, self.config), self.engine, store)


class Profiles(Mapping[str, Profile]):
    """Profiles by user id, each of the user's whole history, with the summarizer that wrote them.

    Attributes:
        summarizer: The summarizer that wrote them.
        data: The dataset.
    """

    def __init__(self, summarizer: Summarizer, data: Dataset, profiles: Iterable[Profile]) -> None:
        self.summarizer = summarizer
        self.data = data
        self._profiles = {one.user_id: one for one in profiles}

    def __getitem__(self, user_id: str) -> Profile:
        return self._profiles[user_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)

    def before(self, examples: Sequence[RankingExample]) -> dict[str, str]:
        """Return by example id the profile of the history before each example's target.

        A profile of the whole history has seen the target, so these are written unless the store has them.
        A recurrent summarizer shares all complete blocks with the whole history's profile.
        """
        return self.summarizer.before(self.data, examples)

    def to_frame(self) -> pl.DataFrame:
        """Return user_id, text and n_items, one row per user."""
        rows = [(one.user_id, one.text, one.n_items) for one in self.values()]
        return pl.DataFrame(rows, schema=["user_id", "text", "n_items"], orient="row")


@dataclass(frozen=True)
class WrittenProfiles:
    """Profiles in the order of their histories, with counts and seconds."""

    plans: list[SummaryPlan]
    profiles: list[Profile]
    progress: SummaryProgress
    seconds: float

    def facts(self) -> dict[str, int | float]:
        """Return the counts of this process and of calls from the store."""
        return profile_facts(len(self.profiles), self.progress, self.seconds)


def profile_facts(n_profiles: int, made: SummaryProgress, seconds: float) -> dict[str, int | float]:
    """Return the counts that commands print about written profiles."""
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
    histories: Sequence[History], summarizer: BoundSummarizer, engine_config: EngineConfig, store: str | Path
) -> WrittenProfiles:
    """Write the profile of every history; calls that the store (see `open_store`) knows are not made.

    Raises:
        EngineError: some calls failed; the finished ones are kept.
        StoreError, OutputError: the store cannot be used.
    """
    started = time.perf_counter()
    last = SummaryProgress()
    with open_store(store) as kept, bar("Summarizing") as shown:
        engine = open_generator(engine_config) if summarizer.config.needs_calls else None

        def show(progress: SummaryProgress) -> None:
            nonlocal last
            last = progress
            rate = progress.n_generated_tokens / (time.perf_counter() - started)
            note = f"{progress.n_users_done} of {progress.n_users} users, {rate:.0f} tokens/s"
            shown.update(progress.n_calls_known + progress.n_calls_made, progress.n_calls, note)

        try:
            plans = summarize(histories, summarizer, engine, kept, show)
        finally:
            if engine is not None:
                engine.close()
    profiles = [profile(plan, summarizer) for plan in plans]
    return WrittenProfiles(plans, profiles, last, time.perf_counter() - started)


def save_profiles(file: Path, names: Sequence[str], written: WrittenProfiles) -> None:
    """Write a Parquet file of profiles in one move (see `profile_table`); `names` are example ids."""
    atomic_write(file, profile_table(names, written.plans, written.profiles).write_parquet)


def profile_table(
    names: Sequence[str], plans: Sequence[SummaryPlan], profiles: Sequence[Profile]
) -> pl.DataFrame:
    """Return one row per profile; `names` are example ids.

    The column `texts` has the texts of all calls of a profile's plan, the blocks first.
    """
    return pl.DataFrame(
        {
            "example_id": pl.Series(names, dtype=pl.String),
            "user_id": pl.Series([p.user_id for p in profiles], dtype=pl.String),
            "text": pl.Series([p.text for p in profiles], dtype=pl.String),
            "n_items": pl.Series([p.n_items for p in profiles], dtype=pl.Int64),
            "key": pl.Series([p.key for p in profiles], dtype=pl.String),
            "texts": pl.Series(
                [[plan.texts[i] for i in range(len(plan.calls))] for plan in plans],
                dtype=pl.List(pl.String),
            ),
        }
    )
