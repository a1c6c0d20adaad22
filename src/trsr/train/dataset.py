"""Training examples as token ids: one group a user, labels beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trsr.llm.base import ScoringGroup
from trsr.prompt.ranking import PromptBuilder
from trsr.types import RankingExample


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
        TrainingGroup(
            builder.build(e.history, profiles.get(e.example_id, ""), e.candidates).group,
            e.labels,
        )
        for e in examples
    ]
