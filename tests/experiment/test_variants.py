"""Variants and kinds of profile: more models that answer the questions of one run and share its summaries."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import experiment_of, tiny_run

from trsr.errors import ConfigError, RunMismatchError
from trsr.experiment import ranking, stages
from trsr.experiment.config import OWN_MODEL, RunConfig
from trsr.experiment.experiment import Experiment, summarized
from trsr.experiment.stages import run_stages
from trsr.experiment.variants import profile_pair
from trsr.recommend.calibration import Calibration
from trsr.train.dataset import profile_kind

TRAIN = {
    "learning_rate": 0.01,
    "epochs": 1,
    "batch_size": 2,
    "evaluations": 1,
    "lora": {"r": 2, "dropout": 0.0},
}
RANKERS = ["random", "llm"]


def open_run(model: Path, out: Path, **changes: Any) -> Experiment:
    return experiment_of(tiny_run(model, **({"train": TRAIN, "rankers": RANKERS} | changes)), out)


VARIANTS: dict[str, Any] = {
    "variants": {"no_profile": {"summary.method": "none"}},
    "sweep": {"prompt.n_recent": [0, 2], "protocol.negatives.n_train": [1]},
}
NAMES = ["no_profile", "n_recent=0", "n_train=1"]


@pytest.fixture(scope="module")
def with_variants(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = open_run(tiny_model, tmp_path_factory.mktemp("variants") / "run", **VARIANTS)
    run_stages(experiment)
    return experiment


def margins(run: Path, ranker: str) -> list[float]:
    return pl.read_parquet(run / "scores.parquet").filter(ranker=ranker)["margin"].to_list()


def test_every_variant_is_a_ranker_of_its_run(with_variants: Experiment) -> None:
    run = with_variants.folder.path
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["rankers"]) == sorted([*RANKERS, *NAMES])
    assert metrics["sweep"] == {
        "prompt.n_recent": {"0": "n_recent=0", "2": "llm"},
        "protocol.negatives.n_train": {"2": "llm", "1": "n_train=1"},
    }
    assert all("logloss" in metrics["rankers"][name] for name in NAMES)
    for name in NAMES:
        assert margins(run, name) == margins(run / "variants" / name, "llm") != margins(run, "llm")
    report = (run / "report.html").read_text()
    assert "Effect of each setting" in report
    assert "prompt.n_recent" in report


def test_what_the_profile_adds_is_compared_on_every_slice(with_variants: Experiment) -> None:
    assert profile_pair(with_variants.config) == ("llm", "no_profile")
    metrics = json.loads((with_variants.folder.path / "metrics.json").read_text())
    assert list(metrics["slices"]) == list(metrics["protocol"]["slices"])
    pairs = [pair for parts in metrics["slices"].values() for part in parts for pair in part["comparisons"]]
    assert {(pair["a"], pair["b"]) for pair in pairs} == {("llm", "no_profile")}
    assert {pair["metric"] for pair in pairs} == {pair["metric"] for pair in metrics["comparisons"]}


def test_only_a_variant_that_differs_in_nothing_else_stands_for_no_profile(
    with_variants: Experiment,
) -> None:
    settings = with_variants.config.model_dump(mode="json")
    both = settings | {"variants": {"other": {"summary.method": "none", "prompt.n_recent": 0}}, "sweep": {}}
    assert profile_pair(RunConfig.model_validate(both)) is None
    of_sweep = settings | {"variants": {}, "sweep": {"summary.method": ["none", "counted"]}}
    assert profile_pair(RunConfig.model_validate(of_sweep)) == ("llm", "method=none")
    none = settings | {"variants": {}, "sweep": {}, "summary": {"method": "none"}}
    assert profile_pair(RunConfig.model_validate(none)) is None


def test_a_variant_differs_where_it_says_and_nowhere_else(with_variants: Experiment) -> None:
    run = with_variants.folder.path
    for name, part, setting, value in [
        ("no_profile", "summary", "method", "none"),
        ("n_recent=0", "prompt", "n_recent", 0),
    ]:
        whole = yaml.safe_load((run / "config.yaml").read_text())
        other = yaml.safe_load((run / "variants" / name / "config.yaml").read_text())
        whole[part][setting] = value
        for key in ("rankers", "variants", "sweep"):
            del whole[key], other[key]
        assert other == whole
    profiles = pl.read_parquet(run / "variants" / "no_profile" / "profiles.parquet")
    assert profiles["text"].unique().to_list() == [""]
    assert pl.read_parquet(run / "variants" / "n_train=1" / "examples" / "train.parquet")[
        "labels"
    ].list.len().unique().to_list() == [2]


def test_equal_summaries_are_written_once(with_variants: Experiment) -> None:
    run = with_variants.folder.path
    assert not list(run.glob("variants/*/summaries.sqlite"))
    facts = json.loads((run / "variants" / "n_recent=0" / "stages.json").read_text())["summarize"]
    assert (facts["calls_made"], facts["calls_from_store"]) == (0, facts["calls"])
    with sqlite3.connect(run / "summaries.sqlite") as db:
        assert db.execute("SELECT max(n_attempts) FROM summaries").fetchone() == (1,)


@pytest.mark.slow
def test_a_run_broken_off_between_variants_makes_no_model_twice(
    tiny_model: Path, tmp_path: Path, with_variants: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    real = stages.fine_tune

    def count(experiment: Experiment) -> dict[str, Any]:
        if len(trained) == 2:
            trained.append("broken off")
            raise KeyboardInterrupt
        trained.append(experiment.folder.path.name)
        return real(experiment)

    monkeypatch.setitem(stages.STAGES, "train", count)
    with pytest.raises(KeyboardInterrupt):
        run_stages(open_run(tiny_model, tmp_path / "run", **VARIANTS))
    run_stages(open_run(tiny_model, tmp_path / "run", **VARIANTS))
    assert trained == ["run", "no_profile", "broken off", "n_recent=0", "n_train=1"]
    whole = with_variants.folder.path
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


@pytest.mark.slow
def test_a_finished_run_takes_more_rankers_and_variants_and_asks_only_those(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run_stages(open_run(tiny_model, out))
    before = margins(out, "llm")
    ranked: list[str] = []
    real = ranking.make_ranker

    def note(experiment: Experiment, name: Any, **how: Any) -> Any:
        ranked.append(f"{experiment.folder.path.name}:{name}")
        return real(experiment, name, **how)

    monkeypatch.setattr(ranking, "make_ranker", note)
    more = {"rankers": ["popularity", *RANKERS], "variants": {"no_profile": {"summary.method": "none"}}}
    run_stages(open_run(tiny_model, out, **more))
    assert ranked == ["no_profile:llm", "no_profile:llm", "run:popularity"]  # validation, test
    assert margins(out, "llm") == before
    assert set(json.loads((out / "metrics.json").read_text())["rankers"]) == {
        "popularity",
        *RANKERS,
        "no_profile",
    }


def test_other_settings_of_a_baseline_that_was_finished_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    open_run(tiny_model, tmp_path / "run", rankers=["embedding"])
    with pytest.raises(RunMismatchError, match=r"baselines\.embedding"):
        open_run(
            tiny_model, tmp_path / "run", rankers=["embedding"], baselines={"embedding": {"n_recent": 3}}
        )
    other = {"embedding": {"model": str(tiny_model)}, "sasrec": {"dim": 32}}
    open_run(tiny_model, tmp_path / "run", rankers=["embedding"], baselines=other)


def test_a_variant_with_other_test_examples_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"variants": {"easier": {"protocol.negatives.n_test": 3}}}
    experiment = open_run(tiny_model, tmp_path / "run", train=None, rankers=["llm_zero_shot"], **changes)
    with pytest.raises(ConfigError, match=r"variants\.easier: its test examples differ from the run's"):
        run_stages(experiment)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {"llm": {"prompt.n_recent": 1}}}, "variants.llm: the name must be letters"),
        ({"variants": {"a/b": {"prompt.n_recent": 1}}}, "variants.a/b: the name must be letters"),
        ({"variants": {"x": {"seed": 1}}}, "variants.x: seed cannot vary within a run"),
        ({"variants": {"x": {"prompt.n_recnt": 1}}}, "variants.x: prompt.n_recnt is no setting"),
        ({"sweep": {"prompt.n_recent": [-1]}}, "variants.n_recent=-1: prompt.n_recent: found -1"),
    ],
)
def test_a_variant_that_cannot_be_is_one_sentence(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_run(tiny_model, tmp_path / "run", **changes)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


MIXED = TRAIN | {
    "epochs": 2,
    "resample_negatives": False,
    "profiles": {"none": 0.4, "counted": 0.3},
}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("kinds")
    content = tiny_run(tiny_model, train=MIXED, rankers=["random", *OWN_MODEL])
    experiment = experiment_of(content, folder / "run")
    run_stages(experiment)
    return experiment


def test_each_kind_is_read_with_its_own_text(finished: Experiment) -> None:
    scores = pl.read_parquet(finished.folder.path / "scores.parquet")
    texts = {"own": finished.profiles, "counted": finished.counted_profiles, "none": dict[str, str]()}
    seen = []
    for name, kind in OWN_MODEL.items():
        rows = scores.filter(ranker=name)
        for example in finished.splits.test:
            built = finished.builder.build(
                example.history, texts[kind].get(example.example_id, ""), example.candidates
            )
            lengths = [len(built.group.prefix) + len(suffix) for suffix in built.group.suffixes]
            assert rows.filter(example_id=example.example_id)["n_prompt_tokens"].to_list() == lengths
        seen.append(rows["margin"].to_list())
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_all_kinds_have_the_calibration_of_their_one_model(finished: Experiment) -> None:
    scores = pl.read_parquet(finished.folder.path / "scores.parquet")
    calibration = Calibration("platt", a=2.0, b=1.0)
    calibrated = ranking._calibrated(scores, calibration)
    own = pl.col("ranker").is_in(list(OWN_MODEL))
    rows = calibrated.filter(own)
    np.testing.assert_allclose(rows["score"], calibration.apply(rows["margin"].to_numpy()), rtol=1e-6)
    assert calibrated.filter(~own).equals(scores.filter(~own), null_equal=True)


def test_profile_pair_compares_the_same_weights(finished: Experiment) -> None:
    assert profile_pair(finished.config) == ("llm", "llm_no_profile")
    metrics = json.loads((finished.folder.path / "metrics.json").read_text())
    assert {"llm", "llm_no_profile"} in [{c["a"], c["b"]} for c in metrics["comparisons"]]


def test_training_shows_every_user_the_kind_that_was_drawn(finished: Experiment) -> None:
    assert finished.config.train is not None
    epochs = stages._epochs(finished, finished.config.train)
    mix, train = finished.config.train.profiles, finished.splits.train
    for epoch in (0, 1):
        epochs.set_epoch(epoch)
        kinds = [profile_kind(mix, finished.config.seed, e.example_id, epoch) for e in train]
        assert len(set(kinds)) > 1
        for place, (example, kind) in enumerate(zip(train, kinds, strict=True)):
            text = "" if kind == "none" else finished.profiles_as(kind)[example.example_id]
            prefix = finished.builder.build(example.history, text, example.candidates).group.prefix
            assert epochs[place, 1.0][0].group.prefix == prefix


def test_profiles_are_written_for_those_examples_only_that_are_shown_with_one(finished: Experiment) -> None:
    assert finished.config.train is not None
    mix, splits = finished.config.train.profiles, finished.splits
    shown = {
        e.example_id
        for e in splits.train
        if "own" in [profile_kind(mix, finished.config.seed, e.example_id, epoch) for epoch in (0, 1)]
    }
    assert 0 < len(shown) < len(splits.train)
    assert set(finished.profiles) == shown | {e.example_id for e in [*splits.valid, *splits.test]}
    assert finished.folder.stages()["summarize"]["profiles"] == len(finished.profiles)


def test_without_fine_tuning_training_users_get_no_profile(finished: Experiment) -> None:
    untrained = finished.config.model_copy(update={"train": None})
    assert summarized(finished.splits, untrained) == [*finished.splits.valid, *finished.splits.test]


def test_a_model_is_not_finished_in_a_way_it_never_learned(tiny_model: Path, tmp_path: Path) -> None:
    train = MIXED | {"profiles": {"none": 0.4}}
    with pytest.raises(ConfigError, match=r"`llm_counted` .* train\.profiles\.counted a share"):
        experiment_of(tiny_run(tiny_model, train=train, rankers=list(OWN_MODEL)), tmp_path / "run")
