"""What `test_together.py` starts in two processes: trainings, whole, killed and gone on with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from test_sft import ANSWERS, CONFIG, GROUPS, VALID, Killed, other_users
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trsr.llm import shared_attention
from trsr.llm.transformers import load_causal_lm
from trsr.train import processes, sft
from trsr.train.config import LoraConfig
from trsr.train.dataset import EpochGroups
from trsr.train.objective import Objective
from trsr.train.sft import TrainingReport, train, with_adapter


def learn(model: Path, folder: Path, **changes: Any) -> TrainingReport:
    """Train without dropout, so that every process count draws the same numbers."""
    config = CONFIG.model_copy(update={"lora": LoraConfig(r=4), **changes})
    groups = EpochGroups(GROUPS, other_users)
    return train(
        groups,
        VALID,
        model=str(model),
        labels=ANSWERS,
        config=config,
        checkpoints=folder,
        seed=3,
        device="cpu",
    )[1]


def learn_until(model: Path, folder: Path, step: int) -> None:
    """Train until `step` steps are done, then end as a kill would."""
    whole = sft._GroupTrainer.compute_loss

    def until(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == step:
            raise Killed
        return whole(self, *arguments, **more)

    sft._GroupTrainer.compute_loss = until  # type: ignore[method-assign]
    try:
        learn(model, folder)
    except Killed:
        return
    finally:
        sft._GroupTrainer.compute_loss = whole  # type: ignore[method-assign]


def adapter_after_a_step(model: Path, sharded: bool) -> dict[str, torch.Tensor]:
    """Return a whole adapter after a plain gradient step on four users, of a model in shards or whole."""
    base = load_causal_lm(str(model), device="cpu")
    shared_attention.enable(base, "auto")
    torch.manual_seed(0)
    adapted = with_adapter(base, CONFIG.model_copy(update={"lora": LoraConfig(r=4)})).train()
    objective = Objective(adapted, "joint", ANSWERS)
    with objective.installed(adapted):
        if sharded:
            mesh = init_device_mesh("cpu", (processes.count(),))
            for layer in base.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(adapted, mesh=mesh)
        objective(adapted, GROUPS[processes.index() : 4 : processes.count()]).mean().backward()
    learning = {name: weights for name, weights in adapted.named_parameters() if weights.requires_grad}
    torch.optim.SGD(learning.values(), lr=0.1).step()
    if sharded:
        return sft._whole_adapter(adapted)
    return {name: weights.detach() for name, weights in learning.items()}


if __name__ == "__main__":
    model, root = Path(sys.argv[1]), Path(sys.argv[2])
    processes.join(cpu=True)
    assert processes.count() == 2
    learn(model, root / "two")
    learn(model, root / "micro", epochs=1, micro_batch_size=2)
    learn_until(model, root / "two_then_one", 5)
    learn(model, root / "one_then_two")
    adapter = adapter_after_a_step(model, sharded=True)
    if processes.is_main():
        torch.save(adapter, root / "sharded.pt")
    processes.wait()
    processes.leave()
