"""Losses on a group: one user's prefix with n candidates, one of them (or several) chosen.

Each takes margins (n,) and labels (n,) and returns a scalar; `full` needs the logits of every position.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trsr.llm.base import LabelTokens, ScoringGroup

JOINT_WEIGHT = 0.2


def answer_loss(margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy over the two answers: mean of -log sigmoid(y m), with y = +1 or -1.

    This is the paper's softmax over the yes and no logits (LLM-TRSR, arXiv 2403.13325, section 3.4) with the
    loss at the answer position alone.
    """
    return functional.binary_cross_entropy_with_logits(margins, labels.to(margins.dtype))


def listwise_loss(margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the softmax cross-entropy of each chosen candidate against all that were not, and its mean.

    mean over chosen i of -log( exp m_i / (exp m_i + sum_{j not chosen} exp m_j) ): the InfoNCE of rerankers
    (van den Oord et al., arXiv 1807.03748), so each chosen candidate has to rise by itself and none has to
    beat another. With one chosen candidate it is ListNet's top-one form (Cao et al., ICML 2007).
    """
    others = torch.logsumexp(margins.masked_fill(labels != 0, float("-inf")), dim=0)
    return functional.softplus(others - margins[labels != 0]).mean()


def joint_loss(margins: torch.Tensor, labels: torch.Tensor, weight: float = JOINT_WEIGHT) -> torch.Tensor:
    """Return listwise + `weight` x answer loss, so that margins rank well and stay logits of a probability.

    After JRC (Sheng et al., "Joint Optimization of Ranking and Calibration", KDD 2023).
    """
    return listwise_loss(margins, labels) + weight * answer_loss(margins, labels)


def full_loss(
    logits: torch.Tensor, group: ScoringGroup, labels: torch.Tensor, answers: LabelTokens
) -> tuple[torch.Tensor, int]:
    """Return the paper's loss, next-token cross-entropy over every token of every prompt and its answer.

    Args:
        logits: Shape (T, vocabulary), of the group laid out as prefix, suffix 0, suffix 1, ...
        group: The token ids; candidate i's sequence is prefix + suffix i + its answer token.
        labels: Shape (n,).
        answers: The answer tokens.

    Returns:
        The sum, and over how many tokens; the group's loss is their quotient. The prefix is laid out once but
        stands in each of the n sequences, so its tokens count n times.
    """
    n, n_prefix = len(group.suffixes), len(group.prefix)
    log_p = torch.log_softmax(logits.float(), dim=-1)
    total = log_p.new_zeros(())
    count = 0
    if n_prefix > 1:
        targets = torch.tensor(group.prefix[1:], device=logits.device)
        total = total - n * log_p[: n_prefix - 1].gather(1, targets[:, None]).sum()
        count += n * (n_prefix - 1)
    start = n_prefix
    for suffix, label in zip(group.suffixes, labels.tolist(), strict=True):
        answer = answers.positive if label else answers.negative
        targets = torch.tensor([*suffix, answer], device=logits.device)
        first = [n_prefix - 1] if n_prefix else []  # the prefix's last token predicts the suffix's first
        rows = torch.tensor([*first, *range(start, start + len(suffix))], device=logits.device)
        total = total - log_p[rows].gather(1, targets[-len(rows) :, None]).sum()
        count += len(rows)
        start += len(suffix)
    return total, count
