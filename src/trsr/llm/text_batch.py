"""Write many texts at once with a causal language model: a batch that texts join and leave.

The common beginning of prompts of one kind is read once; the rest is read in groups of similar length, padded
on the right. All texts then end in the same column of one cache, and waiting prompts join as others end.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from trsr.llm.architecture import difference, unknown_terms
from trsr.llm.base import GenerationParams
from trsr.llm.constrained import PhraseConstraint
from trsr.seeding import derive_seed

PASS_TOKENS = 4096
"""Tokens read in one pass on a CPU: enough for full speed, and few enough that temporaries stay small."""
GPU_PASS_TOKENS = 32768


@dataclass(slots=True, eq=False)
class Text:
    """A prompt and the tokens written so far.

    Attributes:
        index: The caller's number.
        prompt: Token ids, at least one.
        kind: Equal for prompts that are likely to begin alike.
        constraint: The allowed phrases; None for free text.
        prefill: The words at the end of the prompt that the answer continues.
        written: Token ids, without the end token.
        seconds: Its share of the time spent.
        generator: Its own random generator, independent of other texts; None for greedy.
    """

    index: int
    prompt: list[int]
    kind: Hashable = None
    constraint: PhraseConstraint | None = None
    prefill: str = ""
    written: list[int] = field(default_factory=list)
    seconds: float = 0.0
    generator: torch.Generator | None = None

    @property
    def last(self) -> int:
        """The last token, not yet read by the model."""
        return (self.written or self.prompt)[-1]

    @property
    def n_read(self) -> int:
        """Tokens before the last one."""
        return len(self.prompt) + len(self.written) - 1


class _RowLayer(DynamicLayer):
    """One cache layer of texts that end in the same column; masks take care of sliding windows.

    Args:
        rows: Keys and values of each text, (heads, T, D).
        n_new: Columns to be written.
    """

    def __init__(self, rows: Sequence[tuple[torch.Tensor, torch.Tensor]], n_new: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(*rows[0])
        self._n_filled = max(keys.shape[1] for keys, _ in rows)
        self._rooms = []
        for some in zip(*rows, strict=True):
            n_heads, _, width = some[0].shape
            room = some[0].new_zeros(len(rows), n_heads, self._n_filled + n_new, width)
            for row, own in enumerate(some):
                room[row, :, self._n_filled - own.shape[1] : self._n_filled] = own
            self._rooms.append(room)
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (room[:, :, : self._n_filled] for room in self._rooms)
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """Return how many columns are filled."""
        return self._n_filled

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add columns to all rows; return all keys and all values."""
        start, self._n_filled = self._n_filled, self._n_filled + key_states.shape[2]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start : self._n_filled] = new
        return self._show()

    def keep(self, n_rows: int, targets: torch.Tensor, sources: torch.Tensor) -> None:
        """Keep the first `n_rows` rows, after copying `sources` to `targets`."""
        for room in self._rooms:
            room[targets] = room[sources]
        self._rooms = [room[:n_rows] for room in self._rooms]
        self._show()


def _joined(parts: Sequence[tuple[Cache, Sequence[tuple[int, int]]]], n_new: int) -> Cache:
    """Join the rows of several caches, with room for `n_new` more columns.

    The parts are used up: their memory is freed layer by layer.

    Args:
        parts: Caches, with the start and end column of the text in each row.
        n_new: Columns to be written.
    """
    joined = []
    for number in range(len(parts[0][0].layers)):
        rows = []
        for source, spans in parts:
            layer: Any = source.layers[number]
            rows += [
                (layer.keys[row, :, start:end], layer.values[row, :, start:end])
                for row, (start, end) in enumerate(spans)
            ]
            source.layers[number] = None  # type: ignore[call-overload]
        joined.append(_RowLayer(rows, n_new))
        del rows, layer
    return Cache(layers=list(joined))


class PromptReader:
    """Reads prompts and caches the common beginning of each kind."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._beginnings: dict[Hashable, list[int]] = {}
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    def read(self, texts: Sequence[Text]) -> Iterator[tuple[list[Text], DynamicCache]]:
        """Read all tokens but the last of each prompt; yield texts read together, and their cache."""
        groups: dict[tuple[int, ...], list[Text]] = {}
        for kind in dict.fromkeys(text.kind for text in texts):
            alike = [text for text in texts if text.kind == kind]
            groups.setdefault(self._beginning(kind, alike), []).extend(alike)
        n_tokens = PASS_TOKENS if self._model.device.type == "cpu" else GPU_PASS_TOKENS
        for beginning, alike in groups.items():
            alike.sort(key=lambda text: -len(text.prompt))
            while alike:
                n_rows = max(1, n_tokens // max(1, alike[0].n_read - len(beginning)))
                yield alike[:n_rows], self._read_pass(beginning, alike[:n_rows])
                del alike[:n_rows]

    def _beginning(self, kind: Hashable, texts: Sequence[Text]) -> tuple[int, ...]:
        """Return the common beginning of these and earlier prompts of a kind; empty for the first one."""
        prompts = [text.prompt for text in texts]
        if kind in self._beginnings:
            prompts.append([*self._beginnings[kind], -1])
        elif len(prompts) == 1:
            return ()
        self._beginnings[kind] = common_beginning(prompts)
        return tuple(self._beginnings[kind])

    def _read_pass(self, beginning: tuple[int, ...], texts: Sequence[Text]) -> DynamicCache:
        cache = DynamicCache()
        if beginning:
            if beginning not in self._caches:
                self._caches[beginning] = DynamicCache()
                self._forward(self._caches[beginning], [list(beginning)], 0)
            layers: list[Any] = self._caches[beginning].layers
            for number, layer in enumerate(layers):
                keys, values = (x.expand(len(texts), -1, -1, -1) for x in (layer.keys, layer.values))
                cache.update(keys, values, number)
        rests = [text.prompt[len(beginning) : -1] for text in texts]
        if any(rests) or not beginning:
            self._forward(cache, rests, len(beginning))
        return cache

    def _forward(self, cache: Cache, rows: list[list[int]], n_before: int) -> None:
        """Add rows of tokens, padded on the right, to a cache of `n_before` positions."""
        width, device = max(1, *map(len, rows)), self._model.device
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.ones(len(rows), n_before + width, dtype=torch.long, device=device)
        positions = torch.arange(n_before, n_before + width, device=device).expand(len(rows), -1)
        _read(self._model, cache, tokens, mask, positions)


def common_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """Return the first tokens that all prompts share, leaving at least one token of each."""
    first, last = min(prompts), max(prompts)
    n_shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: min(n_shared, min(map(len, prompts)) - 1)]


def _read(
    model: Any, cache: Cache, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Read more tokens (B, T) of each row of a cache; return the logits after the last column, (B, V)."""
    options = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
    logits: torch.Tensor = model(tokens, **options, **{_cache_argument(model): cache}).logits[:, -1]
    return logits


def _cache_argument(model: Any) -> str:
    """Return the name of a model's cache argument (renamed in transformers 5.24); empty if it has none."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), "")


_PROBES = ([3, 7, 11, 5, 13, 2, 17, 9, 4], [3, 7, 11, 6, 12, 4], [3, 7, 11, 8])  # in order of reading


def batch_obstacle(model: Any) -> str:
    """Return why a model's texts cannot be written in one batch; empty if they can.

    Recurrent states and layers that share keys cannot be laid out in rows. Short prompts are read together
    and alone to detect what the configuration does not show.
    """
    layers = DynamicCache(config=model.config).layers
    if not _cache_argument(model) or any(
        type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers
    ):
        return "it remembers more than the keys and values of each position"
    if unknown := unknown_terms(model.config):
        return f"what {unknown} does to attention is not known here"
    batch = TextBatch(model, GenerationParams(max_new_tokens=1), set())

    def together() -> Iterator[torch.Tensor]:
        batch.join([Text(number, prompt) for number, prompt in enumerate(_PROBES)])
        yield batch.next_logits()

    def alone() -> torch.Tensor:
        inputs = [torch.tensor([prompt], device=model.device) for prompt in _PROBES]
        return torch.stack([model(tokens).logits[0, -1] for tokens in inputs])

    return difference(model, together, alone)


class TextBatch:
    """Texts that are being written.

    Args:
        model: A causal language model of transformers.
        params: Decoding parameters.
        ends: Tokens that end a text, not part of it.
        continues: Called with the tokens written after each new one; returns whether the text continues.
        one_by_one: Whether each text is written alone, by the model's own `generate`.
    """

    def __init__(
        self,
        model: Any,
        params: GenerationParams,
        ends: set[int],
        continues: Callable[[list[int]], bool] = lambda _: True,
        *,
        one_by_one: bool = False,
    ) -> None:
        self.texts: list[Text] = []
        self._model, self._params, self._ends, self._continues = model, params, ends, continues
        self._one_by_one = one_by_one
        self._reader = PromptReader(model)
        self._cache: Any = None

    @torch.inference_mode()
    def join(self, texts: Sequence[Text]) -> None:
        """Read the prompts of new texts and add them to the batch."""
        started = time.perf_counter()
        if self._params.temperature > 0:
            for text in texts:
                seed = derive_seed(self._params.seed, *text.prompt) // 2  # within what torch takes
                text.generator = torch.Generator(self._model.device).manual_seed(seed)
        if self._one_by_one:
            self.texts += texts
            return
        read = list(self._reader.read(texts))
        parts: list[tuple[Cache, list[tuple[int, int]]]] = [
            (cache, [(0, text.n_read) for text in some]) for some, cache in read
        ]
        if self.texts:
            end = self._cache.get_seq_length()
            parts.insert(0, (self._cache, [(end - text.n_read, end) for text in self.texts]))
        self._cache = _joined(parts, self._params.max_new_tokens)
        self.texts += [text for some, _ in read for text in some]
        for text in texts:
            text.seconds += (time.perf_counter() - started) / len(texts)

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """Write one token of each text, or one whole text; remove and return the finished texts."""
        started = time.perf_counter()
        if self._one_by_one:
            text = self.texts.pop(0)
            self._write_alone(text)
            text.seconds += time.perf_counter() - started
            return [text]
        chosen = choose(self.next_logits(), self.texts, self._params).tolist()
        continuing = [self._take(text, token) for text, token in zip(self.texts, chosen, strict=True)]
        seconds = (time.perf_counter() - started) / len(self.texts)
        for text in self.texts:
            text.seconds += seconds
        finished = [text for text, continues in zip(self.texts, continuing, strict=True) if not continues]
        if finished:
            self._keep([slot for slot, continues in enumerate(continuing) if continues])
        return finished

    def next_logits(self) -> torch.Tensor:
        """Read the last token of each text; return the logits after it, shape (B, V), float32."""
        device, width = self._model.device, self._cache.get_seq_length() + 1
        tokens = torch.tensor([[text.last] for text in self.texts], device=device)
        positions = torch.tensor([[text.n_read] for text in self.texts], device=device)
        mask = (torch.arange(width, device=device) >= width - 1 - positions).long()
        return _read(self._model, self._cache, tokens, mask, positions).float()

    def _take(self, text: Text, token: int) -> bool:
        """Add a token to a text; return whether the text continues."""
        if token in self._ends:
            return False
        text.written.append(token)
        if text.constraint is not None:
            text.constraint.advance(token)
        return len(text.written) < self._params.max_new_tokens and self._continues(text.written)

    def _keep(self, slots: list[int]) -> None:
        """Keep the texts in some slots; copy as few as possible."""
        if not slots:
            self.texts, self._cache = [], None
            return
        n, staying = len(slots), set(slots)
        moving = [slot for slot in slots if slot >= n]
        free = [slot for slot in range(n) if slot not in staying]
        for target, source in zip(free, moving, strict=True):
            self.texts[target] = self.texts[source]
        del self.texts[n:]
        # Copied to the device once for all layers.
        targets, sources = (
            torch.tensor(x, dtype=torch.long, device=self._model.device) for x in (free, moving)
        )
        for layer in self._cache.layers:
            layer.keep(n, targets, sources)

    def _write_alone(self, text: Text) -> None:
        continues = True

        def pick(_tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            nonlocal continues
            token = int(choose(logits.float(), [text], self._params))
            continues = self._take(text, token)
            only = torch.full_like(logits, -torch.inf)
            only[:, token] = 0
            return only

        def has_ended(tokens: torch.Tensor, _logits: torch.Tensor) -> torch.Tensor:
            return tokens.new_tensor([not continues]).bool()

        model, prompt = self._model, torch.tensor([text.prompt], device=self._model.device)
        own = model.generation_config
        model.generation_config = GenerationConfig()  # else `generate` applies its penalties
        try:
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self._params.max_new_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList([pick]),
                stopping_criteria=StoppingCriteriaList([has_ended]),
            )
        finally:
            model.generation_config = own


def choose(logits: torch.Tensor, texts: Sequence[Text], params: GenerationParams) -> torch.Tensor:
    """Return the next token of each text, shape (B,).

    Args:
        logits: Shape (B, V), float32; changed in place.
        texts: B texts.
        params: Greedy unless the temperature is above 0.
    """
    if params.frequency_penalty:
        penalty = logits.new_tensor(-params.frequency_penalty)
        logits.index_put_(
            _places(enumerate(text.written for text in texts), logits.device), penalty, accumulate=True
        )
    allowed = {row: t.constraint.allowed() for row, t in enumerate(texts) if t.constraint is not None}
    if allowed:
        places = _places(allowed.items(), logits.device)
        kept = logits[places]
        logits[list(allowed)] = -torch.inf
        logits[places] = kept
    if params.temperature <= 0:
        return logits.argmax(dim=-1)
    chances = torch.softmax(logits / params.temperature, dim=-1)
    drawn = [torch.multinomial(chances[row], 1, generator=text.generator) for row, text in enumerate(texts)]
    return torch.cat(drawn)


def _places(
    tokens_by_row: Iterable[tuple[int, Sequence[int]]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    rows: list[int] = []
    tokens: list[int] = []
    for row, some in tokens_by_row:
        rows += [row] * len(some)
        tokens += some
    rows_and_tokens = torch.tensor([rows, tokens], dtype=torch.long, device=device)
    return rows_and_tokens[0], rows_and_tokens[1]
