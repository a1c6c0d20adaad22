"""Training that starts with the model of an earlier run: it continues from there, without leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from conftest import open_experiment
from safetensors.torch import load_file

from trsr.errors import ConfigError, LeakageError, RunMismatchError
from trsr.experiment.config import load_config
from trsr.experiment.experiment import Experiment
from trsr.experiment.stages import run_stages
from trsr.recommend.model_folder import read_adapter_info


def start(config: Path, out: Path, model: Path, *changes: str) -> Experiment:
    """Open a run that starts with a model and draws other negatives."""
    wanted = [f"train.warm_start={model}", "protocol.negatives.kind=popularity", *changes]
    return open_experiment(config, out, *wanted)


def weights(model: Path) -> bytes:
    return (model / "adapter_model.safetensors").read_bytes()


def test_no_epochs_take_the_model_as_it_is_and_calibrate_it_again(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    experiment = start(config_file, tmp_path / "run", finished_run / "model", "train.epochs=0")
    run_stages(experiment)
    model = tmp_path / "run" / "model"
    assert weights(model) == weights(finished_run / "model")
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log"]
    assert [row["step"] for row in log] == [0]
    assert read_adapter_info(model).metrics["valid_recall_sum"] == log[0]["eval_recall_sum"]
    checked = json.loads((tmp_path / "run" / "metrics.json").read_text())["leakage"]["checked"]
    assert checked["examples_against_warm_start"] == 15
    written = pl.read_parquet(tmp_path / "run" / "profiles.parquet")
    assert len(written) == 15, "no profile is paid for that only training would show"


def test_training_goes_on_from_the_model_and_cannot_end_worse(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    run_stages(
        start(config_file, tmp_path / "run", finished_run / "model", "train.learning_rate=1e-9"), "train"
    )
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log"]
    assert next(row["step"] for row in log if "eval_recall_sum" in row) == 0
    before, after = (
        load_file(run / "model" / "adapter_model.safetensors") for run in (finished_run, tmp_path / "run")
    )
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-6
    assert max(float(weight.abs().max()) for name, weight in before.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize("seed", [8, 9])
def test_a_model_that_has_seen_a_target_is_refused(
    config_file: Path, finished_run: Path, tmp_path: Path, seed: int
) -> None:
    experiment = start(config_file, tmp_path / "run", finished_run / "model", f"seed={seed}")
    data = finished_run / "data"
    shutil.copytree(data, tmp_path / "run" / "data")  # the same users, divided otherwise
    experiment.folder.write_json("stages.json", {"data": {"seconds": 0.0}})
    with pytest.raises(LeakageError, match="has seen the target"):
        run_stages(experiment, "train")
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_without_the_examples_it_has_seen_is_refused(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run / "model", tmp_path / "alone" / "model")
    with pytest.raises(LeakageError, match="is unknown; leave the model"):
        run_stages(start(config_file, tmp_path / "run", tmp_path / "alone" / "model"), "train")


def test_what_an_ancestor_has_seen_counts(config_file: Path, finished_run: Path, tmp_path: Path) -> None:
    child = tmp_path / "child"
    shutil.copytree(finished_run, child)
    info = json.loads((child / "model" / "trsr.json").read_text())
    info["training"]["warm_start"] = str(tmp_path / "gone" / "model")
    (child / "model" / "trsr.json").write_text(json.dumps(info))
    with pytest.raises(LeakageError, match="gone holds no examples"):
        run_stages(start(config_file, tmp_path / "run", child / "model"), "train")


def test_another_lora_or_no_model_is_refused(config_file: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunMismatchError, match=r"train\.lora is"):
        run_stages(start(config_file, tmp_path / "a", finished_run / "model", "train.lora.r=8"), "train")
    with pytest.raises(RunMismatchError, match="no model folder"):
        run_stages(start(config_file, tmp_path / "b", tmp_path / "nothing"), "train")


def test_a_model_of_another_template_is_refused_before_summaries_are_paid_for(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunMismatchError, match="as version of the template 'products'"):
        run_stages(
            start(config_file, tmp_path / "run", finished_run / "model", "prompt.template=news"), "summarize"
        )
    assert not (tmp_path / "run" / "profiles.parquet").exists()


def test_no_epochs_without_a_model_train_nothing(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="epochs 0 trains nothing"):
        load_config(config_file, ["train.epochs=0"])
