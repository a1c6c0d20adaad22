"""The traits of a run's examples come from its own data, and never from the target's time on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from trsr.evaluate.slices import interest_shift
from trsr.experiment.config import load_config
from trsr.experiment.evaluating import example_traits, targets_in_history
from trsr.experiment.experiment import Workbench
from trsr.experiment.run_folder import RunFolder
from trsr.splitting.leakage import fit_events
from trsr.summarize.counted import field_values, title_words


@pytest.fixture
def bench(finished_run: Path) -> Workbench:
    return Workbench(RunFolder(finished_run, load_config(finished_run / "config.yaml"), "trsr"))


def test_every_test_example_has_its_traits(bench: Workbench) -> None:
    traits = example_traits(bench)
    met = fit_events(bench.dataset, bench.splits)["item_id"].to_list()
    catalogue, fields = bench.dataset.catalogue(), bench.dataset.info.category_fields
    assert len(traits) == 12
    for example in bench.splits.test:
        one = traits[example.example_id]
        target = example.candidates[example.labels.index(1)]
        assert one.history_length == len(example.history)
        assert one.target_count == met.count(target)
        assert one.shift == interest_shift([field_values(catalogue[i], fields) for i in example.history])
    assert len({one.shift for one in traits.values()}) > 3
    assert len({one.target_count for one in traits.values()}) > 1


def test_without_categories_words_of_titles_stand_for_interests(bench: Workbench) -> None:
    bench.summariser = dataclasses.replace(bench.summariser, category_fields=())
    traits, catalogue = example_traits(bench), bench.dataset.catalogue()
    for example in bench.splits.test:
        words = [title_words(catalogue[i], bench.summariser.title_field) for i in example.history]
        assert any(words)
        assert traits[example.example_id].shift == interest_shift(words)


def test_targets_in_their_own_history_are_counted_once_an_example(bench: Workbench) -> None:
    assert targets_in_history([bench]) == 0
    first, *rest = bench.splits.test
    target = first.candidates[first.labels.index(1)]
    leaky = dataclasses.replace(first, history=(*first.history, target))
    bench.splits = dataclasses.replace(bench.splits, test=[leaky, *rest])
    assert targets_in_history([bench, bench]) == 1
