"""What the model is asked while serving, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Ask:
    """Which of these items would this user choose?

    Attributes:
        user_history: Item ids, oldest first; only the newest `prompt.n_recent` are shown.
        profile: The user's profile; may be empty.
        candidates: Item ids, at least one.
        notes: What the user wrote about themselves; may be empty.
    """

    user_history: Sequence[str]
    profile: str
    candidates: Sequence[str]
    notes: str = ""


@dataclass(frozen=True, slots=True)
class TextAsk:
    """Which of these texts fits this profile? Candidates need not be in the catalogue.

    Attributes:
        query: Stands where the profile stands; no recent items are shown.
        documents: At least one; each is folded to one line, its markup dropped, and cut to
            `MAX_DOCUMENT_TOKENS` (see `recommender`).
        max_tokens: Cut them to so many tokens where that is less.
    """

    query: str
    documents: Sequence[str]
    max_tokens: int | None = None


Question = Ask | TextAsk


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to one question, candidates in the order asked.

    Attributes:
        margins: Shape (n,), float32, logits.
        scores: Shape (n,), float64, in [0, 1], calibrated where the model folder says how.
        n_prompt_tokens: Shape (n,), int32, tokens of each candidate's whole prompt.
        n_cut_tokens: Tokens of notes, recent items and profile that did not fit the budget.
        n_read_tokens: Tokens the model really read: the prefix once, unless it was cached, and all suffixes.
        cached: Whether the prefix had been read for an earlier question.
    """

    margins: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    n_prompt_tokens: npt.NDArray[np.int32]
    n_cut_tokens: int
    n_read_tokens: int
    cached: bool
