"""Fine-tuning: it learns, it survives being killed, it keeps the best adapter and knows when to stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import random_model
from transformers import Trainer

from trsr.errors import EngineError, ModelError, OutputError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.scorer import SharedPrefixScorer
from trsr.train import trainer
from trsr.train.config import LoraConfig, TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup
from trsr.train.lora import experts_without_adapter
from trsr.train.trainer import TrainingReport, train

ANSWERS = LabelTokens(5, 9)
LIKED, OTHERS = 40, (41, 42, 43)


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
SLOW = pytest.mark.slow
CONFIG = TrainConfig(
    learning_rate=0.01, epochs=2, batch_size=4, save_steps=2, patience=9, lora=LoraConfig(r=4, dropout=0.1)
)


@pytest.fixture
def fine_tune(tiny_model: Path) -> Callable[..., tuple[Path, TrainingReport]]:
    def run(
        folder: Path, valid: Sequence[TrainingGroup] = VALID, **changes: Any
    ) -> tuple[Path, TrainingReport]:
        return train(
            EpochGroups(GROUPS, other_users),
            valid,
            model=str(tiny_model),
            labels=ANSWERS,
            config=CONFIG.model_copy(update=changes),
            checkpoints=folder,
            seed=3,
        )

    return run


Run = Callable[..., tuple[Path, TrainingReport]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_equal_weights(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_training_that_diverges_is_no_best_model(fine_tune: Run, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"NaN or infinite: .* lower train\.learning_rate"):
        fine_tune(tmp_path / "c", learning_rate=1e30)


@pytest.mark.parametrize("loss", ["answer", "listwise", "joint", "full"])
def test_the_loss_goes_down_and_validation_improves(fine_tune: Run, tmp_path: Path, loss: str) -> None:
    _, report = fine_tune(tmp_path / "c", loss=loss, epochs=5)
    losses = [row["loss"] for row in report.log if "loss" in row]
    assert len(losses) == 5 * 4
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    if loss != "full":
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
        assert report.best_recall_sum == 3.0
    assert report.n_groups == 14


def test_a_trained_adapter_ranks_what_it_learned_first(
    fine_tune: Run, tmp_path: Path, tiny_model: Path
) -> None:
    best, _ = fine_tune(tmp_path / "c", epochs=5)
    model = load_causal_lm(str(tiny_model), device="cpu")
    with quiet_peft():
        model = PeftModel.from_pretrained(model, best).merge_and_unload().eval()
    (group,) = toy_groups(1, 7)
    ((_, margins),) = SharedPrefixScorer(model).score([group.group], ANSWERS)
    assert int(margins.argmax()) == group.labels.index(1)


def test_the_first_losses_have_not_moved(fine_tune: Run, tmp_path: Path) -> None:
    _, report = fine_tune(tmp_path / "c", loss="answer", epochs=1, lora=LoraConfig(r=4))
    losses = [row["loss"] for row in report.log if "loss" in row]
    assert losses == pytest.approx([0.91291, 0.48454, 0.35281, 0.42211], abs=2e-3)


def test_training_twice_gives_equal_weights_and_another_seed_does_not(
    fine_tune: Run, tmp_path: Path, tiny_model: Path
) -> None:
    first, report = fine_tune(tmp_path / "a", epochs=1)
    again, same = fine_tune(tmp_path / "b", epochs=1)
    assert_equal_weights(first, again)
    assert report == same
    other, _ = train(
        EpochGroups(GROUPS),
        VALID,
        model=str(tiny_model),
        labels=ANSWERS,
        config=CONFIG.model_copy(update={"epochs": 1}),
        checkpoints=tmp_path / "c",
        seed=2**40,
    )
    assert any(not torch.equal(tensor, weights(other)[name]) for name, tensor in weights(first).items())


@pytest.mark.slow
def test_activation_checkpointing_learns_the_same(fine_tune: Run, tmp_path: Path) -> None:
    plain, _ = fine_tune(tmp_path / "a", epochs=1, lora=LoraConfig(r=4))
    saving, _ = fine_tune(tmp_path / "b", epochs=1, lora=LoraConfig(r=4), gradient_checkpointing=True)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(saving)[name], tensor, msg=name)
    assert any(tensor.abs().sum() > 0 for name, tensor in weights(plain).items() if "lora_B" in name)


def test_users_read_together_teach_the_same_as_one_by_one(fine_tune: Run, tmp_path: Path) -> None:
    one, _ = fine_tune(tmp_path / "a", epochs=1, lora=LoraConfig(r=4))
    two, _ = fine_tune(tmp_path / "b", epochs=1, lora=LoraConfig(r=4), micro_batch_size=2)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_each_epoch_reads_its_own_groups(tiny_model: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def renew(epoch: int) -> list[TrainingGroup]:
        asked.append(epoch)
        return other_users(epoch)

    config = CONFIG.model_copy(update={"epochs": 3})
    groups = EpochGroups(GROUPS, renew)
    train(
        groups, [], model=str(tiny_model), labels=ANSWERS, config=config, checkpoints=tmp_path / "c", seed=3
    )
    assert asked == [1, 2]
    assert groups[0] == other_users(2)[0]


class Killed(BaseException):
    """Ends a training as a kill would: nothing catches it."""


def kill_at_call(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int) -> None:
    """Let call `number` (from 1) of a function end the training before it does anything."""
    whole, calls = getattr(place, name), iter(range(1, 1000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return whole(*args, **kwargs)

    monkeypatch.setattr(place, name, wrapped)


@pytest.fixture(scope="module")
def unbroken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingReport]:
    folder = tmp_path_factory.mktemp("unbroken")
    return train(
        EpochGroups(GROUPS, other_users),
        VALID,
        model=str(tiny_model),
        labels=ANSWERS,
        config=CONFIG,
        checkpoints=folder,
        seed=3,
    )


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        pytest.param(trainer._GroupTrainer, "compute_loss", 3, marks=SLOW),  # before any checkpoint
        pytest.param(
            trainer._GroupTrainer, "compute_loss", 13, marks=SLOW
        ),  # within the short last step of an epoch
        (trainer._GroupTrainer, "compute_loss", 21),  # in the middle of a step of the second epoch
        pytest.param(trainer._GroupTrainer, "evaluate", 3, marks=SLOW),
        pytest.param(trainer, "_save_best", 1, marks=SLOW),
        (Trainer, "_save_optimizer_and_scheduler", 2),  # a checkpoint with weights only
        pytest.param(Trainer, "_save_rng_state", 3, marks=SLOW),
        (trainer, "_best", 4),
    ],
)
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    fine_tune: Run,
    tmp_path: Path,
    unbroken: tuple[Path, TrainingReport],
    place: Any,
    name: str,
    number: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at_call(patch, place, name, number)
        with pytest.raises(Killed):
            fine_tune(tmp_path / "c")
    best, report = fine_tune(tmp_path / "c")
    assert_equal_weights(best, unbroken[0])
    assert report == unbroken[1]


def test_training_ends_after_max_steps_with_a_validation(fine_tune: Run, tmp_path: Path) -> None:
    _, report = fine_tune(tmp_path / "c", epochs=5, max_steps=6, evaluations=1)
    assert [row["step"] for row in report.log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in report.log if "eval_recall_sum" in row] == [3, 6]
    rates = [row["learning_rate"] for row in report.log if "loss" in row]
    assert rates[-1] < 0.1 * max(rates)  # the schedule is that of the steps that are made


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps", "validations"),
    [(2, None, 8, 4), (2, 100, 8, 4), (2, 6, 6, 3), (2, 1, 1, 1), (1, None, 4, 2), (0, None, 0, 0)],
)
def test_steps_and_validations_are_known_before(
    epochs: int, max_steps: int | None, steps: int, validations: int
) -> None:
    config = CONFIG.model_copy(update={"epochs": epochs, "max_steps": max_steps, "evaluations": 2})
    assert config.n_steps(14) == steps
    assert config.n_validations(14) == validations


def test_a_finished_training_is_not_repeated(
    fine_tune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = fine_tune(tmp_path / "c", epochs=1)
    kill_at_call(monkeypatch, trainer._GroupTrainer, "compute_loss", 1)
    assert fine_tune(tmp_path / "c", epochs=1)[1] == report


def test_a_checkpoint_that_was_not_written_to_its_end_is_ignored(tmp_path: Path) -> None:
    for step, content in (
        (2, '{"global_step": 2}'),
        (10, '{"global_step": 10}'),
        (12, '{"global'),
        (14, None),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"")
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    assert trainer._newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()
    assert not (tmp_path / "checkpoint-14").exists()
    assert trainer._newest_checkpoint(tmp_path / "nothing") is None


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Decides what each validation finds, one number a validation."""

    def script(values: Sequence[float]) -> None:
        every: Iterator[float] = (value for value in values for _ in VALID)
        monkeypatch.setattr(trainer, "recall_sum", lambda *_: next(every))

    return script


def test_the_adapter_of_the_best_validation_is_kept(
    fine_tune: Run, tmp_path: Path, scripted: Callable[[Sequence[float]], None]
) -> None:
    scripted([1.0, 2.0, 0.5, 2.0])
    best, report = fine_tune(tmp_path / "c")
    assert (report.best_step, report.best_recall_sum) == (4, 2.0)  # every second step; the first of equals
    assert [row["eval_recall_sum"] for row in report.log if "eval_recall_sum" in row] == [1.0, 2.0, 0.5, 2.0]
    scripted([1.0, 2.0])
    until_then, _ = fine_tune(tmp_path / "d", epochs=1)
    final = weights(tmp_path / "c" / "checkpoint-8")
    assert any(not torch.equal(tensor, final[name]) for name, tensor in weights(best).items())
    assert weights(best).keys() == weights(until_then).keys()


def test_it_stops_when_validation_has_not_improved_for_long(
    fine_tune: Run, tmp_path: Path, scripted: Callable[[Sequence[float]], None]
) -> None:
    scripted([1.0, 2.0, 1.5, 2.0, 3.0, 3.0])
    _, report = fine_tune(tmp_path / "c", epochs=3, patience=2)
    assert [row["eval_recall_sum"] for row in report.log if "eval_recall_sum" in row] == [1.0, 2.0, 1.5, 2.0]
    assert max(row["step"] for row in report.log) == 8
    assert report.best_step == 4


def test_a_training_that_had_stopped_early_stays_stopped(
    fine_tune: Run,
    tmp_path: Path,
    scripted: Callable[[Sequence[float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted([1.0, 0.5, 3.0])
    best, report = fine_tune(tmp_path / "c", patience=1)
    before = weights(best)
    kill_at_call(monkeypatch, trainer._GroupTrainer, "compute_loss", 1)
    again, same = fine_tune(tmp_path / "c", patience=1)
    assert same == report
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(again).items())


def test_without_validation_the_last_adapter_is_kept(fine_tune: Run, tmp_path: Path) -> None:
    best, report = fine_tune(tmp_path / "c", valid=[], epochs=1)
    assert (report.best_step, report.best_recall_sum) == (4, 0.0)
    assert_equal_weights(best, tmp_path / "c" / "checkpoint-4")
    assert all("eval_recall_sum" not in row for row in report.log)


def test_the_best_adapter_is_replaced_in_one_move(tmp_path: Path) -> None:
    class Adapter:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(b"")

    (tmp_path / "best.new").mkdir()
    (tmp_path / "best.new" / "half").write_text("left by a kill")
    for value, step in ((1.0, 5), (2.0, 10)):
        trainer._save_best(Adapter(), tmp_path / "best", value, step)
        assert trainer._best(tmp_path / "best") == (value, step)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [
        "adapter_model.safetensors",
        "best.json",
    ]
    assert trainer._best(tmp_path / "nothing") == (-1.0, 0)


def test_layers_of_ones_own_choice_get_the_adapter(fine_tune: Run, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, alpha=8, target_modules=("q_proj", "v_proj"))
    best, _ = fine_tune(tmp_path / "c", epochs=1, lora=lora)
    assert {name.split(".")[-3] for name in weights(best)} == {"q_proj", "v_proj"}
    config = json.loads((best / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 8)


def test_layers_that_the_model_does_not_have_are_one_sentence(fine_tune: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="target_modules") as caught:
        fine_tune(tmp_path / "c", lora=LoraConfig(target_modules=("nothing_like_it",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", [pytest.param(1_000, marks=SLOW), 20_000, pytest.param(30_000, marks=SLOW)])
def test_a_full_disk_is_one_sentence_and_the_training_can_go_on(
    fine_tune: Run, tmp_path: Path, space: int
) -> None:
    resource = pytest.importorskip("resource")  # the largest size of a file stands for the room on the disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            fine_tune(tmp_path / "c", epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _, report = fine_tune(tmp_path / "c", epochs=1)
    assert len([row for row in report.log if "loss" in row]) == 4


def test_a_folder_that_cannot_be_written_is_one_sentence(fine_tune: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        fine_tune(tmp_path / "file" / "c")
    assert "None" not in str(caught.value)


def adapted(model_type: str, **lora: Any) -> Any:
    model = trainer.with_adapter(random_model(model_type), TrainConfig(lora=LoraConfig(r=2, **lora)))
    for _, weights in model.named_parameters():
        if weights.requires_grad:
            weights.data.normal_(0, 0.1)
    return model.eval()


def test_experts_without_an_adapter_are_named_and_get_one_when_they_are_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = ["experts.down_proj", "experts.gate_up_proj"]
    assert experts_without_adapter(adapted("granitemoe")) == left
    assert f"{', '.join(left)} of the experts get no adapter" in caplog.text
    caplog.clear()
    model = adapted("granitemoe", target_parameters=tuple(left))
    assert experts_without_adapter(model) == []
    assert "experts" not in caplog.text
    tokens = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=tokens).logits[0, -1, 5].backward()
    touched = [name for name, weights in model.named_parameters() if weights.grad is not None]
    assert sum("experts" in name and "lora_A" in name for name in touched) == 4
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        torch.testing.assert_close(
            model.merge_and_unload()(input_ids=tokens).logits, before, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "phimoe", "falcon"])
def test_layers_that_cannot_have_an_adapter_are_left_out_of_all_linear(model_type: str) -> None:
    model = adapted(model_type)
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    names = {name.split(".")[-3] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names, "the others have one"
    assert names.isdisjoint({"out_proj", "x_proj", "dt_proj", "router", "gate"})
