"""Writes texts with a Hugging Face causal language model, many prompts at once.

Prompts are batched by length under a token budget. What all prompts of a call begin with (the instruction)
is read once and its keys and values are shared. Finished rows leave the batch. Label scoring with the same
models lives in `trsr.rank`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from trsr.errors import EngineError
from trsr.llm import models
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.transformers import HfTokenizer, load_causal_lm


class TransformersGenerator:
    """Greedy or sampled generation in batches of at most `max_batch_tokens` cached positions."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_batch_tokens: int = 16384,
        max_prompt_tokens: int = 2048,
    ) -> None:
        self._model: Any = load_causal_lm(model, dtype=dtype, device=device)
        self.tokenizer = HfTokenizer(models.hf_folder(model))
        self.model_id = models.model_id(model)
        self.max_batch_tokens = max_batch_tokens
        self.max_prompt_tokens = max_prompt_tokens
        eos = self._model.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.hf.eos_token_id}

    def close(self) -> None:
        """Free the model; further calls fail."""
        self._model = None

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result a prompt, batch by batch, longest prompts first.

        Raises:
            EngineError: the generator was closed.
        """
        if self._model is None:
            raise EngineError("This engine was closed; open a new one.")
        ids = [self.tokenizer.encode(self.tokenizer.render_chat(prompt)) for prompt in prompts]
        fitting = [i for i in range(len(ids)) if len(ids[i]) <= self.max_prompt_tokens]
        for i in sorted(set(range(len(ids))) - set(fitting)):
            error = (
                f"The prompt has {len(ids[i])} tokens, at most {self.max_prompt_tokens} fit; "
                "use smaller blocks."
            )
            yield Generation(i, "", len(ids[i]), 0, 0.0, error)
        fitting.sort(key=lambda i: (-len(ids[i]), ids[i]))
        for batch in self._batches(fitting, ids, params.max_new_tokens):
            started = time.perf_counter()
            written = self._generate_batch([ids[i] for i in batch], params)
            seconds = (time.perf_counter() - started) / len(batch)
            for i, tokens in zip(batch, written, strict=True):
                text = _until_stop(self._text(tokens), params.stop)
                yield Generation(i, text.strip(), len(ids[i]), len(tokens), seconds)

    def _batches(self, order: list[int], ids: list[list[int]], n_new: int) -> Iterator[list[int]]:
        """Cut the prompts, longest first, into batches whose padded size fits the budget."""
        start = 0
        while start < len(order):
            rows = max(1, self.max_batch_tokens // (len(ids[order[start]]) + n_new))
            yield order[start : start + rows]
            start += rows

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.hf.decode(tokens, skip_special_tokens=True))

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], params: GenerationParams) -> list[list[int]]:
        """Return the tokens written for each prompt, end-of-text token left out."""
        device = self._model.device
        n_shared = _common_prefix(prompts)
        cache = DynamicCache(config=self._model.config)
        if n_shared:
            self._model(
                torch.tensor([prompts[0][:n_shared]], device=device), past_key_values=cache, logits_to_keep=1
            )
            cache.batch_repeat_interleave(len(prompts))
        tokens, mask = _left_pad([p[n_shared:] for p in prompts], n_shared, device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, n_shared:]
        generator = torch.Generator(device).manual_seed(params.seed)
        rows, written = list(range(len(prompts))), [[] for _ in prompts]  # type: list[int], list[list[int]]
        for step in range(params.max_new_tokens):
            out = self._model(
                tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            logits = _penalised(
                out.logits[:, -1].float(), [written[row] for row in rows], params.frequency_penalty
            )
            chosen = _choose(logits, params.temperature, generator)
            keep = []
            for slot, token in enumerate(chosen.tolist()):
                row = rows[slot]
                if token in self._eos:
                    continue
                written[row].append(token)
                if not (params.stop and any(s in self._text(written[row]) for s in params.stop)):
                    keep.append(slot)
            if not keep or step == params.max_new_tokens - 1:
                break
            positions = positions[:, -1:] + 1
            if len(keep) < len(rows):
                index = torch.tensor(keep, device=device)
                cache.batch_select_indices(index)
                chosen, mask, positions = chosen[index], mask[index], positions[index]
                rows = [rows[slot] for slot in keep]
            tokens = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return written


def _common_prefix(prompts: list[list[int]]) -> int:
    """Return how many first tokens all prompts share; at least one token of each is left over."""
    first, last = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n if len(prompts) > 1 else 0


def _left_pad(
    rows: list[list[int]], n_before: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (B, T) padded on the left and the mask (B, n_before + T) over cache and tokens."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), n_before + width, dtype=torch.long)
    mask[:, :n_before] = 1
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row)
        mask[i, n_before + width - len(row) :] = 1
    return tokens.to(device), mask.to(device)


def _penalised(logits: torch.Tensor, written: list[list[int]], penalty: float) -> torch.Tensor:
    """Take `penalty` from each row's logits for every time a token was already written."""
    if penalty:
        for row, tokens in enumerate(written):
            index = torch.tensor(tokens, dtype=torch.long, device=logits.device)
            logits[row].index_add_(0, index, torch.full((len(tokens),), -penalty, device=logits.device))
    return logits


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Return the next token of each row, shape (B,)."""
    if temperature <= 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _until_stop(text: str, stop: tuple[str, ...]) -> str:
    """Return `text` up to the first stop string."""
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
