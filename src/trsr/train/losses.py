"""Losses on a group: one user's prefix with n candidates, one or several of them chosen.

Each takes margins (n,) and labels (n,) and returns a scalar; `full` needs the logits of every position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from trsr.llm.architecture import length_limit
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.prefix_attention import (
    fits,
    is_enabled,
    label_head,
    packed_margins,
    run_packed,
    separate_margins,
)
from trsr.llm.prefix_packing import Part, pack
from trsr.train.config import Loss
from trsr.train.dataset import TrainingGroup

JOINT_WEIGHT = 0.2


def answer_loss(margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy over the two answers: mean of -log sigmoid(y m), with y = +1 or -1.

    The paper's softmax over the yes and no logits (LLM-TRSR, arXiv 2403.13325, section 3.4), with the loss at
    the answer position alone.
    """
    return functional.binary_cross_entropy_with_logits(margins, labels.to(margins.dtype))


def listwise_loss(margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean softmax cross-entropy of each chosen candidate against all unchosen ones.

    mean over chosen i of -log( exp m_i / (exp m_i + sum_{j not chosen} exp m_j) ): the InfoNCE of rerankers
    (van den Oord et al., arXiv 1807.03748); no chosen candidate has to beat another. With one chosen
    candidate it is ListNet's top-one form (Cao et al., ICML 2007).
    """
    others = torch.logsumexp(margins.masked_fill(labels != 0, float("-inf")), dim=0)
    return functional.softplus(others - margins[labels != 0]).mean()


def joint_loss(margins: torch.Tensor, labels: torch.Tensor, weight: float = JOINT_WEIGHT) -> torch.Tensor:
    """Return listwise + `weight` x answer loss: margins rank well and stay logits of a probability.

    After JRC (Sheng et al., "Joint Optimization of Ranking and Calibration", KDD 2023).
    """
    return listwise_loss(margins, labels) + weight * answer_loss(margins, labels)


def full_loss(
    logits: torch.Tensor, group: ScoringGroup, labels: Sequence[int], answers: LabelTokens
) -> tuple[torch.Tensor, int]:
    """Return the paper's loss, next-token cross-entropy over every token of every prompt and its answer.

    Args:
        logits: Shape (T, vocabulary), of the group laid out as prefix, suffix 0, suffix 1, ...
        group: The token ids; candidate i's sequence is prefix + suffix i + its answer token.
        labels: 1 for each chosen candidate, else 0.
        answers: The answer tokens.

    Returns:
        The sum and the number of tokens; the group's loss is their quotient. The prefix is laid out once but
        is part of each of the n sequences, so its tokens count n times.
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
    for suffix, label in zip(group.suffixes, labels, strict=True):
        answer = answers.positive if label else answers.negative
        targets = torch.tensor([*suffix, answer], device=logits.device)
        first = [n_prefix - 1] if n_prefix else []  # the prefix's last token predicts the suffix's first
        rows = torch.tensor([*first, *range(start, start + len(suffix))], device=logits.device)
        total = total - log_p[rows].gather(1, targets[-len(rows) :, None]).sum()
        count += len(rows)
        start += len(suffix)
    return total, count


_SEPARATE_TOKENS = 4096  # of a forward pass where candidates are read one by one
_ON_MARGINS: dict[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "answer": answer_loss,
    "listwise": listwise_loss,
    "joint": joint_loss,
}


class Objective:
    """The loss of a model on groups, and its margins.

    Args:
        model: The model with its adapter, not yet wrapped for several processes.
        loss: Which loss.
        answers: The answer tokens.
    """

    def __init__(self, model: Any, loss: Loss, answers: LabelTokens) -> None:
        self.loss = loss
        self.answers = answers
        self.shares_prefixes = is_enabled(model)
        self._model = model
        self._columns = (answers.positive, answers.negative)

    @contextmanager
    def installed(self, model: Any) -> Iterator[None]:
        """Limit the model to the logits that the loss needs, inside the block."""
        if self.loss == "full":
            yield
            return
        with label_head(model, self.answers) as self._columns:
            yield

    def __call__(self, model: Any, groups: Sequence[TrainingGroup]) -> torch.Tensor:
        """Return the loss of each group, shape (n_groups,); `full` is a group's mean over its tokens."""
        if self.loss == "full":
            return torch.stack([self._over_all_tokens(model, group) for group in groups])
        margins = self.margins(model, [one.group for one in groups])
        return torch.stack(
            [
                _ON_MARGINS[self.loss](found, torch.tensor(one.labels, device=found.device))
                for found, one in zip(margins, groups, strict=True)
            ]
        )

    def margins(self, model: Any, groups: Sequence[ScoringGroup]) -> list[torch.Tensor]:
        """Return the margins (n_suffixes,) of each group."""
        found = {
            number: separate_margins(model, group, self._columns, _SEPARATE_TOKENS)
            for number, group in enumerate(groups)
            if not self._shares(group)
        }
        shared = [number for number in range(len(groups)) if number not in found]
        if shared:
            parts = [Part(groups[number].prefix, groups[number].suffixes) for number in shared]
            packed = pack(parts).to(model.device)
            margins = packed_margins(model, packed, self._columns).split(packed.counts)
            found.update(zip(shared, margins, strict=True))
        return [found[number] for number in range(len(groups))]

    @property
    def always_shares(self) -> bool:
        """Whether prefixes are shared for groups of any length, which makes all passes alike."""
        return self.shares_prefixes and length_limit(self._model.config) is None

    def _shares(self, group: ScoringGroup) -> bool:
        return self.shares_prefixes and fits(self._model, group)

    def _over_all_tokens(self, model: Any, one: TrainingGroup) -> torch.Tensor:
        shares, read = self._shares(one.group), [(one.group, one.labels)]
        if not shares:  # each candidate by itself
            candidates = zip(one.group.suffixes, one.labels, strict=True)
            read = [(ScoringGroup(one.group.prefix, (suffix,)), (label,)) for suffix, label in candidates]
        sums, count = [], 0
        for group, labels in read:
            packed = pack([Part(group.prefix, group.suffixes)]).to(model.device)
            if shares:
                logits = run_packed(model, packed, every_position=True).logits[0]
            else:
                logits = model(input_ids=packed.tokens, use_cache=False).logits[0]
            total, n = full_loss(logits, group, labels, self.answers)
            sums.append(total)
            count += n
        return torch.stack(sums).sum() / count
