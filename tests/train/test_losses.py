"""Losses against their formulas; packed users have the loss and gradients of separate sequences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import random_model

from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.recommend.model_folder import quiet_peft
from trsr.train.config import Loss
from trsr.train.dataset import TrainingGroup
from trsr.train.losses import JOINT_WEIGHT, Objective, answer_loss, joint_loss, listwise_loss

numbers = st.lists(st.tuples(st.floats(-30, 30, width=32), st.integers(0, 1)), min_size=1, max_size=8).filter(
    lambda rows: any(label for _, label in rows)
)


@given(numbers, st.floats(-5, 5))
def test_losses_equal_their_formulas(rows: list[tuple[float, int]], shift: float) -> None:
    margins, labels = torch.tensor([m for m, _ in rows]), torch.tensor([label for _, label in rows])
    answer = sum(math.log1p(math.exp(-margin if label else margin)) for margin, label in rows) / len(rows)
    others = sum(math.exp(margin) for margin, label in rows if not label)
    chosen = [math.exp(margin) for margin, label in rows if label]
    listwise = -sum(math.log(one / (one + others)) for one in chosen) / len(chosen)
    assert float(answer_loss(margins, labels)) == pytest.approx(answer, rel=1e-4, abs=1e-5)
    assert float(listwise_loss(margins, labels)) == pytest.approx(listwise, rel=1e-4, abs=1e-4)
    assert float(listwise_loss(margins + shift, labels)) == pytest.approx(listwise, rel=1e-4, abs=1e-4)
    joint = listwise + JOINT_WEIGHT * answer
    assert float(joint_loss(margins, labels)) == pytest.approx(joint, rel=1e-4, abs=1e-4)


def test_listwise_loss_does_not_rank_chosen_candidates_against_each_other() -> None:
    margins = torch.tensor([4.0, -1.0, 0.0], requires_grad=True)
    listwise_loss(margins, torch.tensor([1, 1, 0])).backward()
    assert margins.grad is not None
    assert (margins.grad[:2] < 0).all()  # both rise, the weaker one more
    assert margins.grad[1] < margins.grad[0]


def test_large_margins_stay_finite() -> None:
    margins, labels = torch.tensor([300.0, -300.0]), torch.tensor([0, 1])
    for loss in (answer_loss, listwise_loss, joint_loss):
        assert float(loss(margins, labels)) < 1000


ANSWERS = LabelTokens(5, 9)
GROUPS = [
    TrainingGroup(ScoringGroup((20, 21, 22, 23, 24, 25), ((30, 31), (32,), (33, 34, 35, 36))), (0, 1, 0)),
    TrainingGroup(ScoringGroup((40, 41, 42), ((30, 31, 32), (33, 34))), (1, 0)),
    TrainingGroup(ScoringGroup((), ((30, 31, 32), (33, 34, 35))), (0, 1)),
]
LOSSES: list[Loss] = ["answer", "listwise", "joint", "full"]
Gradients = dict[str, torch.Tensor]


def adapted(name: str, *, share: bool, **changes: Any) -> Any:
    """Return a tiny model in training mode with an adapter that has learned something."""
    base = random_model(name, **changes)
    if share:
        assert prefix_attention.enable(base)
    torch.manual_seed(1)
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(base, lora).train()


def gradients(model: Any) -> Gradients:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def learn(model: Any, loss: Loss) -> tuple[float, Gradients]:
    objective = Objective(model, loss, ANSWERS)
    with objective.installed(model):
        value = objective(model, GROUPS).mean()
        value.backward()
    return value.item(), gradients(model)


def learn_by_definition(model: Any, loss: Loss) -> tuple[float, Gradients]:
    """Return the loss from whole logits, a sequence at a time."""
    values = []
    for one in GROUPS:
        if loss == "full":
            total, count = torch.zeros(()), 0
            for suffix, label in zip(one.group.suffixes, one.labels, strict=True):
                answer = ANSWERS.positive if label else ANSWERS.negative
                ids = torch.tensor([[*one.group.prefix, *suffix, answer]])
                n = ids.shape[1] - 1
                total = total + n * model(input_ids=ids, labels=ids).loss  # its mean over n predicted tokens
                count += n
            values.append(total / count)
            continue
        rows = [torch.tensor([[*one.group.prefix, *suffix]]) for suffix in one.group.suffixes]
        logits = torch.stack([model(input_ids=row).logits[0, -1] for row in rows])
        margins = logits[:, ANSWERS.positive] - logits[:, ANSWERS.negative]
        function = {"answer": answer_loss, "listwise": listwise_loss, "joint": joint_loss}[loss]
        values.append(function(margins, torch.tensor(one.labels)))
    value = torch.stack(values).mean()
    value.backward()
    return value.item(), gradients(model)


def relative_difference(left: Gradients, right: Gradients) -> float:
    """Return the largest |left - right| / |right| of any parameter, by norms."""
    assert left.keys() == right.keys()
    return max(float((left[n] - right[n]).norm() / right[n].norm()) for n in right if right[n].norm() > 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("llama", True),
        ("gemma3_text", True),
        ("gpt_neox", True),
        ("opt", True),
        ("llama", False),
        ("bloom", False),
    ],
)
def test_gradients_equal_those_of_separate_sequences(name: str, share: bool, loss: Loss) -> None:
    value, found = learn(adapted(name, share=share), loss)
    expected, separate = learn_by_definition(adapted(name, share=False), loss)
    assert value == pytest.approx(expected, abs=1e-5)
    assert max(float(g.abs().max()) for g in separate.values()) > 1e-2
    assert relative_difference(found, separate) <= 1e-4


@pytest.mark.parametrize("loss", ["joint", "full"])
def test_groups_too_long_to_share_learn_one_by_one_with_those_that_share(loss: Loss) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 9}
    rope |= {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    mixed, alone = (adapted("llama", share=share, rope_parameters=rope) for share in (True, False))
    assert not Objective(mixed, loss, ANSWERS).always_shares  # groups have up to 10, 6 and 3 tokens
    (value, found), (expected, separate) = learn(mixed, loss), learn_by_definition(alone, loss)
    assert value == pytest.approx(expected, abs=1e-5)
    for name, weights in separate.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    value, plain = learn(adapted(name, share=True), "joint")
    saving = adapted(name, share=True)
    saving.enable_input_require_grads()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = learn(saving, "joint")
    assert again == pytest.approx(value, abs=1e-6)
    assert relative_difference(found, plain) <= 1e-5


def test_a_model_wrapped_for_several_processes_gives_the_same_gradients(tmp_path: Path) -> None:
    value, alone = learn(adapted("llama", share=True), "joint")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = adapted("llama", share=True)
        objective = Objective(model, "joint", ANSWERS)
        with objective.installed(model):
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            loss = objective(wrapped, GROUPS).mean()
            loss.backward()
        del wrapped  # before the group: see `distributed.leave`
    finally:
        torch.distributed.destroy_process_group()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert relative_difference(gradients(model), alone) <= 1e-6


def test_losses_of_a_tiny_model_have_not_moved() -> None:
    found = [learn(adapted("llama", share=True), loss)[0] for loss in LOSSES]
    assert found == pytest.approx([0.81868, 1.40846, 1.57219, 4.61345], abs=1e-3)
