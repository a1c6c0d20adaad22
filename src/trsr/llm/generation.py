"""The engine `transformers`: generate text with a Hugging Face causal language model, on a GPU or a CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from trsr.errors import EngineError
from trsr.llm import models
from trsr.llm.architecture import length_limit
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.chat_format import (
    THOUGHT_MARK,
    Thinking,
    answer_or_error,
    before_stop,
    check_vocabulary,
    has_stopped,
    rendered,
    text_model_id,
)
from trsr.llm.constrained import PhraseConstraint
from trsr.llm.models import context_of
from trsr.llm.text_batch import Text, TextBatch, batch_obstacle
from trsr.llm.transformers import HfTokenizer, load_causal_lm

_log = logging.getLogger(__name__)


class SmallBatchLinear(nn.Linear):
    """A linear layer that transposes its product for 5 to 16 rows, which is faster on a CPU.

    Results are equal up to the last bits.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, (..., in) to (..., out)."""
        n_rows = x.numel() // self.in_features
        if not 4 < n_rows <= 16:
            return super().forward(x)
        rows = nn.functional.pad(x.reshape(n_rows, -1), (0, 0, 0, -n_rows % 8))
        out = torch.mm(self.weight, rows.t()).t()[:n_rows].contiguous().view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def use_small_batch_linear(model: nn.Module) -> None:
    """Replace the float32 linear layers on the CPU of a model used for generation only."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.dtype is torch.float32 and layer.weight.is_cpu:
            layer.__class__ = SmallBatchLinear


class TransformersGenerator:
    """Generates texts in batches of at most `max_rows` texts and `max_batch_tokens` positions.

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
        if obstacle := batch_obstacle(self._model):
            name = type(self._model).__name__
            _log.warning("%s writes one text at a time (%s), which is slower.", name, obstacle)
        self._batches = not obstacle
        use_small_batch_linear(self._model)
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
        self._encode_phrase = cache(self.tokenizer.encode)

    def close(self) -> None:
        """Free the model; further calls fail."""
        self._model = None

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result per prompt as each is finished; see `TextGenerator`.

        Prompts wait in rounds as large as the first one, because prompts of later rounds follow from earlier
        answers and long chains should not be left for the end. In a round the longest come first.

        Raises:
            EngineError: the generator was closed.
        """
        if self._model is None:
            raise EngineError("This engine was closed; open a new one.")
        if self._thinks:
            params = replace(params, max_new_tokens=params.max_new_tokens + self._thinking_tokens)
        most = self.max_prompt_tokens
        if self._context is not None:  # the answer has to fit too
            most = min(most, self._context - params.max_new_tokens)
        limit = length_limit(self._model.config)
        batches = self._batches and (limit is None or self.max_prompt_tokens + params.max_new_tokens <= limit)
        max_rows = self.max_rows if batches else 1
        continues = partial(self._continues, params.stop)
        batch = TextBatch(self._model, params, self._eos, continues, one_by_one=not batches)
        waiting: list[Text] = []
        n_seen, n_first = 0, max(1, len(prompts))
        while True:
            if n_seen < len(prompts):
                new = [self._text_of(index, prompts[index]) for index in range(n_seen, len(prompts))]
                n_seen += len(new)
                waiting += [text for text in new if len(text.prompt) <= most]
                waiting.sort(key=lambda text: (text.index // n_first, -len(text.prompt), text.prompt))
                yield from (_too_long(text, most) for text in new if len(text.prompt) > most)
            n = how_many_join(waiting, batch.texts, params.max_new_tokens, self.max_batch_tokens, max_rows)
            if n:
                started = time.perf_counter()
                batch.join(waiting[:n])
                self.reading_seconds += time.perf_counter() - started
                del waiting[:n]
            if not batch.texts:
                return
            for text in batch.step():
                yield self._result(text, params)

    def _text_of(self, index: int, prompt: Prompt) -> Text:
        """Return a prompt as token ids; prompts of one kind differ only in the last message."""
        ids = self.tokenizer.encode_prompt(rendered(self.tokenizer, prompt, self._thinks))
        check_vocabulary(self._model.config, self.tokenizer, ids)
        constraint = None
        if prompt.parts is not None:
            constraint = PhraseConstraint(prompt.parts, self._encode_phrase, self._eos)
        return Text(index, ids, prompt.messages[:-1], constraint, prompt.prefill)

    def _result(self, text: Text, params: GenerationParams) -> Generation:
        written, error = self._decode(text.written), None
        if text.constraint is not None:
            words = before_stop(written, params.stop).strip()
        else:
            whole = len(text.written) < params.max_new_tokens
            words, error = answer_or_error(written, params.stop, text.prefill, whole=whole)
        return Generation(text.index, words, len(text.prompt), len(text.written), text.seconds, error)

    def _continues(self, stop: tuple[str, ...], written: list[int]) -> bool:
        """Return whether an answer has no stop text; it had none before its last token."""
        token = written[-1]
        if token not in self._token_texts:
            self._token_texts[token] = self._decode([token, token])  # twice: the first blank may be swallowed
        text = self._token_texts[token]
        if any(s[-1:] in text for s in stop) or (stop and "\N{REPLACEMENT CHARACTER}" in text):
            return not has_stopped(self._decode(written), stop)
        return True  # the last token cannot end a stop text, so the whole text need not be decoded

    def _decode(self, tokens: list[int]) -> str:
        """Return a text without its special tokens, except those around thoughts."""
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
    """Return how many of the waiting texts, from the first on, should join the present ones now.

    As many as fit `max_rows` and the budget (each row as long as the longest). None, if they are fewer than a
    third of the present texts: a pass over few prompts costs more than a few empty rows.
    """
    longest = max((len(text.prompt) for text in present), default=0)
    n_joining = 0
    for n_rows, text in enumerate(waiting, start=len(present) + 1):
        longest = max(longest, len(text.prompt))
        fits = n_rows * (longest + n_new) <= budget and (max_rows is None or n_rows <= max_rows)
        if not fits and n_rows > 1:  # one always fits
            break
        n_joining += 1
    return n_joining if 3 * n_joining >= len(present) else 0
