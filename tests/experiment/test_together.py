"""`trsr train` by several processes: the job script, its run, and refusals before training."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import Answer, tiny_run
from helpers import ROOT, launched_twice
from polars.testing import assert_frame_equal

from trsr.errors import ConfigError, OutputError
from trsr.experiment.config import RunConfig
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import check_processes, train_distributed

SBATCH = ROOT / "configs" / "accelerate" / "two_nodes.sbatch"
CHEAP = {"summary": {"method": "none"}, "rankers": ["llm"]}


def on_one_node(folder: Path) -> dict[str, str]:
    """Return what Slurm would set for one machine of two GPUs; its programs are stood in for."""
    folder.mkdir()
    for name, line in (("srun", 'shift; exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    _, environment = launched_twice()
    return environment | {
        "PATH": f"{folder}:{environment['PATH']}",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n1",
        "ACCELERATE_CONFIG": "configs/accelerate/cpu.yaml",
    }


@pytest.mark.slow
@pytest.mark.processes
def test_the_job_script_trains_a_model_that_ranks_as_that_of_one_process(
    trsr: Callable[..., Answer], tiny_model: Path, tmp_path: Path
) -> None:
    content = tiny_run(tiny_model, **CHEAP)
    content["train"] |= {"epochs": 1, "lora": {"r": 4}}
    file, two, one = tmp_path / "c.yaml", tmp_path / "two", tmp_path / "one"
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["bash", SBATCH, file, two],
        env=on_one_node(tmp_path / "bin"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model: ") == 1
    assert done.stderr.count("train: ") == 1
    assert len(json.loads((two / "env.json").read_text())) == 1
    assert json.loads((two / "stages.json").read_text())["train"]["processes"] == 2
    assert not (two / "checkpoints").exists()
    for out in (two, one):
        assert trsr("rank", file, "--out", out).code == 0
    scores = [pl.read_parquet(out / "scores.parquet").drop("score") for out in (two, one)]
    assert_frame_equal(*scores, check_row_order=False, rel_tol=0, abs_tol=1e-4)


def config(model: Path, n_users: int = 2) -> RunConfig:
    content = tiny_run(model, **CHEAP)
    content["train"] |= {"batch_size": n_users}
    return RunConfig.model_validate(content)


def test_a_batch_that_the_processes_cannot_share_is_refused_before_they_meet(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="multiple of 3"):
        check_processes(config(tiny_model))
    check_processes(config(tiny_model, n_users=6))


def test_a_run_folder_that_a_process_does_not_see_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    def elsewhere() -> RunFolder:
        return RunFolder(tmp_path / "mine", config(tiny_model), "trsr train")

    with pytest.raises(OutputError, match="Process 0 does not see") as caught:
        train_distributed(tmp_path / "shared", elsewhere)
    assert "\n" not in str(caught.value)
