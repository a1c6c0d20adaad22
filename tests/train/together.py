"""What `test_together.py` starts in two processes: trainings, whole, killed and gone on with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from test_sft import ANSWERS, CONFIG, GROUPS, VALID, Killed, other_users

from trsr.train import processes, sft
from trsr.train.config import LoraConfig
from trsr.train.dataset import EpochGroups
from trsr.train.sft import TrainingReport, train


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


if __name__ == "__main__":
    model, root = Path(sys.argv[1]), Path(sys.argv[2])
    processes.join(cpu=True)
    assert processes.count() == 2
    learn(model, root / "two")
    learn(model, root / "micro", epochs=1, micro_batch_size=2)
    learn_until(model, root / "two_then_one", 5)
    learn(model, root / "one_then_two")
    processes.wait()
    processes.leave()
