"""Finds the answer in what a model wrote: after thoughts, introductions, headings and code fences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

Thinking = Literal["off", "strip"]
"""`off`: the model is told not to think. `strip`: it may, and its thoughts are cut from the answer."""
NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}
"""Switches of chat templates: Qwen3 and most others, DeepSeek and Granite."""
_MAX_CHARACTERS_PER_TOKEN = 10  # models write 2 to 6 on average, in any language

_WORDS = "think|thinking|thoughts?|reasoning|reflection|seed:think"
THOUGHT_MARK = re.compile(
    r"</?[\w:]*think[\w:]*>|\[/?THINK\]|◁/?think▷|<\|(?:channel|message)\|>", re.IGNORECASE
)
"""A token that opens or closes thoughts, in the vocabularies that have some."""
# The channels of gpt-oss as they are written, or run together by a server that leaves special tokens out.
_OPEN = re.compile(
    rf"<\s?(?:{_WORDS})\s?>|\[\s?THINK\]|◁think▷|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*<\|message\|>"
    r"|(?-i:\Aanalysis(?=[A-Z]))",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"<\s?/\s?(?:{_WORDS})\s?>|\[/THINK\]|◁/think▷|<\|channel\|>\s*final\b[^<]*<\|message\|>|assistantfinal",
    re.IGNORECASE,
)
_TURN_END = re.compile(r"<\|(?:end|return|call)\|>")
_INTERJECTION = re.compile(
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|all right|got it|understood|"
    r"no problem)[!,.:…]+\s*",
    re.IGNORECASE,
)
_ABOUT = r"(?:summar\w+|profiles?|paragraph|description|overview|preferences|interests|version|answer)"
_INTRODUCTION = re.compile(
    rf"(?:here(?:['’]s|\s+is|\s+are)|(?:below|this|the following)\s+is)\b"
    rf"(?=[^\n:]*\b{_ABOUT}\b)[^\n:]{{0,200}}:"
    r"|based on\b[^\n:]{0,200}:"
    r"|(?:\*\*|__)?(?:(?:the|updated|revised|new|final|combined|merged|short|brief|user|customer|reader|person|"
    r"shopper|preferences?|of)(?:['’]s)?\s+)*(?:summary|profile)\s*(?:\*\*|__)?\s*:(?:\*\*|__)?",
    re.IGNORECASE,
)
_LEAD_LINE = re.compile(
    r"(?:```|~~~)\w*"  # a code fence
    r"|#{1,6}\s.*"  # a heading
    r"|[-*_]{3,}"  # a rule
    rf"|(?:\*\*|__)[^*_]*(?::|\b{_ABOUT})(?:\*\*|__):?"  # a heading in bold
    r"|(?:I(?:['’]d| would) be (?:happy|glad)|I(?:['’]ll| will| can| have (?:read|review|analy))|"
    r"Let(?: me|['’]s))\b.*[.!:]",
    re.IGNORECASE,
)
_FENCE_END = re.compile(r"\n\s*(?:```|~~~)\s*$")


def answer_in(text: str, *, prefilled: bool = False, whole: bool = True) -> str:
    """Return the answer within a text, as far as it has begun; empty if it has not.

    Args:
        text: What a model wrote, or its beginning.
        prefilled: Whether it continues a prefill: a line that ends with a colon is then no introduction by
            itself.
        whole: Whether the model ended it; false where a cap of tokens did.
    """
    return _FENCE_END.sub("", _from_answer(text, prefilled, whole)).strip()


def answer_or_error(
    text: str, stop: Sequence[str], prefill: str = "", *, whole: bool = True
) -> tuple[str, str | None]:
    """Return the answer within a text up to the first stop text in it, and why there is none.

    Args:
        text: What a model wrote.
        stop: Texts that end an answer.
        prefill: The words that it continues; some models repeat them.
        whole: See `answer_in`.
    """
    begun = _from_answer(text, bool(prefill), whole)
    if prefill:
        begun = begun.removeprefix(prefill.strip()).lstrip()
    answer = _FENCE_END.sub("", before_stop(begun, stop)).strip()
    return answer, _why_empty(text) if text.strip() and not answer else None


def within(text: str, n_tokens: int) -> str:
    """Return a text, cut at a word where it has far more characters than `n_tokens` tokens can have.

    For engines whose tokens cannot be counted here.
    """
    most = n_tokens * _MAX_CHARACTERS_PER_TOKEN
    return text if len(text) <= most else text[: most + 1].rsplit(maxsplit=1)[0][:most]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first stop text."""
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def has_stopped(text: str, stop: Sequence[str]) -> bool:
    """Return whether the answer within a text holds a stop text; those before the answer do not count."""
    if not any(s in text for s in stop):
        return False
    answer = _from_answer(text, prefilled=False, whole=True)
    return any(s in answer for s in stop)


def _from_answer(text: str, prefilled: bool, whole: bool) -> str:
    """Return a text from where the answer begins; its end is left as it is."""
    if closed := list(_CLOSE.finditer(text)):
        text = _TURN_END.split(text[closed[-1].end() :], maxsplit=1)[0]
    if opened := _OPEN.search(text):
        text = text[: opened.start()]
    while True:
        if (inner := text.lstrip()) and "\n" not in text[: -len(inner)]:
            inner = text  # blanks within its line are the answer's own
        line, _, rest = inner.partition("\n")
        bare = inner.lstrip()
        if found := _INTERJECTION.match(bare) or _INTRODUCTION.match(bare):
            text = bare[found.end() :].lstrip(" *_")
        elif line.strip() and (
            _LEAD_LINE.fullmatch(line.strip()) or (not prefilled and _announces(line, rest, whole))
        ):
            text = rest
        else:
            return inner


def _announces(line: str, rest: str, whole: bool) -> bool:
    """Return whether a first line ends with its only colon and was not cut there by a cap of tokens."""
    line = line.strip().rstrip("*_")
    announces = line.endswith((":", "：")) and len(line) <= 200 and ";" not in line
    one_colon = line.count(":") + line.count("：") == 1
    return announces and one_colon and (bool(rest.strip()) or (whole and len(line.split()) > 2))


def _why_empty(text: str) -> str:
    closed, opened = _CLOSE.search(text), _OPEN.search(text)
    if opened and not closed:
        return (
            "the model was still thinking aloud when its text ended; set engine.thinking to strip, or raise "
            "engine.thinking_tokens if it is"
        )
    if opened or closed:
        return "the model wrote its thoughts and no answer"
    return f"the model wrote an introduction and no answer ({' '.join(text.split())[:60]!r})"


def with_thinking(model_id: str, thinking: Thinking) -> str:
    """Return the model id under which texts are kept; a model that thinks writes other texts."""
    return f"{model_id}+thinking" if thinking == "strip" else model_id
