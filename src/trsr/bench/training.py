"""Times a training step two ways: a user's candidates packed behind one prefix, and each by itself.

The loss is `answer`, a mean over candidates, so that the pointwise way can go back after each of them as a
plain trainer would, and both end with the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trsr.bench.measure import (
    any_labels,
    body_parameters,
    forward_flops,
    gemm_gflops,
    machine,
    median_seconds,
    peak_memory_mb,
    random_groups,
)
from trsr.llm import shared_attention
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.transformers import load_causal_lm
from trsr.train.config import TrainConfig
from trsr.train.dataset import TrainingGroup
from trsr.train.objective import Objective
from trsr.train.sft import with_adapter


def bench_train(
    model_name: str,
    *,
    users: int,
    prefix_tokens: int,
    candidate_tokens: int,
    candidates: int,
    repeats: int,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Measure forward and backward of `users` users a step, by LoRA with the default configuration.

    Args:
        model_name: As `load_causal_lm` takes it.
        users: Users of one forward pass; times are per user.
        prefix_tokens: Of each user.
        candidate_tokens: Of each candidate.
        candidates: Of each user, the first one chosen.
        repeats: Timed steps; medians are reported.
        device: As `load_causal_lm` takes it.
        dtype: As `load_causal_lm` takes it.
    """
    shared, plain = (_model(model_name, share=share, device=device, dtype=dtype) for share in (True, False))
    where, labels = shared.device, any_labels(shared)
    groups = [
        TrainingGroup(group, (1, *[0] * (candidates - 1)))
        for group in random_groups(shared, users, prefix_tokens, candidate_tokens, candidates)
    ]
    one_by_one = [
        [
            TrainingGroup(ScoringGroup(g.group.prefix, (suffix,)), (label,))
            for suffix, label in zip(g.group.suffixes, g.labels, strict=True)
        ]
        for g in groups
    ]
    packed_step = _step(shared, labels, [groups])
    separate_step = _step(plain, labels, [[single] for user in one_by_one for single in user])
    packed = median_seconds(packed_step, where, repeats) / users
    separate = median_seconds(separate_step, where, max(1, repeats // 2)) / users
    gemm = gemm_gflops(where, shared.dtype)
    # Backward: gradients of activations through frozen weights (as much as forward), and twice attention's.
    reading = forward_flops(shared, [g.group for g in groups])
    n_tokens = users * (prefix_tokens + candidates * candidate_tokens)
    weights = 2 * body_parameters(shared) * n_tokens
    rate = (3 * reading - weights) / users / packed / 1e9
    return {
        "benchmark": "train",
        "model": model_name,
        "users": users,
        "prefix_tokens": prefix_tokens,
        "candidate_tokens": candidate_tokens,
        "candidates": candidates,
        "pointwise_s": round(separate, 4),
        "shared_prefix_s": round(packed, 4),
        "users_per_s": round(1 / packed, 3),
        "speedup_vs_pointwise": round(separate / packed, 2),
        "speedup_by_token_count": round(
            candidates * (prefix_tokens + candidate_tokens) * users / n_tokens, 2
        ),
        "max_rel_grad_difference": float(f"{_largest_difference(shared, plain):.2g}"),
        "gemm_gflops": round(gemm, 1),
        "model_gflops": round(rate, 1),
        "fraction_of_gemm_peak": round(rate / gemm, 3),
        "peak_memory_mb": round(peak_memory_mb(where), 1),
        **machine(shared),
    }


def _model(name: str, *, share: bool, device: str, dtype: str) -> Any:
    """Return the model with an adapter whose both halves are at work, the same one each time."""
    base = load_causal_lm(name, device=device, dtype=dtype)
    shared_attention.enable(base, "auto" if share else "separate")
    torch.manual_seed(0)
    model = with_adapter(base, TrainConfig())
    for parameter_name, weights in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(weights, std=0.01)
    return model.train()


def _step(model: Any, labels: LabelTokens, passes: Sequence[Sequence[TrainingGroup]]) -> Callable[[], None]:
    """Return a step that goes forward and back once a pass; its gradients are those of the passes' mean."""
    objective = Objective(model, "answer", labels)

    def step() -> None:
        model.zero_grad()
        with objective.installed(model):
            for groups in passes:
                (objective(model, groups).mean() / len(passes)).backward()

    return step


def _largest_difference(left: Any, right: Any) -> float:
    """Return the largest |difference| / |gradient| of any trained matrix, by norms."""
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs if b.grad is not None)
