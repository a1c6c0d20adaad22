"""Renders the turns of a prompt in a model's chat format, or as plain paragraphs where the model has none.

Chat templates come with models and differ: some trim the text, some refuse or drop the system role, some
open a think block. In every case the prompt holds the text of every turn as given, or there is an error.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from trsr.errors import ModelError
from trsr.llm.answers import NO_THINKING
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
        special_texts: Texts that `encode` turns into special tokens, including those of the chat format.
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
            think: False closes the think block of a model that has one.

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
        """Whether a system turn can be given as such; else its text is put in front of the user's."""
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
        """The ids that the tokenizer puts before a text by itself: its BOS, or nothing."""
        whole, body = self.token_ids("x", adds_special=True), self.token_ids("x", adds_special=False)
        starts = range(len(whole) - len(body) + 1)
        return tuple(next((whole[:n] for n in starts if whole[n : n + len(body)] == body), ()))

    @cached_property
    def _line_end(self) -> list[int]:
        return self.token_ids("\n", adds_special=False)

    @cached_property
    def _adds_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text that stands alone, as SentencePiece does."""
        run_in_thread = [*self._line_end, *self.token_ids("x", adds_special=False)]
        return self.token_ids("\nx", adds_special=False) != run_in_thread

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that continues another one; no token is added around it."""
        if self._adds_blank:
            ids = self.token_ids(f"\n{text}", adds_special=False)
            n = len(self._line_end)
            if ids[:n] == self._line_end:
                return ids[n:]
        return self.token_ids(text, adds_special=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that begins a prompt, after the tokenizer's BOS unless that is written."""
        ids, leading = self.token_ids(text, adds_special=False), self.leading_ids
        return ids if tuple(ids[: len(leading)]) == leading else [*leading, *ids]

    @cached_property
    def prompt_version(self) -> int:
        """1 where prompts are the same as before version 2 of `trsr`, else 2.

        Version 2 begins with the BOS that the tokenizer adds by itself, gives models without a chat template
        an answer cue, puts the system text before the user's for models without a system role, closes think
        blocks before the answer, reads a candidate without a blank added by the tokenizer, and an answer with
        the blank that the chat template writes before it.
        """
        if not self.has_chat_template or self.answer_blank or self._adds_blank:
            return 2
        return self.text_prompt_version

    @cached_property
    def text_prompt_version(self) -> int:
        """The `prompt_version` of prompts for texts, which end without an answer cue or a label."""
        if self.has_chat_template and not self.takes_system:
            return 2
        text = self.render_chat(Prompt(_EXAMPLE))
        if self.has_chat_template and text != self.render_chat(Prompt(_EXAMPLE), think=False):
            return 2
        return 1 if self.encode_prompt(text) == self.token_ids(text, adds_special=False) else 2


def rendered(tokenizer: Tokenizer, prompt: Prompt, thinking: bool) -> str:
    """Return the text that an engine reads.

    A model that thinks cannot continue a prefill, so this is left out. Other models, and those whose answer
    consists of given phrases, are told not to think.
    """
    if thinking and prompt.parts is None:
        return tokenizer.render_chat(replace(prompt, prefill=""))
    return tokenizer.render_chat(prompt, think=False)
