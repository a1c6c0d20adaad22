"""Finds the answer in what a model wrote: behind thoughts, introductions, headings and code fences.

A reasoning model thinks aloud before it answers (`<think> ... </think>`), and a chat model likes to begin
with "Here is the summary:". Neither may become a text that others read, and a text that ends at the first
line end must not end there before the answer has begun.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

CHARACTERS_PER_TOKEN = 10
"""Far more than a token of an answer has on average."""
Thinking = Literal["off", "strip"]
"""`off`: the model is told not to think. `strip`: it may, and its thoughts are cut from the answer."""

OFF: dict[str, Any] = {"enable_thinking": False, "thinking": False}
"""What chat templates that know of thinking call the switch: Qwen3 and most others, DeepSeek and Granite."""

_WORDS = "think|thinking|thoughts?|reasoning|reflection|seed:think"
THOUGHT_MARK = re.compile(
    r"</?[\w:]*think[\w:]*>|\[/?THINK\]|◁/?think▷|<\|(?:channel|message)\|>", re.IGNORECASE
)
"""A token that stands around thoughts, in the vocabularies that have some."""
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
        prefilled: Whether it goes on from words put into the model's mouth: a line that ends with a colon
            is then no introduction by itself.
        whole: Whether the model ended it; false where a cap of tokens did.
    """
    return _FENCE_END.sub("", _begun(text, prefilled, whole)).strip()


def answer_or_error(
    text: str, stop: Sequence[str], prefill: str = "", *, whole: bool = True
) -> tuple[str, str | None]:
    """Return the answer within a text up to the first stop text in it, and why there is none.

    Args:
        text: What a model wrote.
        stop: Texts that end an answer.
        prefill: The words that it was to go on from; some models say them again.
        whole: See `answer_in`.
    """
    begun = _begun(text, bool(prefill), whole)
    if prefill:
        begun = begun.removeprefix(prefill.strip()).lstrip()
    answer = _FENCE_END.sub("", before_stop(begun, stop)).strip()
    return answer, why_empty(text) if text.strip() and not answer else None


def within(text: str, n_tokens: int) -> str:
    """Return a text, cut at a word where it has more characters than so many tokens write.

    For engines whose tokens cannot be counted here. Models write 2 to 6 characters a token, in any language.
    """
    most = n_tokens * CHARACTERS_PER_TOKEN
    return text if len(text) <= most else text[: most + 1].rsplit(maxsplit=1)[0][:most]


def stopped_early(text: str, prefill: str = "") -> bool:
    """Return whether a text that ended at a stop text holds something, but no answer yet."""
    return not answer_in(text, prefilled=bool(prefill))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first stop text."""
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def has_stopped(text: str, stop: Sequence[str]) -> bool:
    """Return whether the answer within a text holds a stop text; what comes before it does not count."""
    if not any(s in text for s in stop):
        return False
    answer = _begun(text, prefilled=False, whole=True)
    return any(s in answer for s in stop)


def _begun(text: str, prefilled: bool, whole: bool) -> str:
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
    """Return whether a first line ends with its only colon and, unless a cap cut it there, says no more."""
    line = line.strip().rstrip("*_")
    announces = line.endswith((":", "：")) and len(line) <= 200 and ";" not in line
    one_colon = line.count(":") + line.count("：") == 1
    return announces and one_colon and (bool(rest.strip()) or (whole and len(line.split()) > 2))


def why_empty(text: str) -> str:
    """Say in a sentence why a text holds no answer."""
    closed, opened = _CLOSE.search(text), _OPEN.search(text)
    if opened and not closed:
        return (
            "the model was still thinking aloud when its text ended; set engine.thinking to strip, or raise "
            "engine.thinking_tokens if it is"
        )
    if opened or closed:
        return "the model wrote its thoughts and no answer"
    if text.strip():
        shown = " ".join(text.split())[:60]
        return f"the model wrote an introduction and no answer ({shown!r})"
    return "the model wrote nothing"


def with_thinking(model_id: str, thinking: Thinking) -> str:
    """Return the model id under which texts are kept: a model that thinks writes other ones."""
    return f"{model_id}+thinking" if thinking == "strip" else model_id
