"""Profiles for the users of a dataset folder, outside any experiment (`trsr summarize`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError
from trsr.experiment.config import grammar_mistakes, validation_sentences
from trsr.experiment.experiment import Experiment
from trsr.experiment.ray import RayRunner, Source, write_profiles_on_ray
from trsr.llm.engines import IN_FLIGHT, EngineConfig
from trsr.summarize.counted import word_changes
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store_url import is_database_url
from trsr.summarize.summarizer import WrittenProfiles, save_profiles, write_profiles
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan, bind_summarizer
from trsr.types import History

GROUNDED_TOKENS = 96
"""Room for the twelve phrases of a grounded profile, eight tokens each."""


class ProfileSettings(BaseModel):
    """The settings of `trsr summarize`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: SummaryConfig
    engine: EngineConfig


def settings(
    method: str,
    engine: str,
    model: str | None,
    base_url: str | None,
    block_size: int,
    grounded: bool = False,
    grammar: str | None = None,
    in_flight: int | None = None,
) -> ProfileSettings:
    """Return checked settings from the command's options.

    `in_flight` is the most prompts in the engine at the same time; None is the engine's own number.

    Raises:
        ConfigError: with every mistake.
    """
    given: dict[str, Any] = {"kind": engine, "model": model, "base_url": base_url, "grammar": grammar}
    if engine in IN_FLIGHT:
        given[IN_FLIGHT[engine]] = in_flight
    summary: dict[str, Any] = {"method": method, "grounded": grounded}
    summary["segmentation"] = {"kind": "count", "block_size": block_size}
    if grounded:
        summary["max_new_tokens"] = GROUNDED_TOKENS
    named = {name: value for name, value in given.items() if value is not None}
    try:
        chosen = ProfileSettings.model_validate({"summary": summary, "engine": named})
    except ValidationError as error:
        raise ConfigError(list(validation_sentences(error))) from error
    if mistakes := list(grammar_mistakes(chosen.summary, chosen.engine)):
        raise ConfigError(mistakes)
    return chosen


@dataclass(frozen=True)
class DatasetProfiles:
    """The profiles of a dataset's users, and the summarizer that wrote them."""

    summarizer: BoundSummarizer
    written: WrittenProfiles


def summarize_dataset(
    data: Path, chosen: ProfileSettings, store: str | Path | None, limit: int | None, user_id: str | None
) -> DatasetProfiles:
    """Write profiles for all users of a dataset folder, the first `limit`, or one.

    Except for one user, the profiles replace `profiles.parquet` next to the store (next to the data
    if that is a database); the texts of all calls stay in the store.

    Raises:
        DataError: the folder is no dataset, has no such user, or no user with an item that has text.
    """
    dataset = Dataset.open(data)
    summarizer = bind_summarizer(dataset, chosen.summary)
    histories = user_histories(dataset, limit, user_id)
    place = store or data / "summaries.sqlite"
    written = write_profiles(histories, summarizer, chosen.engine, place)
    if user_id is None:
        save_profiles(_profiles_file(data, place), [h.user_id for h in histories], written)
    return DatasetProfiles(summarizer, written)


def summarize_dataset_on_ray(
    data: Path, chosen: ProfileSettings, store: str | Path | None, limit: int | None, runner: RayRunner
) -> dict[str, int | float]:
    """Write profiles as `summarize_dataset` does, on the workers of a Ray cluster; return counts.

    Raises:
        ConfigError: the cluster has several machines, and the store is a file.
        DataError: the folder is no dataset, or has no user with an item that has text.
    """
    dataset = Dataset.open(data)
    bind_summarizer(dataset, chosen.summary)  # a wrong template is reported at once
    place = store or data / "summaries.sqlite"
    n_users = min(dataset.info.counts["users"], limit or dataset.info.counts["users"])
    slices, n_users = dataset_slices(dataset, runner.users_per_piece(n_users), limit)
    opened = partial(_open_source, data.resolve(), chosen.summary)
    file = _profiles_file(data, place)
    return write_profiles_on_ray(slices, n_users, opened, chosen.engine, place, runner, file)


def dataset_slices(dataset: Dataset, n_users: int, limit: int | None) -> tuple[list[tuple[int, int]], int]:
    """Cut a dataset's events into slices of `n_users` users with text each; return also how many users.

    Raises:
        DataError: no user has an item with text.
    """
    slices, start, stop, found, total = list[tuple[int, int]](), 0, 0, 0, 0
    catalogue = dataset.catalogue()
    for history in dataset.histories():
        stop += len(history)
        if not any(catalogue[item].fields for item in history.item_ids):
            continue
        found, total = found + 1, total + 1
        if found == n_users or total == limit:
            slices.append((start, stop))
            start, found = stop, 0
        if total == limit:
            break
    if found:
        slices.append((start, stop))
    if not total:
        raise DataError(f"{dataset.path} has no user with items that have text; import it again.")
    return slices, total


def _open_source(data: Path, config: SummaryConfig) -> Source:
    """Open the dataset in a worker; a piece is a slice of the rows of its events."""
    dataset = Dataset.open(data)

    def histories(start: int, stop: int) -> list[tuple[str, History]]:
        return [(h.user_id, h) for h in histories_with_text(dataset, start=start, stop=stop)]

    return Source(bind_summarizer(dataset, config), histories)


def _profiles_file(data: Path, store: str | Path) -> Path:
    return (data if is_database_url(store) else Path(store).parent) / "profiles.parquet"


def user_histories(dataset: Dataset, limit: int | None, user_id: str | None) -> list[History]:
    """Return the histories of all users that have any text, of the first `limit`, or of one.

    Raises:
        DataError: there is none.
    """
    histories = list(itertools.islice(histories_with_text(dataset, user_id), limit))
    if not histories:
        whom, advice = (f"user {user_id!r}", "check the id") if user_id else ("user", "import it again")
        raise DataError(f"{dataset.path} has no {whom} with items that have text; {advice}.")
    return histories


def histories_with_text(
    dataset: Dataset, user_id: str | None = None, start: int = 0, stop: int | None = None
) -> Iterator[History]:
    """Yield histories of items that have text; users without any are skipped.

    `start` and `stop` are rows of the events, see `Dataset.histories`.
    """
    catalogue = dataset.catalogue()
    for history in dataset.histories(start, stop):
        if user_id is None or history.user_id == user_id:
            items = tuple(i for i in history.item_ids if catalogue[i].fields)
            if items:
                yield History(history.user_id, items)


def describe_plan(plan: SummaryPlan, summarizer: BoundSummarizer, profile_text: str) -> str:
    """Return a user's blocks, every summary with the words it added and dropped, and the profile."""
    lines = [f"User {plan.history.user_id}: {len(plan.history)} items in {len(plan.blocks)} blocks"]
    for block in plan.blocks:
        lines.append(f"\nBlock {block.index + 1}{'' if block.complete else ' (open)'}")
        lines += [f"  - {summarizer.item_text(item)}" for item in block.item_ids]
    for place, call in enumerate(plan.calls):
        read = f" of {', '.join(str(i + 1) for i in call.inputs)}" if call.inputs else ""
        lines.append(f"\nSummary {place + 1} ({call.kind}{read})\n  {plan.texts[place]}")
        if call.kind == "update":
            added, gone = word_changes(plan.texts[call.inputs[-1]], plan.texts[place])
            lines.append(f"  added: {', '.join(added) or 'nothing'}; gone: {', '.join(gone) or 'nothing'}")
    lines.append(f"\nProfile\n  {profile_text or '(none)'}")
    return "\n".join(lines)


CONFIG_FILE = Path(__file__).with_name("demo.yaml")


def compare_summarizers(experiment: Experiment) -> str:
    """Return one test user's blocks and summaries by both methods; the calls go to the run's store."""
    example = experiment.splits.test[0]
    parts = []
    for method in ("recurrent", "hierarchical"):
        config = experiment.config.summary.model_copy(update={"method": method})
        summarizer = bind_summarizer(experiment.dataset, config)
        written = write_profiles(
            [History(example.user_id, example.history)],
            summarizer,
            experiment.config.engine,
            experiment.store_place,
        )
        text = describe_plan(written.plans[0], summarizer, written.profiles[0].text)
        parts.append(f"{method.capitalize()}\n{'-' * len(method)}\n{text}")
    return "\n\n".join(parts)


def next_steps(out: Path) -> str:
    """Return commands to try next; the last opens the page."""
    config = Path(os.path.relpath(CONFIG_FILE))
    return (
        "Try next:\n"
        f"  trsr rank {config} --out {out} --dry-run      # the prompt the model reads\n"
        f"  trsr summarize {out}/data --engine llamacpp --limit 5      # profiles of other users\n"
        f"  trsr run {config} --out {out}-counted --set summary.method=counted  # no model\n"
        f"See the profile of each user, and add notes, at http://127.0.0.1:8000 in a browser:\n"
        f"  trsr serve {out}\n"
    )
