"""Writes several texts at once, a token of each at a time; texts may join and leave at any time.

Which texts are together changes nothing in any of them but the last bits of its logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from trsr.llm.base import GenerationParams
from trsr.llm.prompt_reading import PromptReader
from trsr.llm.row_cache import Rows, joined, keep_rows, next_logits
from trsr.llm.wording import Wording
from trsr.seeding import derive_seed


@dataclass(slots=True)
class Text:
    """A prompt and what was written to it so far.

    Attributes:
        index: The caller's number.
        prompt: Token ids, at least one.
        kind: Equal for prompts that are likely to begin alike.
        written: Token ids, without the one that ends a text.
        seconds: Its share of the time spent on it.
        wording: What may be written; None for anything.
        generator: Of its own, so that what is drawn does not depend on other texts; None for greedy.
    """

    index: int
    prompt: list[int]
    kind: Hashable
    written: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wording: Wording | None = None
    generator: torch.Generator | None = None

    @property
    def last(self) -> int:
        """The last token, which the model has not read yet."""
        return (self.written or self.prompt)[-1]

    @property
    def n_read(self) -> int:
        """Tokens before the last one."""
        return len(self.prompt) + len(self.written) - 1


class RowWriter:
    """The texts that are being written.

    Args:
        model: A causal language model of transformers.
        reader: Reads prompts with the same model.
        params: How to write.
        goes_on: Whether a text goes on after the tokens written; asked after each new one.
        ends: Tokens that end a text and are no part of it.
    """

    def __init__(
        self,
        model: Any,
        reader: PromptReader,
        params: GenerationParams,
        goes_on: Callable[[list[int]], bool],
        ends: set[int],
    ) -> None:
        self.texts: list[Text] = []
        self._model, self._reader, self._params = model, reader, params
        self._goes_on, self._ends = goes_on, ends
        self._cache: Any = None

    @torch.inference_mode()
    def join(self, texts: Sequence[Text]) -> None:
        """Read the prompts of new texts, and write them together with those already there from now on."""
        started, device = time.perf_counter(), self._model.device
        for text in texts:
            if self._params.temperature > 0:
                seed = derive_seed(self._params.seed, *text.prompt) // 2  # within what torch takes
                text.generator = torch.Generator(device).manual_seed(seed)
        if not self._reader.in_batches:
            self.texts += texts
            return
        passes = self._reader.read([text.prompt for text in texts], [text.kind for text in texts])
        parts = [done.rows for done in passes]
        if self.texts:
            end = self._cache.get_seq_length()
            parts.insert(0, Rows(self._cache, tuple((end - text.n_read, end) for text in self.texts)))
        self._cache = joined(parts, self._model.config, self._params.max_new_tokens)
        self.texts += [texts[place] for done in passes for place in done.places]
        self._tokens = torch.tensor([[text.last] for text in self.texts], device=device)
        self._positions = torch.tensor([[text.n_read] for text in self.texts], device=device)
        width = max(text.n_read for text in self.texts) + 1
        self._mask = (torch.arange(width, device=device) >= width - 1 - self._positions).long()
        for text in texts:
            text.seconds += (time.perf_counter() - started) / len(texts)

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """Write one token of each text, or one text to its end; return those finished, which leave."""
        started = time.perf_counter()
        if not self._reader.in_batches:
            text = self.texts.pop(0)
            write_alone(self._model, text, self._params, partial(self._take, text))
            text.seconds += time.perf_counter() - started
            return [text]
        logits = next_logits(self._model, self._cache, self._tokens, self._mask, self._positions)
        chosen = choose(logits, self.texts, self._params)
        keep = [slot for slot, token in enumerate(chosen.tolist()) if self._take(self.texts[slot], token)]
        seconds = (time.perf_counter() - started) / len(self.texts)
        for text in self.texts:
            text.seconds += seconds
        kept = set(keep)
        finished = [text for slot, text in enumerate(self.texts) if slot not in kept]
        if keep:
            self._go_on(keep, chosen)
        else:
            self.texts, self._cache = [], None
        return finished

    def _take(self, text: Text, token: int) -> bool:
        """Add a token to a text; return whether it goes on."""
        if token in self._ends:
            return False
        text.written.append(token)
        return len(text.written) < self._params.max_new_tokens and self._goes_on(text.written)

    def _go_on(self, keep: list[int], chosen: torch.Tensor) -> None:
        """Keep the texts in slots `keep`; their chosen tokens are read next."""
        if len(keep) < len(self.texts):
            order = closed_up(keep)
            index = torch.tensor(order, device=chosen.device)
            keep_rows(self._cache, order)
            chosen, self._mask, self._positions = chosen[index], self._mask[index], self._positions[index]
            self.texts = [self.texts[slot] for slot in order]
        self._tokens = chosen[:, None]
        self._positions = self._positions + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.texts), 1)], dim=1)


def write_alone(model: Any, text: Text, params: GenerationParams, take: Callable[[int], bool]) -> None:
    """Write a text to its end by the model's own `generate`, whatever it remembers from token to token.

    Args:
        model: A causal language model of transformers.
        text: The prompt; it grows by what `take` adds.
        params: How to write.
        take: Is given each token; returns whether the text goes on.
    """
    goes_on = True

    def pick(_tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        nonlocal goes_on
        chosen = int(choose(logits.float(), [text], params))
        goes_on = take(chosen)
        only = torch.full_like(logits, -torch.inf)
        only[:, chosen] = 0
        return only

    prompt = torch.tensor([text.prompt], device=model.device)
    own, model.generation_config = model.generation_config, GenerationConfig()  # nothing but what `pick` says
    try:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(max_new_tokens=params.max_new_tokens, do_sample=False),
            logits_processor=LogitsProcessorList([pick]),
            stopping_criteria=StoppingCriteriaList(
                [lambda tokens, _: tokens.new_tensor([not goes_on]).bool()]
            ),
        )
    finally:
        model.generation_config = own


def choose(logits: torch.Tensor, texts: Sequence[Text], params: GenerationParams) -> torch.Tensor:
    """Return the next token of each text, shape (B,).

    Args:
        logits: Shape (B, V), float32; changed in place.
        texts: B of them.
        params: Greedy unless its temperature is above 0.
    """
    if params.frequency_penalty:
        penalise(logits, [text.written for text in texts], params.frequency_penalty)
    allowed = {
        row: text.wording.allowed(text.written) for row, text in enumerate(texts) if text.wording is not None
    }
    if allowed:
        allow_only(logits, allowed)
    if params.temperature <= 0:
        return logits.argmax(dim=-1)
    chances = torch.softmax(logits / params.temperature, dim=-1)
    drawn = [torch.multinomial(chances[row], 1, generator=text.generator) for row, text in enumerate(texts)]
    return torch.cat(drawn)


def allow_only(logits: torch.Tensor, allowed: Mapping[int, Sequence[int]]) -> None:
    """Make every token of some rows impossible, in place, except those allowed in that row."""
    n_tokens = logits.shape[1]
    places = [row * n_tokens + token for row, tokens in allowed.items() for token in tokens]
    index = torch.tensor(places, device=logits.device)
    flat = logits.view(-1)
    kept = flat[index]
    logits[torch.tensor(list(allowed), device=logits.device)] = -torch.inf
    flat[index] = kept


def penalise(logits: torch.Tensor, written: Sequence[list[int]], penalty: float) -> None:
    """Take `penalty` from each row's logits, in place, for every time a token was already written."""
    n_tokens = logits.shape[1]
    places = [row * n_tokens + token for row, tokens in enumerate(written) for token in tokens]
    index = torch.tensor(places, dtype=torch.long, device=logits.device)
    logits.view(-1).index_add_(0, index, torch.full((len(places),), -penalty, device=logits.device))


def closed_up(keep: Sequence[int]) -> list[int]:
    """Return the slots `keep` in an order in which as many as possible stay at their place."""
    moving = iter([slot for slot in keep if slot >= len(keep)])
    staying = set(keep)
    return [slot if slot in staying else next(moving) for slot in range(len(keep))]
