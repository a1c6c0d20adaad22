"""Writes texts with a Hugging Face causal language model, many prompts at once.

Prompts wait round by round, a round being as many as there were at first: those of later rounds follow from
answers to earlier ones, and what is asked in the end should not be the long chain of a few. In a round the
longest come first. They join the texts being written as others finish, under a token budget.
`prompt_reading` reads them, `row_writing` writes. Label scoring with the same models lives in `trsr.rank`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trsr.errors import EngineError
from trsr.llm import models
from trsr.llm.answers import (
    THOUGHT_MARK,
    Thinking,
    answer_or_error,
    before_stop,
    has_stopped,
)
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.context import check_vocabulary, context_of
from trsr.llm.counting import rendered, text_model_id
from trsr.llm.prompt_reading import PromptReader
from trsr.llm.row_writing import RowWriter, Text
from trsr.llm.thin_products import turn_thin_products
from trsr.llm.transformers import HfTokenizer, load_causal_lm
from trsr.llm.wording import Wording


class TransformersGenerator:
    """Greedy or sampled generation of texts, at most `max_rows` and `max_batch_tokens` positions together.

    Attributes:
        reading_seconds: Time spent on reading prompts so far.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = 16384,
        max_prompt_tokens: int = 2048,
        max_rows: int | None = None,
        thinking: Thinking = "off",
        thinking_tokens: int = 2048,
    ) -> None:
        self._model: Any = load_causal_lm(model, dtype=dtype, device=device)
        turn_thin_products(self._model)
        self._thinks = thinking == "strip"
        self._thinking_tokens = thinking_tokens
        self.tokenizer = HfTokenizer(models.hf_folder(model))
        self.model_id = text_model_id(model, self.tokenizer, thinking)
        self.max_batch_tokens = max_batch_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self._context = context_of(self._model.config)
        self.max_rows = max_rows
        self.reading_seconds = 0.0
        eos = self._model.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.hf.eos_token_id}
        added = self.tokenizer.hf.added_tokens_decoder
        self._marks = {id_: t.content for id_, t in added.items() if THOUGHT_MARK.fullmatch(t.content)}
        self._token_texts: dict[int, str] = {}
        self._word_tokens: dict[str, list[int]] = {}

    def close(self) -> None:
        """Free the model; further calls fail."""
        self._model = None

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result a prompt as each is finished; see `TextGenerator`.

        Raises:
            EngineError: the generator was closed.
        """
        if self._model is None:
            raise EngineError("This engine was closed; open a new one.")
        if self._thinks:
            params = replace(params, max_new_tokens=params.max_new_tokens + self._thinking_tokens)
        most = self._most_prompt_tokens(params)
        reader = PromptReader(self._model, self.max_prompt_tokens + params.max_new_tokens)
        writer = RowWriter(
            self._model, reader, params, lambda written: self._goes_on(written, params.stop), self._eos
        )
        waiting: list[Text] = []
        n_seen, n_first = 0, max(1, len(prompts))
        while True:
            if n_seen < len(prompts):
                new = [self._text_of(index, prompts[index]) for index in range(n_seen, len(prompts))]
                n_seen += len(new)
                waiting += [text for text in new if len(text.prompt) <= most]
                waiting.sort(key=lambda text: (text.index // n_first, -len(text.prompt), text.prompt))
                yield from (_too_long(text, most) for text in new if len(text.prompt) > most)
            n_joining = how_many_join(
                waiting,
                writer.texts,
                params.max_new_tokens,
                self.max_batch_tokens,
                self.max_rows if reader.in_batches else 1,
            )
            if n_joining:
                started = time.perf_counter()
                writer.join(waiting[:n_joining])
                self.reading_seconds += time.perf_counter() - started
                del waiting[:n_joining]
            if not writer.texts:
                return
            for text in writer.step():
                yield self._result(text, params)

    def _text_of(self, index: int, prompt: Prompt) -> Text:
        """Return a prompt as token ids; prompts of one kind differ in the last message only."""
        ids = self.tokenizer.encode_prompt(rendered(self.tokenizer, prompt, self._thinks))
        check_vocabulary(self._model.config, self.tokenizer, ids)
        wording = None
        if prompt.parts is not None:
            wording = Wording(prompt.parts, self._encode_word, self._eos)
        return Text(index, ids, prompt.messages[:-1], wording=wording, prefill=prompt.prefill)

    def _result(self, text: Text, params: GenerationParams) -> Generation:
        """Return what was written as a result."""
        written, error = self._decode(text.written), None
        if text.wording is not None:
            words = before_stop(written, params.stop).strip()
        else:
            whole = len(text.written) < params.max_new_tokens
            words, error = answer_or_error(written, params.stop, text.prefill, whole=whole)
        return Generation(text.index, words, len(text.prompt), len(text.written), text.seconds, error)

    def _encode_word(self, text: str) -> list[int]:
        if text not in self._word_tokens:
            self._word_tokens[text] = self.tokenizer.encode(text)
        return self._word_tokens[text]

    def _most_prompt_tokens(self, params: GenerationParams) -> int:
        """Return how long a prompt may be, so that its answer fits the model's context too."""
        if self._context is None:
            return self.max_prompt_tokens
        return min(self.max_prompt_tokens, self._context - params.max_new_tokens)

    def _goes_on(self, written: list[int], stop: tuple[str, ...]) -> bool:
        """Return whether an answer holds no stop text; it had none before its last token."""
        if not stop or not self._may_end(written[-1], stop):
            return True
        return not has_stopped(self._decode(written), stop)

    def _may_end(self, token: int, stop: tuple[str, ...]) -> bool:
        """Return whether a token may complete a stop text; decoding the whole text is only worth it then."""
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token, token])  # twice: the first blank may be swallowed
        text = self._token_texts[token]
        return "\N{REPLACEMENT CHARACTER}" in text or any(s[-1:] in text for s in stop)

    def _decode(self, tokens: list[int]) -> str:
        """Return a text without its special tokens, but for those that stand around thoughts."""
        decode, pieces, start = self.tokenizer.hf.decode, [], 0
        for place, token in enumerate(tokens):
            if token in self._marks:
                pieces += [decode(tokens[start:place], skip_special_tokens=True), self._marks[token]]
                start = place + 1
        return "".join([*pieces, decode(tokens[start:], skip_special_tokens=True)])


def _too_long(text: Text, most: int) -> Generation:
    error = f"The prompt has {len(text.prompt)} tokens, at most {most} fit; use smaller blocks."
    return Generation(text.index, "", len(text.prompt), 0, 0.0, error)


def how_many_join(
    waiting: Sequence[Text], present: Sequence[Text], n_new: int, budget: int, max_rows: int | None = None
) -> int:
    """Return how many of the waiting texts, from the first on, should join those present now.

    As many as fit the budget, rows counted at the length of the longest, and `max_rows`; but a third of those
    present at least, since a pass over few prompts, and moving the others, costs more than a few rows that
    stand empty.
    """
    longest = max((len(text.prompt) for text in present), default=0)
    n_joining = 0
    for n_rows, text in enumerate(waiting, start=len(present) + 1):
        longest = max(longest, len(text.prompt))
        fits = n_rows * (longest + n_new) <= budget and (max_rows is None or n_rows <= max_rows)
        if not fits and n_rows > 1:  # one is always written
            break
        n_joining += 1
    return n_joining if 3 * n_joining >= len(present) else 0
