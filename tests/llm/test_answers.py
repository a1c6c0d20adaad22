"""Only the answer of what a model wrote is taken: no thoughts, introductions, headings or code fences."""

from __future__ import annotations

import pytest

from trsr.llm.chat_format import answer_in, answer_or_error, has_stopped, within

LIKES = "The user likes pens."


@pytest.mark.parametrize(
    "before",
    [
        "",
        "\n",
        "<think>\nOkay, the user likes ...\n\nSo: pens.\n</think>\n\n",
        "<think>\n\n</think>\n\n",
        "So the user chose a pen.\n</think>\n",  # the prompt had opened it
        "<Thinking>pens</Thinking>",
        "[THINK]pens[/THINK]",
        "◁think▷pens◁/think▷",
        "<|channel|>analysis<|message|>pens<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>pens<|end|><|start|>assistant<|channel|>final <|message|>",
        "analysisWe need a line.\nSo: pens.assistantfinal",  # the special tokens were left out
        "Here is the updated summary of the user's preferences:\n\n",
        "Here's a short summary: ",
        "Sure! Here is the updated summary:\n",
        "Certainly!\n\n",
        "Okay, here is the summary:\n",
        "I'd be happy to help with that.\n\n",
        "Based on the items, the user's preferences are as follows:\n",
        "## Summary\n\n",
        "**Updated User Profile**\n",
        "**Summary:** ",
        "Summary: ",
        "```\n",
        "```markdown\n# Profile\n",
        "Voici le résumé :\n",
        "---\n",
        "<think>pens</think>\n\nSure! Here is the summary:\n\n### Summary\n",
    ],
)
def test_what_stands_before_an_answer_is_no_part_of_it(before: str) -> None:
    assert answer_in(before + LIKES) == LIKES
    assert answer_or_error(f"{before}{LIKES}\nMore.", ("\n",)) == (LIKES, None)
    assert not has_stopped(before, ("\n",))
    assert has_stopped(f"{before}{LIKES}\n", ("\n",))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>", "still thinking aloud"),
        ("<think>\nOkay, the user", "engine.thinking to strip"),
        ("<think>a</think>", "its thoughts and no answer"),
        ("<|channel|>analysis<|message|>The user\nlikes", "engine.thinking to strip"),
        ("analysisThe user\nlikes", "engine.thinking to strip"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>", "no answer"),
        ("Here is the updated summary of the user's preferences:", "an introduction and no answer"),
        ("## Summary", "an introduction"),
        ("Sure!", "an introduction"),
    ],
)
def test_a_text_without_an_answer_says_why(text: str, why: str) -> None:
    answer, error = answer_or_error(text, ("\n",))
    assert answer == ""
    assert error is not None
    assert why in error


@pytest.mark.parametrize("end", ["<|return|>", "<|end|><|start|>assistant<|channel|>commentary<|message|>x"])
def test_the_final_channel_alone_is_the_answer(end: str) -> None:
    final = "<|channel|>analysis<|message|>pens<|end|><|start|>assistant<|channel|>final<|message|>"
    assert answer_in(final + LIKES + end) == LIKES


@pytest.mark.parametrize(
    "text",
    [
        "Analysis of markets, statistics.",
        "garden hoses, Coilguard brass nozzle; before that birthday cards.",
        "Likes thrillers: dark ones, slow ones.",
        "ok",
        "Great Britain and its railways.",
        "Here and there a cookery book.",
        "**Thrillers** and `code`.",
        "Category: Music; Title:",
    ],
)
def test_an_answer_stays_as_it_is(text: str) -> None:
    assert answer_in(text) == text
    assert answer_or_error(text, ("\n",), "This shopper buys") == (text, None)


def test_a_line_that_a_cap_cut_after_a_colon_is_an_answer() -> None:
    line = "The user reads news of Category:"
    assert answer_in(line, whole=False) == line
    assert answer_in(line) == ""


def test_a_repeated_prefill_is_removed() -> None:
    text = "Sure! Here is the summary:\n\nThis shopper buys pens."
    assert answer_or_error(text, ("\n",), "This shopper buys") == ("pens.", None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("garden hoses", "garden hoses"),
        ("garden hoses and more", "garden hoses and"),
        ("garden hoses andmore and", "garden hoses"),
        ("x" * 100, "x" * 20),
    ],
)
def test_a_text_is_cut_at_a_word_only_where_it_is_far_longer_than_its_tokens(text: str, kept: str) -> None:
    assert within(text, 2) == kept
