"""Baselines in a run: tuned on validation only, blind to the future, taken up again after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from trsr.baselines.neural import NcfRanker, SequentialRanker
from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError, MissingExtraError, ModelError
from trsr.experiment import baselines
from trsr.experiment.baselines import BaselineName, check_baselines, make_baseline
from trsr.experiment.config import FUSIONS, BuiltInRanker, load_config
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import make_ranker
from trsr.recommend.ranker import Ranker
from trsr.types import RankingExample

NAMES: tuple[BaselineName, ...] = get_args(BaselineName)
SMALL = [
    *(f"baselines.{name}.n_epochs=[1, 2]" for name in ("sasrec", "gru4rec", "bert4rec", "ncf")),
    *(f"baselines.{name}.dim=[8]" for name in ("sasrec", "gru4rec", "bert4rec")),
    *(f"baselines.{name}.n_negatives=16" for name in ("sasrec", "gru4rec", "bert4rec")),
    "baselines.gru4rec.learning_rate=[0.05]",
    "baselines.ncf.n_factors=[4]",
]


@pytest.fixture
def experiment(experiment: Experiment, config_file: Path, tiny_model: Path) -> Experiment:
    """A copy of a finished run, with small settings for the baselines."""
    experiment.config = load_config(config_file, [*SMALL, f"baselines.embedding.model={tiny_model}"])
    return experiment


def table(experiment: Experiment, ranker: Ranker) -> npt.NDArray[np.float32]:
    answers = {answer.example_id: answer.margins for answer in ranker.rank(experiment.splits.test)}
    return np.stack([answers[example.example_id] for example in experiment.splits.test])


def _targets(examples: Sequence[RankingExample]) -> pl.DataFrame:
    rows = [(e.user_id, e.candidates[e.labels.index(1)]) for e in examples]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


def record(experiment: Experiment, name: str) -> dict[str, Any]:
    file = experiment.folder.path / "baselines" / f"{name}.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_or_after_a_target_changes_a_score(
    experiment: Experiment, name: BaselineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = table(experiment, make_baseline(experiment, name))
    events = experiment.dataset.events().collect()
    held_out = [*experiment.splits.valid, *experiment.splits.test]
    last = events.join(_targets(held_out), on="user_id", how="semi").group_by("user_id").last()
    items = sorted(experiment.dataset.catalogue())
    future = pl.concat(
        last.with_columns(
            item_id=pl.Series(items[step : step + len(last)]),
            position=pl.col("position") + step + 1,
            timestamp=pl.col("timestamp") + timedelta(hours=step + 1),
        ).select(events.columns)
        for step in range(30)
    ).join(_targets(held_out), on=["user_id", "item_id"], how="anti")
    assert len(future) > 300
    monkeypatch.setattr(Dataset, "events", lambda _: pl.concat([events, future]).lazy())
    shutil.rmtree(experiment.folder.path / "baselines")
    np.testing.assert_array_equal(before, table(experiment, make_baseline(experiment, name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_repeats_itself_and_says_what_was_tried(
    experiment: Experiment, name: BaselineName
) -> None:
    first = table(experiment, make_baseline(experiment, name))
    said = record(experiment, name)
    grid = getattr(experiment.config.baselines, name).grid()
    assert len(said["trials"]) == len(grid) > 1
    best = max(trial["recall_sum"] for trial in said["trials"])
    chosen = next(trial for trial in said["trials"] if trial["recall_sum"] == best)
    assert said["chosen"] == chosen["settings"]
    assert said["test"]
    np.testing.assert_array_equal(first, table(experiment, make_baseline(experiment, name)))
    shutil.rmtree(experiment.folder.path / "baselines")
    np.testing.assert_array_equal(first, table(experiment, make_baseline(experiment, name)))


def test_every_name_of_the_configuration_makes_a_ranker_of_that_name(experiment: Experiment) -> None:
    for name in set(get_args(BuiltInRanker)) - set(FUSIONS):  # which join scores that are there
        assert make_ranker(experiment, name).name == name


def test_a_killed_search_does_not_repeat_what_was_tried(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []
    whole = SequentialRanker.__init__

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        fits.append(args[2]["n_epochs"])
        if len(fits) == 2:
            raise KeyboardInterrupt
        whole(self, *args, **kwargs)

    monkeypatch.setattr(SequentialRanker, "__init__", counting)
    with pytest.raises(KeyboardInterrupt):
        make_baseline(experiment, "gru4rec")
    assert fits == [1, 2]
    make_baseline(experiment, "gru4rec")
    assert fits[2] == 2
    assert fits[3:] in ([], [1])  # the first is fitted again only if it was the better one
    assert [trial["settings"]["n_epochs"] for trial in record(experiment, "gru4rec")["trials"]] == [1, 2]


def test_the_test_labels_play_no_part(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    whole = NcfRanker.rank

    def watching(self: Any, examples: Any) -> Any:
        seen.extend(example.example_id for example in examples)
        return whole(self, examples)

    monkeypatch.setattr(NcfRanker, "rank", watching)
    make_baseline(experiment, "ncf")
    assert set(seen) == {example.example_id for example in experiment.splits.valid}


def test_without_validation_examples_the_first_settings_are_taken(experiment: Experiment) -> None:
    experiment.splits.valid.clear()
    make_baseline(experiment, "gru4rec")
    said = record(experiment, "gru4rec")
    assert said["trials"] == []
    assert said["chosen"]["n_epochs"] == 1


def test_settings_that_diverge_are_passed_over(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SequentialRanker.rank
    broken = {1}

    def rank(self: Any, examples: Any) -> Any:
        for answer in whole(self, examples):
            if self._model.n_epochs in broken:
                answer.margins[0] = np.nan
            yield answer

    monkeypatch.setattr(SequentialRanker, "rank", rank)
    make_baseline(experiment, "gru4rec")
    assert record(experiment, "gru4rec")["chosen"]["n_epochs"] == 2
    shutil.rmtree(experiment.folder.path / "baselines")
    broken.add(2)
    with pytest.raises(DataError, match="No setting of gru4rec gave finite scores"):
        make_baseline(experiment, "gru4rec")


def test_what_baselines_lack_is_found_out_early(
    experiment: Experiment, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranked_by(*names: str) -> Experiment:
        experiment.config = experiment.config.model_copy(update={"rankers": names})
        return experiment

    check_baselines(ranked_by("popularity_decayed"))
    timeless = experiment.dataset.events().with_columns(timestamp=pl.lit(None, pl.Datetime("us", "UTC")))
    monkeypatch.setattr(Dataset, "events", lambda _: timeless)
    del experiment.splits.training_events
    with pytest.raises(ConfigError, match="no event that it may learn from has one"):
        check_baselines(ranked_by("popularity_decayed"))

    def missing(*_: str) -> None:
        raise MissingExtraError("cornac", "baselines")

    monkeypatch.setattr(baselines, "require", missing)
    check_baselines(ranked_by("popularity"))
    with pytest.raises(MissingExtraError):
        check_baselines(ranked_by("random", "ncf"))
    experiment.config = load_config(
        config_file, ["rankers=[embedding]", "baselines.embedding.model=./nowhere"]
    )
    with pytest.raises(ModelError, match="nowhere"):
        check_baselines(experiment)
