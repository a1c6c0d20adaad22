"""The loss of packed users, and its gradients, are those of separate sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import random_model

from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.recommend.model_folder import quiet_peft
from trsr.train.config import Loss
from trsr.train.dataset import TrainingGroup
from trsr.train.losses import Objective, answer_loss, joint_loss, listwise_loss

ANSWERS = LabelTokens(5, 9)
GROUPS = [
    TrainingGroup(ScoringGroup((20, 21, 22, 23, 24, 25), ((30, 31), (32,), (33, 34, 35, 36))), (0, 1, 0)),
    TrainingGroup(ScoringGroup((40, 41, 42), ((30, 31, 32), (33, 34))), (1, 0)),
    TrainingGroup(ScoringGroup((), ((30, 31, 32), (33, 34, 35))), (0, 1)),
]
ARCHITECTURES = ["llama", "gemma3_text", "gpt_neox", "opt"]


def adapted(name: str, *, share: bool, **changes: Any) -> Any:
    """Return a tiny model with an adapter that has already learned something, as it is while it learns."""
    base = random_model(name, **changes)
    if share:
        assert prefix_attention.enable(base)
    torch.manual_seed(1)
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(base, lora).train()


def loss_and_gradients(
    model: Any, loss: Loss, groups: list[TrainingGroup]
) -> tuple[float, dict[str, torch.Tensor]]:
    objective = Objective(model, loss, ANSWERS)
    with objective.installed(model):
        value = objective(model, groups).mean()
        value.backward()
    return value.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def by_definition(model: Any, loss: Loss, groups: list[TrainingGroup]) -> torch.Tensor:
    """The loss from whole logits, a sequence at a time."""
    if loss == "full":
        means = []
        for one in groups:
            total, count = torch.zeros(()), 0
            for suffix, label in zip(one.group.suffixes, one.labels, strict=True):
                answer = ANSWERS.positive if label else ANSWERS.negative
                ids = torch.tensor([[*one.group.prefix, *suffix, answer]])
                n = ids.shape[1] - 1
                total = total + n * model(input_ids=ids, labels=ids).loss  # its mean over n predicted tokens
                count += n
            means.append(total / count)
        return torch.stack(means).mean()
    values = []
    for one in groups:
        margins = []
        for suffix in one.group.suffixes:
            logits = model(input_ids=torch.tensor([[*one.group.prefix, *suffix]])).logits[0, -1]
            margins.append(logits[ANSWERS.positive] - logits[ANSWERS.negative])
        function = {"answer": answer_loss, "listwise": listwise_loss, "joint": joint_loss}[loss]
        values.append(function(torch.stack(margins), torch.tensor(one.labels)))
    return torch.stack(values).mean()


def relative_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the largest |left - right| / |right| of any parameter, by norms."""
    assert left.keys() == right.keys()
    return max(float((left[n] - right[n]).norm() / right[n].norm()) for n in right if right[n].norm() > 0)


@pytest.mark.parametrize("loss", ["answer", "listwise", "joint", "full"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_gradients_equal_those_of_separate_sequences(name: str, loss: Loss) -> None:
    value, packed = loss_and_gradients(adapted(name, share=True), loss, GROUPS)
    plain = adapted(name, share=False)
    expected = by_definition(plain, loss, GROUPS)
    expected.backward()
    separate = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert value == pytest.approx(expected.item(), abs=1e-5)
    assert max(float(g.abs().max()) for g in separate.values()) > 1e-2
    assert relative_difference(packed, separate) <= 1e-4


@pytest.mark.parametrize("loss", ["joint", "full"])
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_a_model_that_does_not_share_learns_the_same_more_slowly(name: str, loss: Loss) -> None:
    value, found = loss_and_gradients(adapted(name, share=False), loss, GROUPS)
    plain = adapted(name, share=False)
    expected = by_definition(plain, loss, GROUPS)
    expected.backward()
    separate = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert value == pytest.approx(expected.item(), abs=1e-5)
    assert relative_difference(found, separate) <= 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    value, plain = loss_and_gradients(adapted(name, share=True), "joint", GROUPS)
    saving = adapted(name, share=True)
    saving.enable_input_require_grads()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    again, found = loss_and_gradients(saving, "joint", GROUPS)
    assert again == pytest.approx(value, abs=1e-6)
    assert relative_difference(found, plain) <= 1e-5


def test_a_model_wrapped_for_several_processes_gives_the_same_gradients(tmp_path: Path) -> None:
    value, alone = loss_and_gradients(adapted("llama", share=True), "joint", GROUPS)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = adapted("llama", share=True)
        objective = Objective(model, "joint", ANSWERS)
        with objective.installed(model):
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            loss = objective(wrapped, GROUPS).mean()
            loss.backward()
        del wrapped  # before the group: see `processes.leave`
    finally:
        torch.distributed.destroy_process_group()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert relative_difference(found, alone) <= 1e-6


def test_losses_of_a_tiny_model_have_not_moved() -> None:
    losses: list[Loss] = ["answer", "listwise", "joint", "full"]
    found = [loss_and_gradients(adapted("llama", share=True), loss, GROUPS)[0] for loss in losses]
    assert found == pytest.approx([0.81868, 1.40846, 1.57219, 4.61345], abs=1e-3)


@pytest.mark.parametrize("loss", ["joint", "full"])
def test_groups_too_long_to_share_learn_one_by_one_beside_those_that_share(loss: Loss) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 9}
    rope |= {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    groups = GROUPS  # of up to 10, 6 and 3 tokens
    found, expected = (adapted("llama", share=share, rope_parameters=rope) for share in (True, False))
    value, gradients = loss_and_gradients(found, loss, groups)
    assert not Objective(found, loss, ANSWERS).always_shares
    by_definition(expected, loss, groups).backward()
    for name, weights in expected.named_parameters():
        if weights.grad is not None:
            torch.testing.assert_close(gradients[name], weights.grad, rtol=1e-3, atol=1e-5)
    assert value == pytest.approx(by_definition(expected, loss, groups).item(), abs=1e-5)
