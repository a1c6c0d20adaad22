"""Fine-tuning learns, resumes after a kill, keeps the best adapter and stops early."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import full_disk
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Trainer

from trsr.errors import EngineError, ModelError, OutputError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.scorer import SharedPrefixScorer
from trsr.train import trainer
from trsr.train.config import LoraConfig, TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup
from trsr.train.trainer import Passes, TrainingReport, train

ANSWERS = LabelTokens(5, 9)
LIKED, OTHERS = 40, (41, 42, 43)
SLOW = pytest.mark.slow


def toy_groups(n: int, seed: int) -> list[TrainingGroup]:
    """Users who all choose the candidate that begins with one token: easy to learn."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(n):
        candidates = rng.permutation([LIKED, *OTHERS]).tolist()
        prefix = tuple(rng.integers(60, 90, 6).tolist())
        suffixes = tuple((candidate, 50, 51) for candidate in candidates)
        groups.append(
            TrainingGroup(ScoringGroup(prefix, suffixes), tuple(int(c == LIKED) for c in candidates))
        )
    return groups


def other_users(epoch: int) -> list[TrainingGroup]:
    """Fresh groups for each epoch, so that a restart in the wrong one shows."""
    return toy_groups(14, 100 + epoch)


GROUPS, VALID = toy_groups(14, 0), toy_groups(4, 1)
# 14 users by 4: four steps an epoch, the last of two users. Dropout makes every step draw random numbers.
CONFIG = TrainConfig(
    learning_rate=0.01, epochs=2, batch_size=4, save_steps=2, patience=9, lora=LoraConfig(r=4, dropout=0.1)
)
PLAIN = LoraConfig(r=4)

Step = list[list[tuple[int, float]]]


def steps(n: int, config: TrainConfig, n_processes: int, epoch: int = 0, seed: int = 3) -> list[Step]:
    """Return what each step reads, a list of passes of all processes."""
    groups = EpochGroups([GROUPS[0]] * n)
    every = [Passes(groups, config, seed, n_processes, index) for index in range(n_processes)]
    for passes in every:
        passes.set_epoch(epoch)
    parts = [list(passes) for passes in every]
    assert {len(part) for part in parts} == {len(every[0])}
    size = every[0].per_step
    return [
        [read for part in parts for read in part[start : start + size]]
        for start in range(0, len(parts[0]), size)
    ]


@pytest.mark.parametrize("n", [14, 16, 17, 3])
@pytest.mark.parametrize(("n_processes", "micro"), [(2, 1), (4, 1), (2, 2), (1, 2), (8, 1), (1, 4)])
def test_any_number_of_processes_reads_the_same_batches_and_counts_users_alike(
    n: int, n_processes: int, micro: int
) -> None:
    one = steps(n, TrainConfig(batch_size=8), 1, epoch=1)
    several = steps(n, TrainConfig(batch_size=8, micro_batch_size=micro), n_processes, epoch=1)
    assert len(one) == len(several) == math.ceil(n / 8)
    for left, right in zip(one, several, strict=True):
        found = [{group for part in step for group, weight in part if weight} for step in (left, right)]
        assert found[0] == found[1]
        # The Trainer divides by the passes of a process, and the processes' gradients are averaged.
        shares = [weight / len(right) for part in right for _, weight in part if weight]
        assert shares == pytest.approx([1 / len(shares)] * len(shares))
        assert n_processes == 1 or {len(part) for part in right} == {micro}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    config = TrainConfig(batch_size=8)
    assert steps(16, config, 2) == steps(16, config, 2)
    assert steps(16, config, 2) != steps(16, config, 2, epoch=1)
    assert steps(16, config, 2) != steps(16, config, 2, seed=4)


Run = Callable[..., tuple[Path, TrainingReport]]


@pytest.fixture(scope="module")
def fine_tune(tiny_model: Path) -> Run:
    def run(
        folder: Path, valid: Sequence[TrainingGroup] = VALID, seed: int = 3, **changes: Any
    ) -> tuple[Path, TrainingReport]:
        return train(
            EpochGroups(GROUPS, other_users),
            valid,
            model=str(tiny_model),
            labels=ANSWERS,
            config=CONFIG.model_copy(update=changes),
            checkpoints=folder,
            seed=seed,
        )

    return run


@pytest.fixture(scope="module")
def unbroken(fine_tune: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingReport]:
    return fine_tune(tmp_path_factory.mktemp("unbroken"))


def column(report: TrainingReport, name: str) -> list[float]:
    return [row[name] for row in report.log if name in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def equal_weights(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_training_that_diverges_is_refused(fine_tune: Run, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"NaN or infinite: .* lower train\.learning_rate"):
        fine_tune(tmp_path / "c", learning_rate=1e30)


@pytest.mark.parametrize("loss", ["answer", "listwise", "joint", "full"])
def test_loss_falls_and_the_adapter_ranks_learned_items_first(
    fine_tune: Run, tmp_path: Path, tiny_model: Path, loss: str
) -> None:
    best, report = fine_tune(tmp_path / "c", loss=loss, epochs=5)
    losses = column(report, "loss")
    assert len(losses) == 5 * 4
    assert report.n_groups == 14
    if loss == "full":
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
        return
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert report.best_recall_sum == 3.0
    model = load_causal_lm(str(tiny_model), device="cpu")
    with quiet_peft():
        model = PeftModel.from_pretrained(model, best).merge_and_unload().eval()
    (group,) = toy_groups(1, 7)
    ((_, margins),) = SharedPrefixScorer(model).score([group.group], ANSWERS)
    assert int(margins.argmax()) == group.labels.index(1)


def test_the_first_losses_have_not_moved(fine_tune: Run, tmp_path: Path) -> None:
    _, report = fine_tune(tmp_path / "c", loss="answer", epochs=1, lora=PLAIN)
    assert column(report, "loss") == pytest.approx([0.91291, 0.48454, 0.35281, 0.42211], abs=2e-3)


def test_training_twice_gives_equal_weights_and_another_seed_does_not(fine_tune: Run, tmp_path: Path) -> None:
    first, report = fine_tune(tmp_path / "a", epochs=1)
    again, same = fine_tune(tmp_path / "b", epochs=1)
    assert equal_weights(first, again)
    assert report == same
    assert not equal_weights(first, fine_tune(tmp_path / "c", epochs=1, seed=2**40)[0])


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 2}, pytest.param({"gradient_checkpointing": True}, marks=SLOW)]
)
def test_settings_of_memory_change_no_result(fine_tune: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain, _ = fine_tune(tmp_path / "a", epochs=1, lora=PLAIN)
    other, _ = fine_tune(tmp_path / "b", epochs=1, lora=PLAIN, **changes)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(plain).items() if "lora_B" in name)


def test_each_epoch_reads_its_own_groups(tiny_model: Path, tmp_path: Path) -> None:
    renewed: list[int] = []

    def renew(epoch: int) -> list[TrainingGroup]:
        renewed.append(epoch)
        return other_users(epoch)

    config, groups = CONFIG.model_copy(update={"epochs": 3}), EpochGroups(GROUPS, renew)
    train(groups, [], model=str(tiny_model), labels=ANSWERS, config=config, checkpoints=tmp_path, seed=3)
    assert renewed == [1, 2]
    assert groups[0, 0.5] == (other_users(2)[0], 0.5)


class Killed(BaseException):
    """Ends a training like a kill: nothing catches it."""


def kill_at_call(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int) -> None:
    """Let call `number` (from 1) of a function end the training before it does anything."""
    whole, calls = getattr(place, name), iter(range(1, 1000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return whole(*args, **kwargs)

    monkeypatch.setattr(place, name, wrapped)


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        pytest.param(trainer._GroupTrainer, "compute_loss", 3, marks=SLOW, id="before any checkpoint"),
        pytest.param(trainer._GroupTrainer, "compute_loss", 13, marks=SLOW, id="in the short last step"),
        pytest.param(trainer._GroupTrainer, "compute_loss", 21, id="in a step of the second epoch"),
        pytest.param(trainer._GroupTrainer, "evaluate", 3, marks=SLOW, id="before a validation"),
        pytest.param(trainer, "_save_best", 1, marks=SLOW, id="before the best is saved"),
        pytest.param(Trainer, "_save_optimizer_and_scheduler", 2, id="a checkpoint with weights only"),
        pytest.param(Trainer, "_save_rng_state", 3, marks=SLOW, id="a checkpoint without random state"),
        pytest.param(trainer, "_best", 4, id="within a validation"),
    ],
)
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    fine_tune: Run, tmp_path: Path, unbroken: tuple[Path, TrainingReport], place: Any, name: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at_call(patch, place, name, number)
        with pytest.raises(Killed):
            fine_tune(tmp_path / "c")
    best, report = fine_tune(tmp_path / "c")
    assert equal_weights(best, unbroken[0])
    assert report == unbroken[1]


def test_training_ends_after_max_steps_with_a_validation(fine_tune: Run, tmp_path: Path) -> None:
    _, report = fine_tune(tmp_path / "c", epochs=5, max_steps=6, evaluations=1)
    assert [row["step"] for row in report.log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in report.log if "eval_recall_sum" in row] == [3, 6]
    rates = column(report, "learning_rate")
    assert rates[-1] < 0.1 * max(rates)  # the schedule is that of the steps that are made


def test_a_checkpoint_that_was_not_written_to_its_end_is_ignored(tmp_path: Path) -> None:
    states = {2: '{"global_step": 2}', 10: '{"global_step": 10}', 12: '{"global', 14: None}
    for step, content in states.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    assert trainer._newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}
    assert trainer._newest_checkpoint(tmp_path / "nothing") is None


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Sets the result of each validation."""

    def script(values: Sequence[float]) -> None:
        every: Iterator[float] = (value for value in values for _ in VALID)
        monkeypatch.setattr(trainer, "recall_sum", lambda *_: next(every))

    return script


Script = Callable[[Sequence[float]], None]


def test_the_adapter_of_the_best_validation_is_kept(fine_tune: Run, tmp_path: Path, scripted: Script) -> None:
    scripted([1.0, 2.0, 0.5, 2.0])
    best, report = fine_tune(tmp_path / "c")
    assert (report.best_step, report.best_recall_sum) == (4, 2.0)  # every second step; the first of equals
    assert column(report, "eval_recall_sum") == [1.0, 2.0, 0.5, 2.0]
    assert not equal_weights(best, tmp_path / "c" / "checkpoint-8")


def test_training_stops_without_improvement_and_stays_stopped(
    fine_tune: Run, tmp_path: Path, scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted([1.0, 2.0, 1.5, 2.0, 3.0, 3.0])
    best, report = fine_tune(tmp_path / "c", epochs=3, patience=2)
    assert column(report, "eval_recall_sum") == [1.0, 2.0, 1.5, 2.0]
    assert max(row["step"] for row in report.log) == 8
    assert report.best_step == 4
    before = (best / "adapter_model.safetensors").read_bytes()
    kill_at_call(monkeypatch, trainer._GroupTrainer, "compute_loss", 1)
    assert fine_tune(tmp_path / "c", epochs=3, patience=2) == (best, report)
    assert (best / "adapter_model.safetensors").read_bytes() == before


def test_a_finished_training_is_not_repeated(
    fine_tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = fine_tune(tmp_path / "c", epochs=1)
    kill_at_call(monkeypatch, trainer._GroupTrainer, "compute_loss", 1)
    assert fine_tune(tmp_path / "c", epochs=1)[1] == report


def test_without_validation_the_last_adapter_is_kept(fine_tune: Run, tmp_path: Path) -> None:
    best, report = fine_tune(tmp_path / "c", valid=[], epochs=1)
    assert (report.best_step, report.best_recall_sum) == (4, 0.0)
    assert equal_weights(best, tmp_path / "c" / "checkpoint-4")
    assert not column(report, "eval_recall_sum")


def test_the_best_adapter_is_replaced_in_one_move(tmp_path: Path) -> None:
    class Adapter:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()

    (tmp_path / "best.new").mkdir()
    (tmp_path / "best.new" / "half").write_text("left by a kill")
    assert trainer._best(tmp_path / "best") == (-1.0, 0)
    for value, step in ((1.0, 5), (2.0, 10)):
        trainer._save_best(Adapter(), tmp_path / "best", value, step)
        assert trainer._best(tmp_path / "best") == (value, step)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.json"]


def test_named_layers_get_the_adapter(fine_tune: Run, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, alpha=8, target_modules=("q_proj", "v_proj"))
    best, _ = fine_tune(tmp_path / "c", epochs=1, lora=lora)
    assert {name.split(".")[-3] for name in weights(best)} == {"q_proj", "v_proj"}
    config = json.loads((best / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 8)
    with pytest.raises(ModelError, match=r"target_modules: [^\n]*$"):
        fine_tune(tmp_path / "d", lora=LoraConfig(target_modules=("nothing_like_it",)))


@pytest.mark.parametrize("space", [pytest.param(1_000, marks=SLOW), 20_000, pytest.param(30_000, marks=SLOW)])
def test_a_full_disk_is_one_sentence_and_the_training_resumes(
    fine_tune: Run, tmp_path: Path, space: int
) -> None:
    with full_disk(space), pytest.raises(OutputError, match="cannot be written"):
        fine_tune(tmp_path / "c", epochs=1)
    assert len(column(fine_tune(tmp_path / "c", epochs=1)[1], "loss")) == 4


def test_a_folder_that_cannot_be_written_is_one_sentence(fine_tune: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"^(?!.*None).*cannot be written"):
        fine_tune(tmp_path / "file" / "c")
