"""Deterministic generator, scorer and tokenizer without a model, for tests, examples and dry runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.llm.base import Generation, GenerationParams, LabelTokens, Prompt, ScoringGroup, prompt_key
from trsr.llm.chat_format import Tokenizer
from trsr.seeding import derive_seed

_WORD = re.compile(r"[^\W\d_]{4,}")
# Words of four letters and more that say nothing about taste.
_COMMON = frozenset(
    _WORD.findall(
        """about after also answer been before does each first from have into item items last like likes more
        most name only other over person profile reader says sentence sentences should some such than that
        their them then there these they this title user what when which with words would write your"""
    )
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "yes", "no", "Yes", "No")
_SPLIT = re.compile(r"(<\|im_start\|>|<\|im_end\|>|\b(?:yes|no|Yes|No)\b)")
TOGETHER = 64
"""Results per batch of a `FakeGenerator` without delay."""
CHARACTERS_A_TOKEN = 4
"""Characters per token of `RoughTokenizer`."""


class FakeGenerator:
    """A `TextGenerator` that names the most frequent words of the prompt.

    Args:
        delay: Seconds that each call takes.
        fail_on: Calls that fail: every nth one (over the generator's lifetime, from 1), or those for which
            the function returns true.
        shuffle: Whether results come in another order than the prompts.
        log: A file that gets one JSON line at the start of each call; several processes may write to it.

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
        """Yield one result per prompt; one token is one word."""
        n_seen = 0
        while n_seen < len(prompts):
            order = _order(range(n_seen, len(prompts)), self._shuffle)
            n_seen = len(prompts)
            for place, index in enumerate(order, 1):
                answer = self._answer(index, prompts[index], params)
                together = not self._delay and place < len(order) and place % TOGETHER != 0
                yield replace(answer, more=True) if together else answer

    def close(self) -> None:
        """Do nothing."""

    def _answer(self, index: int, prompt: Prompt, params: GenerationParams) -> Generation:
        self.n_calls += 1
        if self._log is not None:
            key = prompt_key(prompt, self.model_id, params)
            with self._log.open("a", encoding="utf-8") as log:  # one write keeps lines whole
                log.write(json.dumps({"key": key, "time": time.time(), "process": os.getpid()}) + "\n")
        if self._delay:
            time.sleep(self._delay)
        n_read = n_words(prompt)
        if isinstance(self._fail_on, int):
            fails = self.n_calls % self._fail_on == 0
        else:
            fails = self._fail_on is not None and self._fail_on(prompt)
        if fails:
            return Generation(index, "", n_read, 0, self._delay, "The fake engine was set to fail here.")
        text = fake_text(prompt, params)
        return Generation(index, text, n_read, len(text.split()), self._delay)


def _order(numbers: range, shuffle: bool) -> Sequence[int]:
    return sorted(numbers, key=lambda number: derive_seed(number, "order")) if shuffle else numbers


def n_words(prompt: Prompt) -> int:
    """Return the number of words of a prompt, the tokens of `FakeGenerator`."""
    return sum(len(message.content.split()) for message in prompt.messages)


def fake_text(prompt: Prompt, params: GenerationParams) -> str:
    """Return a sentence about the prompt's most frequent words; ties and the verb depend on its hash."""
    content = "\n".join(message.content for message in prompt.messages)
    seed = params.seed if params.temperature > 0 else 0
    counts = Counter(word for word in _WORD.findall(content.lower()) if word not in _COMMON)
    if prompt.parts is not None:
        text = ""
        for part in prompt.parts:
            liked = sorted(part.phrases, key=lambda phrase: -counts[phrase.split()[0].lower()])
            text += f"{text and f'; {part.lead} '}{', '.join(liked[: part.n_phrases])}"
        return " ".join(text.split()[: params.max_new_tokens])
    words = _most_frequent(counts, 4, seed, content)
    verb = ("likes", "prefers", "enjoys")[derive_seed(seed, content) % 3]
    text = f"{verb} {', '.join(words)}." if words else f"{verb} nothing in particular."
    if not prompt.prefill:
        text = f"This person {text}"
    text = " ".join(text.split()[: params.max_new_tokens])
    for stop in params.stop:
        text = text.partition(stop)[0]
    return text.strip()


def _most_frequent(counts: Counter[str], n: int, seed: int, content: str) -> list[str]:
    """Return the `n` most frequent words; ties are ordered by `derive_seed(seed, content, word)`."""
    least = min((count for _, count in counts.most_common(n)), default=0)
    begun = hashlib.sha256(f"{seed}\x1f{content}\x1f".encode())  # hashed once: `content` may be long

    def order(word: str) -> tuple[int, bytes]:
        whole = begun.copy()
        whole.update(word.encode())
        return -counts[word], whole.digest()[:8]

    return sorted((word for word in counts if counts[word] >= least), key=order)[:n]


class FakeScorer:
    """A `LabelScorer` whose logits, in [-4, 4), are a hash of the token ids.

    Args:
        shuffle: Whether groups come in another order.
    """

    def __init__(self, *, shuffle: bool = True) -> None:
        self._shuffle = shuffle

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, float32 margins of shape (n_suffixes,))."""
        for index in _order(range(len(groups)), self._shuffle):
            prompts = [groups[index].prefix + suffix for suffix in groups[index].suffixes]
            margins = [_logit(ids, labels.positive) - _logit(ids, labels.negative) for ids in prompts]
            yield index, np.asarray(margins, dtype=np.float32)


def _logit(token_ids: tuple[int, ...], label: int) -> float:
    digest = hashlib.sha256(repr((token_ids, label)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**29 - 4.0


class FakeTokenizer(Tokenizer):
    """A reversible byte-level tokenizer in ChatML; chat markers, yes and no are one token each."""

    name = "fake"
    has_chat_template = True
    special_texts: tuple[str, ...] = _SPECIAL[:2]

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:  # noqa: ARG002 - there are none
        """Return byte values, and 256 and up for the special texts."""
        ids: list[int] = []
        for part in _SPLIT.split(text):
            ids.extend([256 + _SPECIAL.index(part)] if part in _SPECIAL else part.encode())
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; no blank is added before it."""
        return self.token_ids(text, adds_special=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt; there is no BOS."""
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 become replacement characters."""
        parts = (bytes([i]) if i < 256 else _SPECIAL[i - 256].encode() for i in token_ids)
        return b"".join(parts).decode(errors="replace")

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:  # noqa: ARG002
        """Return turns in ChatML, which has no think block."""
        text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        return f"{text}<|im_start|>assistant\n"


class RoughTokenizer(FakeTokenizer):
    """A reversible tokenizer for rough counts: every four characters are a token."""

    special_texts = ()

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ids: dict[str, int] = {}

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:  # noqa: ARG002 - there are none
        """Return one id for every four characters."""
        ids = []
        for start in range(0, len(text), CHARACTERS_A_TOKEN):
            piece = text[start : start + CHARACTERS_A_TOKEN]
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            ids.append(self._ids[piece])
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return "".join(self._pieces[i] for i in token_ids)
