"""One fine-tuned model is asked with the profile of its run, a counted one and none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import bench_of, tiny_run

from trsr.errors import ConfigError
from trsr.experiment import ranking, stages
from trsr.experiment.config import OWN_MODEL
from trsr.experiment.experiment import Workbench, summarised
from trsr.experiment.stages import run_stages
from trsr.experiment.variants import profile_pair
from trsr.recommend.calibration import Calibration
from trsr.train.dataset import profile_kind

TRAIN = {
    "learning_rate": 0.01,
    "epochs": 2,
    "batch_size": 2,
    "evaluations": 1,
    "lora": {"r": 2, "dropout": 0.0},
    "resample_negatives": False,
    "profiles": {"none": 0.4, "counted": 0.3},
}


@pytest.fixture(scope="module")
def asked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("kinds")
    content = tiny_run(tiny_model, train=TRAIN, rankers=["random", *OWN_MODEL])
    bench = bench_of(content, folder / "run")
    run_stages(bench)
    return bench


def test_each_kind_is_read_with_its_own_text(asked: Workbench) -> None:
    scores = pl.read_parquet(asked.folder.path / "scores.parquet")
    texts = {"own": asked.profiles, "counted": asked.counted_profiles, "none": dict[str, str]()}
    seen = []
    for name, kind in OWN_MODEL.items():
        rows = scores.filter(ranker=name)
        for example in asked.splits.test:
            built = asked.builder.build(
                example.history, texts[kind].get(example.example_id, ""), example.candidates
            )
            lengths = [len(built.group.prefix) + len(suffix) for suffix in built.group.suffixes]
            assert rows.filter(example_id=example.example_id)["n_prompt_tokens"].to_list() == lengths
        seen.append(rows["margin"].to_list())
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_all_kinds_have_the_calibration_of_their_one_model(asked: Workbench) -> None:
    scores = pl.read_parquet(asked.folder.path / "scores.parquet")
    calibration = Calibration("platt", a=2.0, b=1.0)
    calibrated = ranking._calibrated(scores, calibration)
    own = pl.col("ranker").is_in(list(OWN_MODEL))
    rows = calibrated.filter(own)
    np.testing.assert_allclose(rows["score"], calibration.apply(rows["margin"].to_numpy()), rtol=1e-6)
    assert calibrated.filter(~own).equals(scores.filter(~own), null_equal=True)


def test_what_the_profile_adds_is_asked_of_the_same_weights(asked: Workbench) -> None:
    assert profile_pair(asked.config) == ("llm", "llm_no_profile")
    metrics = json.loads((asked.folder.path / "metrics.json").read_text())
    assert {"llm", "llm_no_profile"} in [{c["a"], c["b"]} for c in metrics["comparisons"]]


def test_training_shows_every_user_the_kind_that_was_drawn(asked: Workbench) -> None:
    assert asked.config.train is not None
    epochs = stages._epochs(asked, asked.config.train)
    mix, train = asked.config.train.profiles, asked.splits.train
    for epoch in (0, 1):
        epochs.set_epoch(epoch)
        kinds = [profile_kind(mix, asked.config.seed, e.example_id, epoch) for e in train]
        assert len(set(kinds)) > 1
        for place, (example, kind) in enumerate(zip(train, kinds, strict=True)):
            text = "" if kind == "none" else asked.profiles_as(kind)[example.example_id]
            prefix = asked.builder.build(example.history, text, example.candidates).group.prefix
            assert epochs[place, 1.0][0].group.prefix == prefix


def test_profiles_are_written_for_those_examples_only_that_are_shown_with_one(asked: Workbench) -> None:
    assert asked.config.train is not None
    mix, splits = asked.config.train.profiles, asked.splits
    shown = {
        e.example_id
        for e in splits.train
        if "own" in [profile_kind(mix, asked.config.seed, e.example_id, epoch) for epoch in (0, 1)]
    }
    assert 0 < len(shown) < len(splits.train)
    assert set(asked.profiles) == shown | {e.example_id for e in [*splits.valid, *splits.test]}
    assert asked.folder.stages()["summarize"]["profiles"] == len(asked.profiles)


def test_without_fine_tuning_training_users_get_no_profile(asked: Workbench) -> None:
    untrained = asked.config.model_copy(update={"train": None})
    assert summarised(asked.splits, untrained) == [*asked.splits.valid, *asked.splits.test]


def test_a_model_is_not_asked_in_a_way_it_never_learned(tiny_model: Path, tmp_path: Path) -> None:
    train = TRAIN | {"profiles": {"none": 0.4}}
    with pytest.raises(ConfigError, match=r"`llm_counted` .* train\.profiles\.counted a share"):
        bench_of(tiny_run(tiny_model, train=train, rankers=list(OWN_MODEL)), tmp_path / "run")
