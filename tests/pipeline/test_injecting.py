"""Injected candidates of training are drawn by their share, chosen or not, and look like other candidates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trsr.config import load_config
from trsr.pipeline import stages
from trsr.pipeline.folder import RunFolder
from trsr.pipeline.injecting import injector
from trsr.pipeline.workbench import Workbench


@pytest.fixture
def bench(finished_run: Path, config_file: Path, tmp_path: Path) -> Workbench:
    shutil.copytree(finished_run, tmp_path / "run")
    return Workbench(RunFolder(tmp_path / "run", load_config(config_file), "trsr run tiny.yaml"))


def test_each_epoch_draws_its_own_whatever_was_chosen(bench: Workbench) -> None:
    train = bench.splits.train
    drawn = []
    for epoch in range(40):
        texts = injector(bench, 0.25, epoch)
        drawn.append([sorted(texts(example)) for example in train])
        assert drawn[-1] == [sorted(injector(bench, 0.25, epoch)(example)) for example in train]
    assert drawn[0] != drawn[1]
    by_label: dict[int, list[bool]] = {0: [], 1: []}
    for found in drawn:
        for example, items in zip(train, found, strict=True):
            for item, label in zip(example.candidates, example.labels, strict=True):
                by_label[label].append(item in items)
    for hits in by_label.values():
        assert abs(sum(hits) / len(hits) - 0.25) < 0.08


def test_texts_are_cut_as_those_of_other_candidates(bench: Workbench) -> None:
    fields, cap = bench.dataset.info.text_fields, bench.config.prompt.max_field_tokens
    n_most = len(bench.tokenizer.encode("; ".join(f"{field}:" for field in fields))) + len(fields) * (cap + 2)
    for example in bench.splits.train:
        texts = injector(bench, 1.0, 0)(example)
        assert list(texts) == list(example.candidates)
        for item, text in texts.items():
            assert text != bench.builder.item_text(item)
            assert len(bench.tokenizer.encode(text)) <= n_most


def test_the_groups_of_training_show_them_anew_each_epoch(bench: Workbench) -> None:
    assert bench.config.train is not None
    without, all_of_them = (
        stages._epochs(bench, bench.config.train.model_copy(update={"injections": share}))
        for share in (0.0, 1.0)
    )
    for place in range(len(without)):
        plain, injected = without[place], all_of_them[place]
        assert injected.labels == plain.labels
        assert injected.group.prefix == plain.group.prefix
        assert not set(injected.group.suffixes) & set(plain.group.suffixes)
    all_of_them.set_epoch(1)
    assert all_of_them[0].group.suffixes != all_of_them._first[0].group.suffixes
