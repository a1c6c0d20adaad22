"""Two processes learn what one learns: the same losses, checkpoints either goes on from, one model folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Answer, tiny_run
from safetensors.torch import load_file
from together import adapter_after_a_step, learn, learn_until

from trsr.errors import ModelError
from trsr.train import processes
from trsr.train.sft import _log_rows

ROOT = Path(__file__).parents[2]
CPU = ROOT / "configs" / "accelerate" / "cpu.yaml"
SBATCH = ROOT / "configs" / "accelerate" / "two_nodes.sbatch"
FOLDERS = ("adapter_config.json", "adapter_model.safetensors")


def environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "train")]
    beside = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where accelerate is
    return os.environ | {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": beside}


def losses(folder: Path, steps: int = 8) -> list[float]:
    state = json.loads((folder / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    return [row["loss"] for row in _log_rows(state["log_history"]) if "loss" in row]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of checkpoints by who wrote them."""
    root = tmp_path_factory.mktemp("together")
    learn(tiny_model, root / "one")
    learn(tiny_model, root / "epoch", epochs=1)
    learn(tiny_model, root / "micro_one", epochs=1, micro_batch_size=2)
    learn_until(tiny_model, root / "one_then_two", 5)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CPU]
    command += ["--main_process_port", "0", ROOT / "tests" / "train" / "together.py", tiny_model, root]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (root / "two_then_one" / "checkpoint-4" / "rng_state_1.pth").exists()
    learn(tiny_model, root / "two_then_one")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["two", "two_then_one", "one_then_two"])
def test_two_processes_have_the_losses_of_one(trained: Path, folder: str) -> None:
    assert losses(trained / folder) == pytest.approx(losses(trained / "one"), abs=1e-4)
    ours, theirs = (
        json.loads((trained / name / "best" / "best.json").read_text()) for name in (folder, "one")
    )
    assert ours["step"] == theirs["step"]
    assert ours["recall_sum"] == pytest.approx(theirs["recall_sum"])
    for name in FOLDERS:
        assert (trained / folder / "best" / name).exists()
    left, right = (load_file(trained / name / "best" / FOLDERS[1]) for name in (folder, "one"))
    assert left.keys() == right.keys()


@pytest.mark.slow
def test_unequal_parts_of_the_last_batch_count_by_their_users(trained: Path) -> None:
    assert losses(trained / "micro", 4) == pytest.approx(losses(trained / "epoch", 4), abs=1e-4)
    assert losses(trained / "micro_one", 4) == pytest.approx(losses(trained / "epoch", 4), abs=1e-4)


@pytest.mark.slow
def test_a_model_in_shards_learns_the_same_and_its_adapter_is_put_together(
    trained: Path, tiny_model: Path
) -> None:
    found = torch.load(trained / "sharded.pt")
    alone = adapter_after_a_step(tiny_model, sharded=False)
    assert found.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(found[name], weights, msg=name)


def test_fsdp_on_cpus_is_one_sentence(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "is_sharded", lambda: True)
    with pytest.raises(ModelError, match="GPUs only"):
        learn(tiny_model, tmp_path)


def test_the_job_script_has_no_syntax_error() -> None:
    assert subprocess.run(["bash", "-n", SBATCH], check=False).returncode == 0


@pytest.mark.slow
def test_the_job_script_trains_a_model_that_rank_reads(
    trsr: Callable[..., Answer], tiny_model: Path, tmp_path: Path
) -> None:
    content = tiny_run(tiny_model, summary={"method": "none"}, rankers=["llm"])
    content["train"] |= {"epochs": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "bin").mkdir()
    for name, line in (("srun", 'shift; exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    found = environment()
    slurm = {
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(os.getpid()),
    }
    found |= slurm | {"SLURM_JOB_NODELIST": "n1", "ACCELERATE_CONFIG": str(CPU)}
    found["PATH"] = f"{tmp_path / 'bin'}:{found['PATH']}"
    bash = shutil.which("bash") or "bash"
    command = [bash, SBATCH, tmp_path / "c.yaml", tmp_path / "out"]
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model: ") == 1
    assert len(json.loads((tmp_path / "out" / "env.json").read_text())) == 1
    assert json.loads((tmp_path / "out" / "stages.json").read_text())["train"]["processes"] == 2
    assert trsr("rank", tmp_path / "c.yaml", "--out", tmp_path / "out").code == 0


def test_other_commands_are_not_done_by_several_processes(
    trsr: Callable[..., Answer], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = trsr("run", config_file, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "trsr train" in answer.err
    assert not (tmp_path / "out").exists()
