"""Fits notes, recent items and profile into the tokens left for a prefix.

Frame, answer cue and candidate are reserved before this is called. Then come the notes, cut at their end only
where they do not fit alone; then the recent items, newest first; then the profile, cut at its end. What was
cut is counted, never silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trsr.errors import BudgetError
from trsr.llm.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prefix within its budget.

    Attributes:
        prefix: Token ids.
        n_recent_cut: Recent items left out, the oldest ones.
        n_tokens_cut: Tokens of notes, recent items and profile that were left out.
    """

    prefix: tuple[int, ...]
    n_recent_cut: int = 0
    n_tokens_cut: int = 0


def fit(
    recent: Sequence[str],
    profile: str,
    notes: str = "",
    *,
    budget: int,
    tokenizer: Tokenizer,
    prefix_tokens: Callable[[Sequence[str], str, str], tuple[int, ...]],
) -> Fitted:
    """Choose how much of the notes, how many recent items and how much of the profile fit.

    Args:
        recent: Texts of the recent items, oldest first.
        profile: The profile; may be empty.
        notes: The user's notes; may be empty.
        budget: Tokens for the whole prefix.
        tokenizer: Counts and cuts notes and profile.
        prefix_tokens: Renders and tokenises a prefix.

    Raises:
        BudgetError: not even the empty frame fits.
    """
    whole = prefix_tokens(recent, profile, notes)
    if len(whole) <= budget:
        return Fitted(whole)
    frame = prefix_tokens((), "", "")
    if len(frame) > budget:
        raise BudgetError(
            f"The prompt's frame needs {len(frame)} tokens, {max(0, budget)} are left beside the longest "
            "candidate; raise prompt.max_tokens or lower prompt.max_field_tokens."
        )
    kept = list(recent)
    while kept and len(prefix_tokens(kept, "", notes)) > budget:
        kept.pop(0)
    prefix = prefix_tokens(kept, "", notes)
    if len(prefix) > budget:
        prefix = _longest(notes, budget, tokenizer, lambda part: prefix_tokens((), "", part)) or frame
    else:
        prefix = _longest(profile, budget, tokenizer, lambda part: prefix_tokens(kept, part, notes)) or prefix
    return Fitted(prefix, len(recent) - len(kept), len(whole) - len(prefix))


def _longest(
    text: str, budget: int, tokenizer: Tokenizer, prefix_of: Callable[[str], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Return the prefix with as much of the text's beginning as fits; None if nothing of it does."""
    ids = tokenizer.encode(text)
    best = None
    low, high = 1, len(ids)  # the longest beginning that fits, by bisection
    while low <= high:
        middle = (low + high) // 2
        prefix = prefix_of(tokenizer.decode(ids[:middle]).rstrip("�"))
        if len(prefix) <= budget:
            best, low = prefix, middle + 1
        else:
            high = middle - 1
    return best
