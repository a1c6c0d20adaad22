"""Training examples as token ids: one group per user with its labels, optionally renewed each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trsr.llm.base import ScoringGroup
from trsr.recommend.prompt import PromptBuilder
from trsr.seeding import derive_rng
from trsr.train.config import ProfileKind, ProfileMix, TrainConfig
from trsr.types import RankingExample

CUTOFFS = (3, 5, 10)


def recall_sum(margins: npt.NDArray[np.float32], labels: Sequence[int]) -> float:
    """Return R@3 + R@5 + R@10 of one group, in [0, 3]; among ties, the expectation over random orders.

    A candidate with g better and t equal ones (itself included) is within the first k with probability
    min(1, max(0, (k - g) / t)).
    """
    better = (margins[None, :] > margins[:, None]).sum(axis=1)
    equal = (margins[None, :] == margins[:, None]).sum(axis=1)
    chosen = np.asarray(labels, dtype=bool)
    if not chosen.any():
        raise ValueError("a validation group without a chosen candidate cannot be judged")
    return float(sum(np.clip((k - better) / equal, 0, 1)[chosen].mean() for k in CUTOFFS))


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """A user's prefix with its candidates, and which of them were chosen (1) or not (0)."""

    group: ScoringGroup
    labels: tuple[int, ...]


def training_groups(
    examples: Sequence[RankingExample], profiles: Mapping[str, str], builder: PromptBuilder
) -> list[TrainingGroup]:
    """Build the groups of examples; `profiles` maps example ids to profile texts.

    Raises:
        BudgetError: a prompt cannot fit its budget.
    """
    return [
        TrainingGroup(builder.build(e.history, profiles.get(e.example_id, ""), e.candidates).group, e.labels)
        for e in examples
    ]


def profile_kind(mix: ProfileMix, seed: int, example_id: str, epoch: int) -> ProfileKind:
    """Return which profile a training example has in an epoch, from these arguments alone."""
    if not mix.none and not mix.counted:
        return "own"
    draw = derive_rng(seed, "profile", example_id, epoch).random()
    if draw < mix.none:
        return "none"
    return "counted" if draw < mix.none + mix.counted else "own"


def shows_own_profile(config: TrainConfig, seed: int, example_id: str) -> bool:
    """Return whether an epoch shows a training example with the profile of the run."""
    epochs = range(config.epochs)
    return any(profile_kind(config.profiles, seed, example_id, epoch) == "own" for epoch in epochs)


class EpochGroups:
    """The groups of one epoch after another, as a Trainer reads a map-style dataset.

    Args:
        first: The groups of epoch 0.
        renew: Epoch number to its groups, as many as in `first`; None when every epoch has the same.
    """

    def __init__(
        self,
        first: Sequence[TrainingGroup],
        renew: Callable[[int], Sequence[TrainingGroup]] | None = None,
    ) -> None:
        self._first, self._renew = first, renew
        self._groups, self._epoch = first, 0

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, place: tuple[int, float]) -> tuple[TrainingGroup, float]:
        """Return the group of a (number, weight) pair, with its weight in the loss."""
        number, weight = place
        return self._groups[number], weight

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        if self._renew is not None and epoch != self._epoch:
            self._groups = self._renew(epoch) if epoch else self._first
            self._epoch = epoch
