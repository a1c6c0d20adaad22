"""A prefix keeps its budget: notes first, then the newest items, then as much of the profile as fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trsr.errors import BudgetError
from trsr.llm.fake import FakeTokenizer
from trsr.recommend.prompt import Fitted, fit

WORDS = [f"w{number}" for number in range(100)]


class WordTokenizer(FakeTokenizer):
    """One token a word."""

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in token_ids)


def text(first: int, length: int) -> str:
    return " ".join(WORDS[first : first + length])


def renderer(n_frame: int) -> Callable[[Sequence[str], str, str], tuple[int, ...]]:
    """Return a template: a frame, notes, two words before a profile, one before each recent item."""

    def prefix_tokens(recent: Sequence[str], profile: str, notes: str) -> tuple[int, ...]:
        words = ["w99"] * n_frame + [notes]
        if profile:
            words += ["w98", "w98", profile]
        for item in recent:
            words += ["w97", item]
        return tuple(WordTokenizer().encode(" ".join(words)))

    return prefix_tokens


def fitted(lengths: list[int], n_profile: int, n_frame: int, budget: int) -> Fitted:
    """Fit items of these lengths; item k has the words from 10 * k on, the profile those from 70."""
    recent = [text(10 * place, length) for place, length in enumerate(lengths)]
    return fit(
        recent,
        text(70, n_profile),
        budget=budget,
        tokenizer=WordTokenizer(),
        prefix_tokens=renderer(n_frame),
    )


LENGTHS = st.lists(st.integers(1, 9), max_size=6)
PROFILE = st.integers(0, 20)
FRAME = st.integers(0, 10)
BUDGET = st.integers(0, 80)


@given(LENGTHS, PROFILE, FRAME, BUDGET)
def test_the_budget_is_kept_or_refused(lengths: list[int], n_profile: int, n_frame: int, budget: int) -> None:
    if n_frame > budget:
        with pytest.raises(BudgetError):
            fitted(lengths, n_profile, n_frame, budget)
    else:
        assert len(fitted(lengths, n_profile, n_frame, budget).prefix) <= budget


@given(LENGTHS, PROFILE, FRAME, BUDGET)
def test_the_newest_items_come_before_older_ones_and_before_the_profile(
    lengths: list[int], n_profile: int, n_frame: int, budget: int
) -> None:
    assume(n_frame <= budget)
    found = fitted(lengths, n_profile, n_frame, budget)
    kept = lengths[found.n_recent_cut :]
    present = {token // 10 for token in found.prefix if token < 70}
    assert present == set(range(found.n_recent_cut, len(lengths)))
    if found.n_recent_cut:
        one_more = lengths[found.n_recent_cut - 1]
        assert n_frame + sum(length + 1 for length in [one_more, *kept]) > budget


@given(LENGTHS, PROFILE, FRAME, BUDGET)
def test_what_is_left_goes_to_the_beginning_of_the_profile(
    lengths: list[int], n_profile: int, n_frame: int, budget: int
) -> None:
    assume(n_frame <= budget)
    found = fitted(lengths, n_profile, n_frame, budget)
    shown = [token for token in found.prefix if 70 <= token < 97]
    room = budget - n_frame - sum(length + 1 for length in lengths[found.n_recent_cut :]) - 2
    assert shown == list(range(70, 70 + max(0, min(n_profile, room))))


@given(LENGTHS, PROFILE, FRAME, BUDGET)
def test_every_token_left_out_is_counted(
    lengths: list[int], n_profile: int, n_frame: int, budget: int
) -> None:
    assume(n_frame <= budget)
    found = fitted(lengths, n_profile, n_frame, budget)
    whole = n_frame + sum(length + 1 for length in lengths) + (n_profile + 2 if n_profile else 0)
    assert found.n_tokens_cut == whole - len(found.prefix)
    assert (found.n_tokens_cut == 0) == (whole <= budget)


@given(LENGTHS, PROFILE, st.integers(1, 8), FRAME, BUDGET)
def test_notes_are_cut_only_where_they_do_not_fit_alone(
    lengths: list[int], n_profile: int, n_notes: int, n_frame: int, budget: int
) -> None:
    assume(n_frame <= budget)
    recent = [text(10 * place, length) for place, length in enumerate(lengths)]
    notes, render = text(90, n_notes), renderer(n_frame)
    found = fit(
        recent,
        text(70, n_profile),
        notes,
        budget=budget,
        tokenizer=WordTokenizer(),
        prefix_tokens=render,
    )
    shown = [token for token in found.prefix if 90 <= token < 97]
    assert shown == list(range(90, min(90 + n_notes, 97)))[: budget - n_frame]
    if n_notes > budget - n_frame:
        assert found.n_recent_cut == len(lengths)
    assert found.n_tokens_cut == len(render(recent, text(70, n_profile), notes)) - len(found.prefix)


def test_a_frame_beyond_the_budget_says_what_to_change() -> None:
    with pytest.raises(
        BudgetError,
        match=r"needs 9 tokens, 0 are left beside the longest candidate; raise prompt\.max_tokens",
    ):
        fitted([], 0, 9, -5)


def test_a_profile_cut_within_a_letter_ends_before_it() -> None:
    from trsr.llm.fake import FakeTokenizer

    tokenizer = FakeTokenizer()
    found = fit(
        [],
        "aéé",
        budget=4,
        tokenizer=tokenizer,
        prefix_tokens=lambda _recent, profile, _notes: tuple(tokenizer.encode(profile)),
    )
    assert tokenizer.decode(found.prefix) == "aé"
    assert found.n_tokens_cut == 2
