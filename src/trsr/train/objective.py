"""The loss of some users at once: packed where the model shares prefixes, else candidate by candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trsr.llm.architecture import length_limit
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.margins import label_head, packed_margins, separate_margins
from trsr.llm.packing import Part, pack
from trsr.llm.shared_attention import fits, is_enabled, run_packed
from trsr.train.config import Loss
from trsr.train.dataset import TrainingGroup
from trsr.train.losses import answer_loss, full_loss, joint_loss, listwise_loss

# Tokens a forward pass where candidates are read one by one.
_SEPARATE_TOKENS = 4096
_ON_MARGINS: dict[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "answer": answer_loss,
    "listwise": listwise_loss,
    "joint": joint_loss,
}


class Objective:
    """What a model is trained on.

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
        """Let the model compute no more logits than the loss needs, inside the block."""
        if self.loss == "full":
            yield
            return
        with label_head(model, self.answers) as self._columns:
            yield

    def __call__(self, model: Any, groups: Sequence[TrainingGroup]) -> torch.Tensor:
        """Return the loss of each group, shape (n_groups,); `full` is a group's mean over its tokens."""
        if self.loss == "full":
            return torch.stack([self._over_all_tokens(model, group) for group in groups])
        per_group = [
            _ON_MARGINS[self.loss](margins, torch.tensor(group.labels, device=margins.device))
            for margins, group in zip(self.margins(model, [g.group for g in groups]), groups, strict=True)
        ]
        return torch.stack(per_group)

    def margins(self, model: Any, groups: Sequence[ScoringGroup]) -> list[torch.Tensor]:
        """Return the margins (n_suffixes,) of each group."""
        found = [
            None if self._shares(group) else separate_margins(model, group, self._columns, _SEPARATE_TOKENS)
            for group in groups
        ]
        shared = [group for group, alone in zip(groups, found, strict=True) if alone is None]
        if not shared:
            return [alone for alone in found if alone is not None]
        packed = pack([Part(group.prefix, group.suffixes) for group in shared]).to(model.device)
        together = iter(packed_margins(model, packed, self._columns).split(packed.counts))
        return [next(together) if alone is None else alone for alone in found]

    @property
    def always_shares(self) -> bool:
        """Whether prefixes are shared however long groups are, so that all passes are alike."""
        return self.shares_prefixes and length_limit(self._model.config) is None

    def _shares(self, group: ScoringGroup) -> bool:
        return self.shares_prefixes and fits(self._model, group)

    def _over_all_tokens(self, model: Any, one: TrainingGroup) -> torch.Tensor:
        sums, counts = [], []
        for group, labels in self._sequences(one):
            packed = pack([Part(group.prefix, group.suffixes)]).to(model.device)
            if self._shares(group):
                logits = run_packed(model, packed, every_position=True).logits[0]
            else:
                logits = model(input_ids=packed.tokens, use_cache=False).logits[0]
            wanted = torch.tensor(labels, device=logits.device)
            total, count = full_loss(logits, group, wanted, self.answers)
            sums.append(total)
            counts.append(count)
        return torch.stack(sums).sum() / sum(counts)

    def _sequences(self, one: TrainingGroup) -> Iterator[tuple[ScoringGroup, tuple[int, ...]]]:
        """Yield what is read at once: the whole group, or each candidate by itself."""
        if self._shares(one.group):
            yield one.group, one.labels
            return
        for suffix, label in zip(one.group.suffixes, one.labels, strict=True):
            yield ScoringGroup(one.group.prefix, (suffix,)), (label,)
