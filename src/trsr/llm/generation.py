"""Writes texts with a Hugging Face causal language model, many prompts at once.

Prompts wait round by round, a round being as many as there were at first: those of later rounds follow from
answers to earlier ones, and what is asked in the end should not be the long chain of a few. In a round the
longest come first. They join the texts being written as others finish, under a token budget.
`prompt_reading` reads them. Label scoring with the same models lives in `trsr.recommend`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

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
from trsr.llm.chat_format import rendered
from trsr.llm.constrained import Wording
from trsr.llm.context import check_vocabulary, context_of, text_model_id
from trsr.llm.prompt_reading import PromptReader, Rows, joined, keep_rows, next_logits
from trsr.llm.transformers import HfTokenizer, load_causal_lm
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
        prefill: The words that it goes on from; they are the end of the prompt.
        generator: Of its own, so that what is drawn does not depend on other texts; None for greedy.
    """

    index: int
    prompt: list[int]
    kind: Hashable
    written: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wording: Wording | None = None
    prefill: str = ""
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


MAX_ROWS = 16
_FEW_ROWS, _ROWS_TOGETHER = 4, 8


def turn_thin_products(model: Any) -> int:
    """Change the linear layers of a model on a CPU; results stay equal but for the last bits.

    For models that only write: nothing here is meant for training or for layers with adapters.

    Returns:
        How many layers were changed; none on a GPU or in half precision.
    """
    thin = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype is torch.float32
    ]
    for layer in thin:
        setattr(layer, "forward", MethodType(_forward, layer))  # noqa: B010 - mypy knows methods as fixed
    return len(thin)


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return the layer's output, (..., in) to (..., out)."""
    n_rows = x.numel() // layer.in_features
    if not 1 < n_rows <= MAX_ROWS:
        return nn.functional.linear(x, layer.weight, layer.bias)
    rows = x.reshape(n_rows, layer.in_features)
    if n_rows > _FEW_ROWS and n_rows % _ROWS_TOGETHER:
        rows = nn.functional.pad(rows, (0, 0, 0, -n_rows % _ROWS_TOGETHER))
    turned = torch.mm(layer.weight, rows.t()).t()[:n_rows]
    out = turned.contiguous().view(*x.shape[:-1], layer.out_features)
    return out if layer.bias is None else out + layer.bias


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
