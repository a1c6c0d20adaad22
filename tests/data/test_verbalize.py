from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from helpers import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr import text as verbalize
from trsr.templating import plain_line
from trsr.text import NO_TEXT, verbalize_item
from trsr.types import Item

MARKERS = [
    "<|im_end|>",
    "<|im_start|>system",
    "### Assistant:",
    "\nUser:",
    "</s>",
    "[INST]",
    "&lt;|im_end|&gt;",
    "<b>",
]
PIECES = st.one_of(
    st.text(max_size=20), st.sampled_from([*MARKERS, "&amp;", "<p>", " ", "\n", "|", "a", "<", ">"])
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


class LetterPairs:
    """A tokenizer of two letters a token."""

    def encode(self, text: str) -> list[int]:
        return [ord(a) * 0x110000 + ord(b) for a, b in zip(text[::2], text[1::2] + "\0", strict=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i // 0x110000) + chr(i % 0x110000) for i in token_ids).replace("\0", "")


def line(text: str, cap: int | None = None) -> str:
    return verbalize_item(Item("id-1", {"description": text}), max_field_tokens=cap)


def test_fields_stand_in_order_without_the_id() -> None:
    item = Item("B00X", {"title": "Lamp", "main_category": "Home|Light"})
    assert verbalize_item(item) == "Title: Lamp; Main category: Home, Light"
    assert (
        verbalize_item(item, fields=["main_category", "colour", "title"])
        == "Main category: Home, Light; Title: Lamp"
    )


@pytest.mark.parametrize("fields", [{}, {"title": "  "}, {"title": "<p></p>"}, {"title": "\u200b"}])
def test_an_item_without_text_says_so(fields: dict[str, str]) -> None:
    assert verbalize_item(Item("x", fields)) == NO_TEXT


def test_an_item_without_the_chosen_fields_says_so() -> None:
    assert verbalize_item(Item("x", {"title": "Lamp"}), fields=["brand"]) == NO_TEXT


def test_html_is_read_and_dropped() -> None:
    text = "Salt &amp; pepper,<br/>&quot;fine&quot; <b>new</b><script>track()</script> 5&amp;lt;6, a < b > c"
    assert line(text) == 'Description: Salt & pepper, "fine" new 5<6, a < b > c'


def test_escaped_markers_do_not_come_back_to_life() -> None:
    assert "<|im_end|>" not in line("&lt;|im_end|&gt;")
    assert "<|im_end|>" not in line("&amp;lt;|im_end|&amp;gt;")


def test_a_field_called_user_does_not_speak() -> None:
    assert verbalize_item(Item("x", {"user": "hello", "title": "Lamp"})) == "User - hello; Title: Lamp"


def test_each_field_is_capped_by_itself() -> None:
    item = Item("x", {"title": "one two three, four", "description": "five six seven"})
    assert verbalize_item(item, max_field_tokens=2) == "Title: one two; Description: five six"
    assert verbalize_item(item, max_field_tokens=4) == "Title: one two three,; Description: five six seven"


def test_the_tokenizer_that_is_given_counts() -> None:
    item = Item("x", {"title": "abcdefgh", "brand": "xy"})
    line = verbalize_item(item, max_field_tokens=3, tokenizer=LetterPairs())
    assert line == "Title: abcdef; Brand: xy"


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        line("x", 0)


@pytest.mark.parametrize(
    "text", ["word " * 200_000, "x" * 1_000_000, "<b" * 500_000, "&amp;" * 200_000, "\n" * 10**6]
)
def test_a_description_of_a_megabyte_is_cut_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    sizes = []

    def measured(text: str) -> str:
        sizes.append(len(text))
        return plain_line(text)

    monkeypatch.setattr(verbalize, "plain_line", measured)
    texts = []
    assert cpu_seconds(lambda: texts.append(line(text, 50))) < 5.0
    assert len(texts[0]) < 2000
    assert max(sizes) <= 20_000


@settings(deadline=None)
@given(TEXTS, st.one_of(st.none(), st.integers(1, 12)))
def test_the_line_can_neither_end_a_prompt_nor_speak(text: str, cap: int | None) -> None:
    item = Item("id-1", {"title": text, "system": text, "a\nb": text})
    for tokenizer in (None, LetterPairs()):
        out = verbalize_item(item, max_field_tokens=cap, tokenizer=tokenizer)
        assert not re.search(
            r"[\n\r\t]|<\||\|>|##|</s>|\[INST\]|\b(assistant|system|user|human)\s*:", out, re.I
        )
        assert plain_line(out) == out


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_a_greater_cap_only_adds(text: str, cap: int) -> None:
    small, large = line(text, cap), line(text, cap + 1)
    assert large.startswith(small) or small == NO_TEXT


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12))
def test_a_field_never_has_more_tokens_than_its_cap(text: str, cap: int) -> None:
    tokenizer = LetterPairs()
    out = verbalize_item(Item("x", {"t": text}), max_field_tokens=cap, tokenizer=tokenizer)
    assert out == NO_TEXT or len(tokenizer.encode(out.removeprefix("T: "))) <= cap
