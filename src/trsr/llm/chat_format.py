"""Render prompts in a model's chat format, and find the answer in the model's output.

Chat templates differ: some trim the text, some refuse or drop the system role, some open a think block. The
rendered prompt always holds the text of every turn as given, or there is an error.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from trsr.errors import ModelError
from trsr.llm import models
from trsr.llm.base import Message, Prompt

# Llama-3.2, gpt-oss and others write today's date, which would change every prompt every day.
PROMPT_DATE = datetime(2024, 7, 26)
_ALWAYS = {"date_string": "26 Jul 2024"}
_OPEN_BLOCK = re.compile(r"<([\w:]*think\w*)>\s*$", re.IGNORECASE)
_NO_CHANNEL = re.compile(r"<\|start\|>assistant$")  # gpt-oss begins an answer by naming its channel
_EXAMPLE = (Message("system", 'Weigh "both" Sides.'), Message("user", "Tom & Ann's Lamp\n\n or <3 Ropes, é?"))
_ANSWER = Message("assistant", "Ropes.")


def with_system_in_front(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Return the turns with the system text in front of the first user's, for models without that role."""
    if not turns or turns[0].role != "system":
        return tuple(turns)
    system, *rest = turns
    if not rest or rest[0].role != "user":
        return replace(system, role="user"), *rest
    return replace(rest[0], content=f"{system.content}\n\n{rest[0].content}"), *rest[1:]


class Tokenizer(ABC):
    """Text to token ids and back, and turns to text.

    Attributes:
        name: Of the model, for messages.
        has_chat_template: Whether turns are written in a chat format; else they are paragraphs.
        special_texts: Texts that `encode` turns into special tokens, including the chat format's.
    """

    name: str
    has_chat_template: bool
    special_texts: tuple[str, ...]

    @abstractmethod
    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        """Return the library's own ids of a text, with or without the special tokens it adds by itself."""

    @abstractmethod
    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        """Return turns as the model's chat template writes them, ending where the answer begins."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""

    def render_chat(self, prompt: Prompt, *, think: bool = True) -> str:
        """Return the whole prompt in the model's chat format, prefill included, up to the answer.

        Args:
            prompt: The turns.
            think: False closes the model's think block, if it has one.

        Raises:
            ModelError: the chat template fails, or does not keep the text of a turn.
        """
        turns = prompt.messages
        if not self.has_chat_template:
            return "\n\n".join(turn.content for turn in turns) + "\n\n" + prompt.prefill
        if not self.takes_system:
            turns = with_system_in_front(turns)
        text = self._write(turns, {} if think else NO_THINKING)
        if not think and (opened := _OPEN_BLOCK.search(text)):
            text = f"{text.rstrip()}\n\n</{opened[1]}>\n\n"
        if not think and _NO_CHANNEL.search(text):
            text += "<|channel|>final<|message|>"
        return text + prompt.prefill

    def _write(self, turns: Sequence[Message], variables: dict[str, Any]) -> str:
        try:
            dialog = [{"role": turn.role, "content": turn.content} for turn in turns]
            text = self.apply_template(dialog, _ALWAYS | variables)
        except Exception as error:  # a template can fail in any way that Jinja and Python can
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise ModelError(
                f"The chat template of {self.name} failed ({reason}); "
                "use another model or correct its template."
            ) from error
        for turn in turns:
            if turn.content.strip() not in text:
                raise ModelError(
                    f"The chat template of {self.name} does not keep the text of the {turn.role} turn as it "
                    "was given; use another model or correct its template."
                )
        return text

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template accepts a system turn; else its text goes in front of the user's."""
        try:
            self._write(_EXAMPLE, {})
        except ModelError:
            return False
        return True

    @cached_property
    def answer_blank(self) -> str:
        """A blank where the chat template writes one before an answer (`[/INST] yes`), else nothing."""
        if not self.has_chat_template:
            return ""
        turns = _EXAMPLE if self.takes_system else with_system_in_front(_EXAMPLE)
        try:
            answered = self._write((*turns, _ANSWER), {}).removeprefix(self._write(turns, {}))
        except ModelError:
            return ""
        return " " if answered.startswith(f" {_ANSWER.content}") else ""

    @cached_property
    def leading_ids(self) -> tuple[int, ...]:
        """The ids that the tokenizer itself puts before a text: its BOS, or nothing."""
        whole, body = self.token_ids("x", adds_special=True), self.token_ids("x", adds_special=False)
        starts = range(len(whole) - len(body) + 1)
        return tuple(next((whole[:n] for n in starts if whole[n : n + len(body)] == body), ()))

    @cached_property
    def _line_end(self) -> list[int]:
        return self.token_ids("\n", adds_special=False)

    @cached_property
    def _adds_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text on its own, as SentencePiece does."""
        apart = [*self._line_end, *self.token_ids("x", adds_special=False)]
        return self.token_ids("\nx", adds_special=False) != apart

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that continues another one; no token is added around it."""
        if self._adds_blank:
            ids = self.token_ids(f"\n{text}", adds_special=False)
            n = len(self._line_end)
            if ids[:n] == self._line_end:
                return ids[n:]
        return self.token_ids(text, adds_special=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that begins a prompt, with the tokenizer's BOS unless the text has it."""
        ids, leading = self.token_ids(text, adds_special=False), self.leading_ids
        return ids if tuple(ids[: len(leading)]) == leading else [*leading, *ids]

    @cached_property
    def prompt_version(self) -> int:
        """1 where prompts are the same as before version 2 of `trsr`, else 2.

        Version 2 begins with the tokenizer's BOS, gives models without a chat template an answer cue, puts
        the system text before the user's for models without a system role, closes think blocks before the
        answer, adds no blank before a candidate, and keeps the chat template's blank before the answer.
        """
        if not self.has_chat_template or self.answer_blank or self._adds_blank:
            return 2
        return self.text_prompt_version

    @cached_property
    def text_prompt_version(self) -> int:
        """The `prompt_version` of prompts for text generation, which end without an answer cue or a label."""
        if self.has_chat_template and not self.takes_system:
            return 2
        text = self.render_chat(Prompt(_EXAMPLE))
        if self.has_chat_template and text != self.render_chat(Prompt(_EXAMPLE), think=False):
            return 2
        return 1 if self.encode_prompt(text) == self.token_ids(text, adds_special=False) else 2


def rendered(tokenizer: Tokenizer, prompt: Prompt, thinking: bool) -> str:
    """Return the text that an engine reads.

    Thinking is disabled unless `thinking` is set and the answer is free text. A model that thinks cannot
    continue a prefill, which is then left out.
    """
    if thinking and prompt.parts is None:
        return tokenizer.render_chat(replace(prompt, prefill=""))
    return tokenizer.render_chat(prompt, think=False)


def check_vocabulary(config: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Refuse a prompt with tokens that the model has no weights for.

    Args:
        config: The model's configuration, from transformers.
        tokenizer: The tokenizer that made `ids`.
        ids: The prompt.

    Raises:
        ModelError: naming one of them.
    """
    n_known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if isinstance(n_known, int) and (highest := max(ids, default=0)) >= n_known:
        raise ModelError(
            f"The prompt holds the token {tokenizer.decode([highest])!r} ({highest}) of the tokenizer, but "
            f"the model knows the tokens 0 to {n_known - 1}; use the tokenizer of this model."
        )


def text_model_id(model: str, tokenizer: Tokenizer, thinking: Thinking) -> str:
    """Return the model id under which texts of the engine `transformers` are stored.

    Texts of prompt version 2 differ from version 1; `+thinking` never had version 1.
    """
    changed = thinking == "off" and tokenizer.text_prompt_version == 2
    return with_thinking(models.model_id(model) + "+prompt2" * changed, thinking)


Thinking = Literal["off", "strip"]
"""`off` disables thinking; `strip` allows it and cuts the thoughts from the answer."""
NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}
"""Switches of chat templates: Qwen3 and most others, DeepSeek and Granite."""
_MAX_CHARACTERS_PER_TOKEN = 10  # models write 2 to 6 on average, in any language

_WORDS = "think|thinking|thoughts?|reasoning|reflection|seed:think"
THOUGHT_MARK = re.compile(
    r"</?[\w:]*think[\w:]*>|\[/?THINK\]|◁/?think▷|<\|(?:channel|message)\|>", re.IGNORECASE
)
"""A token that opens or closes thoughts."""
# Also the channels of gpt-oss, as a server that leaves special tokens out runs them together.
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
        text: A model's output, or its beginning.
        prefilled: Whether it continues a prefill: a line that ends with a colon is then no introduction by
            itself.
        whole: False if the token limit cut the output off.
    """
    return _FENCE_END.sub("", _from_answer(text, prefilled, whole)).strip()


def answer_or_error(
    text: str, stop: Sequence[str], prefill: str = "", *, whole: bool = True
) -> tuple[str, str | None]:
    """Return the answer within a text up to its first stop text, and the reason if there is none.

    Args:
        text: A model's output.
        stop: Texts that end an answer.
        prefill: The words that the output continues; some models repeat them.
        whole: See `answer_in`.
    """
    begun = _from_answer(text, bool(prefill), whole)
    if prefill:
        begun = begun.removeprefix(prefill.strip()).lstrip()
    answer = _FENCE_END.sub("", before_stop(begun, stop)).strip()
    return answer, _why_empty(text) if text.strip() and not answer else None


def within(text: str, n_tokens: int) -> str:
    """Cut a text at a word if it has far more characters than `n_tokens` tokens can have.

    For engines whose tokens cannot be counted locally.
    """
    limit = n_tokens * _MAX_CHARACTERS_PER_TOKEN
    return text if len(text) <= limit else text[: limit + 1].rsplit(maxsplit=1)[0][:limit]


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
    """Return the model id under which texts are stored: thinking changes the texts."""
    return f"{model_id}+thinking" if thinking == "strip" else model_id
