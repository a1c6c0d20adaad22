"""Two processes train like one: the same losses, exchangeable checkpoints, one adapter."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeOnce
from helpers import launched_twice
from safetensors.torch import load_file
from two_processes import learn, learn_until, save_after_a_step

from trsr.errors import EngineError, ModelError, RunMismatchError
from trsr.train import distributed
from trsr.train.trainer import _log_rows

SCRIPT = Path(__file__).with_name("two_processes.py")


def in_two_processes(function: Any) -> Any:
    return pytest.mark.slow(pytest.mark.processes(function))


def losses(folder: Path, steps: int = 8) -> list[float]:
    state = json.loads((folder / f"checkpoint-{steps}" / "trainer_state.json").read_text())
    found = [row["loss"] for row in _log_rows(state["log_history"]) if "loss" in row]
    assert len(found) == steps
    return found


def assert_close_weights(left: Path, right: Path, tolerance: float) -> None:
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (left, right))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=tolerance, msg=name)


def run_twice(task: str, model: Path, root: Path) -> subprocess.CompletedProcess[str]:
    command, environment = launched_twice(SCRIPT, task, model, root)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, make_once: MakeOnce) -> Path:
    """Folders of checkpoints by who wrote them."""
    return make_once("processes", lambda root: train_alone_and_together(tiny_model, root))


def train_alone_and_together(tiny_model: Path, root: Path) -> None:
    learn(tiny_model, root / "one")
    learn(tiny_model, root / "epoch", epochs=1)
    learn_until(5, tiny_model, root / "one_then_two")
    done = run_twice("learn", tiny_model, root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "two_then_one" / "checkpoint-4" / "rng_state_1.pth").exists()
    learn(tiny_model, root / "two_then_one")


@in_two_processes
@pytest.mark.parametrize("folder", ["two", "two_then_one", "one_then_two"])
def test_two_processes_have_the_losses_of_one(trained: Path, folder: str) -> None:
    assert losses(trained / folder) == pytest.approx(losses(trained / "one"), abs=1e-4)
    notes = [json.loads((trained / name / "best" / "best.json").read_text()) for name in (folder, "one")]
    assert notes[0] == notes[1]
    assert_close_weights(trained / folder / "best", trained / "one" / "best", 1e-4)


@in_two_processes
def test_unequal_parts_of_the_last_batch_count_by_their_users(trained: Path) -> None:
    assert losses(trained / "micro", 4) == pytest.approx(losses(trained / "epoch", 4), abs=1e-4)


@in_two_processes
def test_two_killed_processes_end_with_the_weights_of_two_unbroken_ones(trained: Path) -> None:
    assert losses(trained / "dropout_killed", 4) == losses(trained / "dropout", 4)
    killed, unbroken = (trained / name / "checkpoint-4" for name in ("dropout_killed", "dropout"))
    assert_close_weights(killed, unbroken, 0)
    states = [torch.load(unbroken / f"rng_state_{i}.pth", weights_only=False)["cpu"] for i in (0, 1)]
    assert not torch.equal(*states)  # each process draws its own dropout


@in_two_processes
def test_sharded_model_learns_the_same_and_saves_a_whole_adapter(tiny_model: Path, tmp_path: Path) -> None:
    done = run_twice("shard", tiny_model, tmp_path / "sharded")
    assert done.returncode == 0, done.stdout + done.stderr
    save_after_a_step(tiny_model, tmp_path)
    assert_close_weights(tmp_path / "sharded" / "best", tmp_path / "best", 1e-5)
    weights = load_file(tmp_path / "sharded" / "best" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)


@in_two_processes
def test_an_error_in_training_ends_both_processes_with_its_traceback_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    done = run_twice("fail", tiny_model, tmp_path)
    assert done.returncode == 1
    assert "ValueError: the loss is broken" in done.stderr
    assert "exitcode  : 1 " in done.stderr, done.stdout + done.stderr  # not SIGABRT, nor a thread left
    assert "exitcode  : -6" not in done.stderr
    assert "exitcode  : 3" not in done.stderr


def test_fsdp_on_cpus_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_sharded", lambda: True)
    with pytest.raises(ModelError, match=r"FSDP: found the device cpu, .* expected GPUs"):
        learn(tiny_model, tmp_path)


@pytest.mark.slow
def test_checkpoints_without_shards_are_not_resumed_in_shards(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_until(3, tiny_model, tmp_path)
    monkeypatch.setattr(distributed, "is_sharded", lambda: True)
    monkeypatch.setattr("trsr.train.trainer._check_shardable", lambda *_: None)
    with pytest.raises(RunMismatchError, match="without FSDP"):
        learn(tiny_model, tmp_path)


def test_a_process_is_known_by_its_launcher_and_only_the_main_one_prints_before_they_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # without a rank, somebody else's
    assert (distributed.count(), distributed.index(), distributed.is_main()) == (1, 0, True)
    assert distributed.gather(3) == [3]
    assert distributed.agree("x") == "x"
    assert distributed.prints_error(EngineError("of this process"))
    distributed.wait()
    distributed.leave()
    monkeypatch.setenv("RANK", "3")
    assert (distributed.count(), distributed.index(), distributed.is_main()) == (4, 3, False)
    assert not distributed.prints_error(EngineError("that all of them find"))
    assert not distributed.is_sharded()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distributed.is_sharded()
