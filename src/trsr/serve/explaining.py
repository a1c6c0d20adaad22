"""Why a candidate got its margin: each recent item and each sentence of the profile is left out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trsr.serve.questions import Ask, Scored


@dataclass(frozen=True, slots=True)
class Explanation:
    """What moved a candidate's margin.

    Attributes:
        margin: With everything.
        without_item: (item id, margin - margin without it) for each recent item shown, oldest first; above 0
            where the item speaks for the candidate.
        without_sentence: The same for the profile's sentences (or clauses, where it is one sentence), in
            their order.
    """

    margin: float
    without_item: tuple[tuple[str, float], ...]
    without_sentence: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """The questions to ask for an explanation: the whole one, then one for each part left out."""

    asks: tuple[Ask, ...]
    items: tuple[str, ...]
    sentences: tuple[str, ...]

    def explanation(self, scored: Sequence[Scored]) -> Explanation:
        """Read the answers to `asks`, in their order."""
        raise NotImplementedError


def leave_one_out(ask: Ask, candidate: str, n_recent: int, *, use_profile: bool = True) -> LeaveOneOut:
    """Return the questions that explain `candidate`, which need not be among the ask's candidates."""
    raise NotImplementedError
