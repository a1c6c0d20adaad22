"""Trainings for `test_distributed.py` in two processes: whole, killed and resumed."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Any

import torch
from test_trainer import ANSWERS, CONFIG, GROUPS, PLAIN, VALID, Killed, other_users
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trsr.llm import prefix_attention
from trsr.llm.transformers import load_causal_lm
from trsr.train import distributed, trainer
from trsr.train.config import LoraConfig
from trsr.train.dataset import EpochGroups
from trsr.train.lora import with_adapter
from trsr.train.losses import Objective
from trsr.train.trainer import TrainingReport, train


def learn(model: Path, folder: Path, lora: LoraConfig = PLAIN, **changes: Any) -> TrainingReport:
    """Train in all processes; results equal one process only without dropout, which each draws itself."""
    return train(
        EpochGroups(GROUPS, other_users),
        VALID,
        model=str(model),
        labels=ANSWERS,
        config=CONFIG.model_copy(update={"lora": lora, **changes}),
        checkpoints=folder,
        seed=3,
        device="cpu",
    )[1]


def learn_until(step: int, model: Path, folder: Path, lora: LoraConfig = PLAIN, **changes: Any) -> None:
    """Train until `step` steps are done, then end as a kill would."""
    whole = trainer._GroupTrainer.compute_loss

    def until(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return whole(self, *arguments, **more)

    trainer._GroupTrainer.compute_loss = until  # type: ignore[method-assign]
    try:
        learn(model, folder, lora, **changes)
    except Killed:
        return
    finally:
        trainer._GroupTrainer.compute_loss = whole  # type: ignore[method-assign]


def save_after_a_step(model: Path, folder: Path) -> None:
    """Save the adapter after one gradient step on four users; with FSDP each process holds a shard."""
    base = load_causal_lm(str(model), device="cpu")
    prefix_attention.enable(base, "auto")
    torch.manual_seed(0)
    adapted = with_adapter(base, CONFIG.model_copy(update={"lora": PLAIN})).train()
    objective = Objective(adapted, "joint", ANSWERS)
    with objective.installed(adapted):
        if distributed.is_sharded():
            mesh = init_device_mesh("cpu", (distributed.count(),))
            for layer in base.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(adapted, mesh=mesh)
        objective(adapted, GROUPS[distributed.index() : 4 : distributed.count()]).mean().backward()
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1).step()
    trainer._save_best(adapted, folder / "best", 1.0, 1)


def train_all(model: Path, root: Path) -> None:
    """Train in many ways, each in a folder of its own."""
    learn(model, root / "two")
    learn(model, root / "micro", epochs=1, micro_batch_size=2)
    learn_until(5, model, root / "two_then_one")
    learn(model, root / "one_then_two")
    learn(model, root / "dropout", CONFIG.lora, epochs=1)
    learn_until(3, model, root / "dropout_killed", CONFIG.lora, epochs=1)
    learn(model, root / "dropout_killed", CONFIG.lora, epochs=1)


def fail(model: Path, root: Path) -> None:
    """Raise an error in the middle of a training."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("the loss is broken")

    trainer._GroupTrainer.training_step = broken  # type: ignore[method-assign]
    learn(model, root / "failed")


def shard(model: Path, root: Path) -> None:
    """Save what FSDP trained."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    save_after_a_step(model, root)


def check_threads() -> None:
    """End with exit code 3 if a thread of the processes' connection is still there."""
    names = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    if left := sorted(name for name in names if "gloo" in name):
        print("threads left:", *left, flush=True)
        os._exit(3)


if __name__ == "__main__":
    task = {"learn": train_all, "fail": fail, "shard": shard}[sys.argv[1]]
    if task is not shard:  # torch's caches keep the mesh of sharded tensors, and with it an idle connection
        atexit.register(check_threads)  # called after what `join` registers
    distributed.join(cpu=True)
    assert distributed.count() == 2
    task(Path(sys.argv[2]), Path(sys.argv[3]))
