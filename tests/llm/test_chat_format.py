"""Prompts hold every turn and one BOS with any chat template; answers are found in the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Never

import jinja2
import pytest

from trsr.errors import ModelError
from trsr.llm.base import Message, Prompt
from trsr.llm.chat_format import (
    Tokenizer,
    answer_in,
    answer_or_error,
    has_stopped,
    with_system_in_front,
    within,
)
from trsr.llm.llamacpp import LlamaCppTokenizer
from trsr.testing.contracts import ask


def written(text: str, only: str = "true") -> str:
    """Return a chat template that writes `text` for each turn for which `only` is true."""
    turn = f"<|{{{{ message.role }}}}|>{{{{ {text} }}}}<|end|>\n"
    return f"{{% for message in messages if {only} %}}{turn}{{% endfor %}}<|assistant|>"


def refused(test: str, words: str) -> str:
    return f"{{% if {test} %}}{{{{ raise_exception('{words}') }}}}{{% endif %}}"


KEEPS = written("message.content")
TRIMS = written("message.content | trim")
REFUSES_SYSTEM = refused("messages[0].role == 'system'", "System role not supported") + KEEPS
DROPS_SYSTEM = written("message.content", only="message.role != 'system'")
ALTERNATES = refused("messages[0].role != 'user'", "Conversation roles must alternate") + TRIMS
LOWERS = written("message.content | lower")
SHORTENS = written("message.content | truncate(9)")
FAILS = "{{ messages[7].content.nothing }}"
THINKS = KEEPS + "{% if enable_thinking == false %}<think>\n\n</think>\n\n{% endif %}"
ALWAYS_THINKS = KEEPS + "{{ '<think>\\n' }}"
CHANNELS = KEEPS.replace("<|assistant|>", "<|start|>assistant")
BOS = "{{ bos_token }}"


def _raise(words: str) -> Never:
    raise jinja2.TemplateError(words)


class TemplateTokenizer(Tokenizer):
    """Bytes, with a chat template and a BOS (token 256, `<s>`) of which either may be missing."""

    special_texts = ("<s>",)

    def __init__(self, template: str | None = KEEPS, *, adds_bos: bool = False, blank: str = "") -> None:
        environment = jinja2.Environment()
        environment.globals.update(raise_exception=_raise, bos_token="<s>")
        self._template = None if template is None else environment.from_string(template)
        self.has_chat_template = template is not None
        self.name = "tiny"
        self._adds_bos, self._blank = adds_bos, blank

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        assert self._template is not None
        return self._template.render(messages=turns, **variables)

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        first, *rest = text.split("<s>")
        ids = list((self._blank * bool(first) + first).encode())
        for part in rest:
            ids += [256, *(self._blank * bool(part) + part).encode()]
        return [256, *ids] if adds_special and self._adds_bos else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("<s>" if i == 256 else chr(i) for i in token_ids)


FRAMED = "<|user|>You answer in one sentence.\n\nSeeds?<|end|>\n<|assistant|>"
INSTRUCTS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content }}"
    "{% else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (KEEPS, "<|system|>You answer in one sentence.<|end|>\n<|user|>Seeds?<|end|>\n<|assistant|>Yes,"),
        (TRIMS, "<|system|>You answer in one sentence.<|end|>\n<|user|>Seeds?<|end|>\n<|assistant|>Yes,"),
        (REFUSES_SYSTEM, f"{FRAMED}Yes,"),
        (DROPS_SYSTEM, f"{FRAMED}Yes,"),
        (ALTERNATES, f"{FRAMED}Yes,"),
        (None, "You answer in one sentence.\n\nSeeds?\n\nYes,"),
    ],
)
def test_a_system_text_without_a_role_is_put_in_front_of_the_users(template: str | None, text: str) -> None:
    assert TemplateTokenizer(template).render_chat(ask("Seeds?", prefill="Yes,")) == text


def test_later_turns_stay_as_they_are_when_the_system_text_moves() -> None:
    turns = tuple(Message(role, role[0]) for role in ("system", "user", "assistant", "user"))
    moved = with_system_in_front(turns)
    assert [turn.content for turn in moved] == ["s\n\nu", "a", "u"]
    assert with_system_in_front(moved) == moved
    assert with_system_in_front(turns[:1]) == (Message("user", "s"),)


@pytest.mark.parametrize(
    "template",
    [LOWERS, SHORTENS, written("message.content | e"), "hello", KEEPS.replace("messages", "messages[1:]")],
)
def test_a_template_that_does_not_keep_the_text_is_one_error(template: str) -> None:
    with pytest.raises(ModelError, match=r"chat template of tiny does not keep the text of the \w+ turn"):
        TemplateTokenizer(template).render_chat(ask("Seeds & Soil? Many Of Them"))


@pytest.mark.parametrize("template", [FAILS, "{{ 1 / 0 }}", "{{ raise_exception('a\nb') }}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(ModelError, match="chat template of tiny failed") as caught:
        TemplateTokenizer(template).render_chat(Prompt(()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "end", "closed"),
    [
        (THINKS, "<|assistant|>", "<|assistant|><think>\n\n</think>\n\n"),
        (ALWAYS_THINKS, "<|assistant|><think>\n", "<|assistant|><think>\n\n</think>\n\n"),
        (CHANNELS, "<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_thoughts_are_closed_only_where_the_answer_is_to_come_next(
    template: str, end: str, closed: str
) -> None:
    tokenizer = TemplateTokenizer(template)
    assert tokenizer.render_chat(ask("Seeds?")).endswith(end)
    answered = tokenizer.render_chat(ask("Seeds?", prefill="Answer:"), think=False)
    assert answered.endswith(f"{closed}Answer:")


@pytest.mark.parametrize("template", [INSTRUCTS, KEEPS, TRIMS, ALTERNATES, ALWAYS_THINKS, None])
def test_the_blank_that_a_template_writes_before_an_answer_is_known(template: str | None) -> None:
    assert TemplateTokenizer(template).answer_blank == " " * (template == INSTRUCTS)


def test_a_prompt_of_tomorrow_is_that_of_today() -> None:
    dated = KEEPS.replace("<|assistant|>", "{{ date_string or now() }}")
    assert TemplateTokenizer(dated).render_chat(ask("Seeds?")).endswith("26 Jul 2024")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [None, KEEPS, BOS + KEEPS, BOS + REFUSES_SYSTEM])
def test_one_bos_begins_a_prompt_if_the_tokenizer_or_the_template_writes_it(
    template: str | None, adds_bos: bool
) -> None:
    tokenizer = TemplateTokenizer(template, adds_bos=adds_bos)
    ids = tokenizer.encode_prompt(tokenizer.render_chat(ask("Seeds?")))
    writes = template is not None and template.startswith(BOS)
    assert ids.count(256) == (adds_bos or writes)
    assert (ids[0] == 256) == (adds_bos or writes)
    assert 256 not in tokenizer.encode("Seeds?")


@pytest.mark.parametrize(
    ("template", "adds_bos", "blank", "of_rankings", "of_texts"),
    [
        (KEEPS, False, "", 1, 1),
        (TRIMS, False, "", 1, 1),
        (BOS + KEEPS, True, "", 1, 1),
        (KEEPS, True, "", 2, 2),
        (KEEPS, False, " ", 2, 1),
        (BOS + KEEPS, False, " ", 2, 1),
        (None, False, "", 2, 1),
        (None, True, "", 2, 2),
        (INSTRUCTS, False, "", 2, 1),
        (REFUSES_SYSTEM, False, "", 2, 2),
        (DROPS_SYSTEM, False, "", 2, 2),
        (THINKS, False, "", 2, 2),
        (ALWAYS_THINKS, False, "", 2, 2),
        (CHANNELS, False, "", 2, 2),
        (FAILS, False, "", 2, 2),
    ],
)
def test_prompts_have_the_second_version_only_where_it_differs_from_the_first(
    template: str | None, adds_bos: bool, blank: str, of_rankings: int, of_texts: int
) -> None:
    tokenizer = TemplateTokenizer(template, adds_bos=adds_bos, blank=blank)
    assert (tokenizer.prompt_version, tokenizer.text_prompt_version) == (of_rankings, of_texts)


def test_a_text_that_continues_another_gets_no_blank_of_the_tokenizers_own() -> None:
    tokenizer = TemplateTokenizer(None, adds_bos=True, blank=" ")
    assert tokenizer.decode(tokenizer.encode("lamp")) == "lamp"
    assert tokenizer.decode(tokenizer.encode_prompt("A lamp")) == "<s> A lamp"
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_prompt_begins_with_the_bos_that_llama_cpp_puts_there(
    adds_bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_server: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            ids = list(request["content"].encode())
            return {"tokens": [256, *ids] if request["add_special"] and adds_bos else ids}
        if any(turn["role"] == "system" for turn in request["messages"]):
            return {"error": {"code": 500, "message": "System role not supported"}}
        return {"prompt": "".join(turn["content"] for turn in request["messages"])}

    monkeypatch.setattr("trsr.llm.llamacpp.ask_server", answer)
    tokenizer = LlamaCppTokenizer(None, "x")
    text = tokenizer.render_chat(ask("Seeds?"))
    assert text == "You answer in one sentence.\n\nSeeds?"
    assert tokenizer.encode_prompt(text) == [*([256] if adds_bos else []), *text.encode()]
    assert tokenizer.encode("lamp") == list(b"lamp")


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
