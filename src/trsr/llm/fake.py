"""Deterministic stand-ins for a language model: they write, score and tokenise without one.

A real back end (`--engine fake`): for tests of everything above the engines, for examples and dry runs. What
they write depends on the prompt alone, so caching, resuming and parallelism can be tested to the letter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trsr.llm.base import Generation, GenerationParams, LabelTokens, Prompt, ScoringGroup, prompt_key
from trsr.seeding import derive_seed

_WORD = re.compile(r"[^\W\d_]{4,}")
# Words of four letters and more that say nothing about taste.
_COMMON = re.compile(
    "about|after|also|answer|been|before|does|each|first|from|have|items?|into|last|likes?|more|most|name|only|"
    "other|over|person|profile|reader|says|sentences?|should|some|such|than|that|their|them|then|there|these|"
    "they|this|title|user|what|when|which|with|words|would|write|your"
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "yes", "no", "Yes", "No")
_SPLIT = re.compile(r"(<\|im_start\|>|<\|im_end\|>|\b(?:yes|no|Yes|No)\b)")


TOGETHER = 64
"""Results of `FakeGenerator` that arrive together, when it takes no time."""


class FakeGenerator:
    """A `TextGenerator` that names the most frequent words of the prompt.

    Args:
        delay: Seconds that each call takes.
        fail_on: Which calls fail: every nth one (counted over the generator's life, from 1), or those
            whose prompt makes the function true.
        shuffle: Whether results come in another order than the prompts.
        log: A file that gets a line at the beginning of each call: its key, the time, the process. Several
            processes may write to one.

    Attributes:
        n_calls: Calls made so far, failed ones included.
    """

    model_id = "fake@1"

    def __init__(
        self,
        *,
        delay: float = 0.0,
        fail_on: int | Callable[[Prompt], bool] | None = None,
        shuffle: bool = True,
        log: str | Path | None = None,
    ) -> None:
        self.n_calls = 0
        self._delay = delay
        self._fail_on = fail_on
        self._shuffle = shuffle
        self._log = None if log is None else Path(log)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result a prompt; one token is one word."""
        n_seen = 0
        while n_seen < len(prompts):
            order = list(range(n_seen, len(prompts)))
            n_seen = len(prompts)
            if self._shuffle:
                order.sort(key=lambda index: derive_seed(index, "order"))
            for place, index in enumerate(order, 1):
                answer = self._answer(index, prompts[index], params)
                together = not self._delay and place < len(order) and place % TOGETHER != 0
                yield replace(answer, more=True) if together else answer

    def _answer(self, index: int, prompt: Prompt, params: GenerationParams) -> Generation:
        self.n_calls += 1
        if self._log is not None:
            self._note(self._log, prompt_key(prompt, self.model_id, params))
        if self._delay:
            time.sleep(self._delay)
        n_read = n_words(prompt)
        if self._fails(prompt):
            return Generation(index, "", n_read, 0, self._delay, "The fake engine was told to fail here.")
        text = fake_text(prompt, params)
        return Generation(index, text, n_read, len(text.split()), self._delay)

    @staticmethod
    def _note(log: Path, key: str) -> None:
        """Append one line in one move, so that it is whole whatever other processes write."""
        line = json.dumps({"key": key, "time": time.time(), "process": os.getpid()}) + "\n"
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def close(self) -> None:
        """Do nothing; there is nothing to give back."""

    def _fails(self, prompt: Prompt) -> bool:
        if isinstance(self._fail_on, int):
            return self.n_calls % self._fail_on == 0
        return self._fail_on is not None and self._fail_on(prompt)


def n_words(prompt: Prompt) -> int:
    """Return the tokens of a prompt as `FakeGenerator` counts them: words."""
    return sum(len(message.content.split()) for message in prompt.messages)


def fake_text(prompt: Prompt, params: GenerationParams) -> str:
    """Return a sentence about the prompt's most frequent words; ties and the verb depend on its hash."""
    content = "\n".join(message.content for message in prompt.messages)
    seed = params.seed if params.temperature > 0 else 0
    found = Counter(_WORD.findall(content.lower()))
    counts = Counter({word: n for word, n in found.items() if not _is_common(word)})
    words = _most_frequent(counts, 4, seed, content)
    verb = ("likes", "prefers", "enjoys")[derive_seed(seed, content) % 3]
    if prompt.parts is not None:
        text = ""
        for part in prompt.parts:
            liked = sorted(part.phrases, key=lambda phrase: -counts[phrase.split()[0].lower()])
            text += f"{text and f'; {part.lead} '}{', '.join(liked[: part.n_phrases])}"
        return " ".join(text.split()[: params.max_new_tokens])
    text = f"{verb} {', '.join(words)}." if words else f"{verb} nothing in particular."
    if not prompt.prefill:
        text = f"This person {text}"
    text = " ".join(text.split()[: params.max_new_tokens])
    for stop in params.stop:
        text = text.partition(stop)[0]
    return text.strip()


@lru_cache(maxsize=32_768)
def _is_common(word: str) -> bool:
    return _COMMON.fullmatch(word) is not None


def _most_frequent(counts: Counter[str], n: int, seed: int, content: str) -> list[str]:
    """Return the `n` most frequent words; equal counts stand in the order of `derive_seed`."""
    least = min((count for _, count in counts.most_common(n)), default=0)
    begun = hashlib.sha256(f"{seed}\x1f{content}\x1f".encode())  # what `derive_seed` hashes before the word

    def order(word: str) -> tuple[int, bytes]:
        whole = begun.copy()
        whole.update(word.encode())
        return -counts[word], whole.digest()[:8]

    return sorted((word for word in counts if counts[word] >= least), key=order)[:n]


class FakeScorer:
    """A `LabelScorer` whose logits, in [-4, 4), are a hash of the token ids.

    Args:
        shuffle: Whether groups come in another order than given.
    """

    def __init__(self, *, shuffle: bool = True) -> None:
        self._shuffle = shuffle

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, float32 margins of shape (n_suffixes,))."""
        order = list(range(len(groups)))
        if self._shuffle:
            order.sort(key=lambda index: derive_seed(index, "order"))
        for index in order:
            group = groups[index]
            margins = [
                _logit(group.prefix + suffix, labels.positive)
                - _logit(group.prefix + suffix, labels.negative)
                for suffix in group.suffixes
            ]
            yield index, np.asarray(margins, dtype=np.float32)


def _logit(token_ids: tuple[int, ...], label: int) -> float:
    digest = hashlib.sha256(repr((token_ids, label)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**29 - 4.0


class FakeTokenizer:
    """A reversible byte-level `Tokenizer`; chat markers and the words yes and no are one token each."""

    special_texts: tuple[str, ...] = _SPECIAL[:2]
    has_chat_template = True
    prompt_version = 1
    answer_blank = ""

    def encode(self, text: str) -> list[int]:
        """Return byte values, and 256 and up for the special texts."""
        ids: list[int] = []
        for part in _SPLIT.split(text):
            ids.extend([256 + _SPECIAL.index(part)] if part in _SPECIAL else part.encode())
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt; there is no BOS."""
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 become replacement characters."""
        parts = (bytes([i]) if i < 256 else _SPECIAL[i - 256].encode() for i in token_ids)
        return b"".join(parts).decode(errors="replace")

    def render_chat(self, prompt: Prompt, *, think: bool = True) -> str:  # noqa: ARG002
        """Return the prompt in ChatML, which has no think block."""
        turns = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in prompt.messages)
        return f"{turns}<|im_start|>assistant\n{prompt.prefill}"
