"""Fits recent items and profile into the tokens left for a prefix.

Frame, answer cue and candidate are reserved before this is called. Then come the recent items, newest first;
then the profile, cut at its end. What was cut is counted, never silent.
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
        n_tokens_cut: Tokens of recent items and profile that were left out.
    """

    prefix: tuple[int, ...]
    n_recent_cut: int = 0
    n_tokens_cut: int = 0


def fit(
    recent: Sequence[str],
    profile: str,
    *,
    budget: int,
    tokenizer: Tokenizer,
    prefix_tokens: Callable[[Sequence[str], str], tuple[int, ...]],
) -> Fitted:
    """Choose how many recent items and how much of the profile fit.

    Args:
        recent: Texts of the recent items, oldest first.
        profile: The profile; may be empty.
        budget: Tokens for the whole prefix.
        tokenizer: Counts and cuts the profile.
        prefix_tokens: Renders and tokenises a prefix.

    Raises:
        BudgetError: not even the empty frame fits.
    """
    whole = prefix_tokens(recent, profile)
    if len(whole) <= budget:
        return Fitted(whole)
    kept = list(recent)
    while kept and len(prefix_tokens(kept, "")) > budget:
        kept.pop(0)
    frame = prefix_tokens(kept, "")
    if len(frame) > budget:
        raise BudgetError(
            f"The prompt's frame needs {len(frame)} tokens, {max(0, budget)} are left beside the longest "
            "candidate; raise prompt.max_tokens or lower prompt.max_field_tokens."
        )
    prefix = _with_profile(kept, profile, budget, tokenizer, prefix_tokens) or frame
    return Fitted(prefix, len(recent) - len(kept), len(whole) - len(prefix))


def _with_profile(
    recent: Sequence[str],
    profile: str,
    budget: int,
    tokenizer: Tokenizer,
    prefix_tokens: Callable[[Sequence[str], str], tuple[int, ...]],
) -> tuple[int, ...] | None:
    """Return the prefix with as much of the profile's beginning as fits; None if nothing of it does."""
    ids = tokenizer.encode(profile)
    best = None
    low, high = 1, len(ids)  # the longest beginning that fits, by bisection
    while low <= high:
        middle = (low + high) // 2
        prefix = prefix_tokens(recent, tokenizer.decode(ids[:middle]).rstrip("�"))
        if len(prefix) <= budget:
            best, low = prefix, middle + 1
        else:
            high = middle - 1
    return best
