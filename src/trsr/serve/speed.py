"""How fast the model reads on this machine, measured before the first request, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trsr.recommend.questions import Ask
from trsr.recommend.recommender import Recommender
from trsr.serve.model_queue import n_read_at_most

ANSWER_SECONDS = 2.0
"""What ranking for a user should take where nobody else asks."""
PASS_SECONDS = 0.05
"""What a pass should take: the next one is chosen when it ends."""
MIN_RANKED, MAX_RANKED = 10, 50
MIN_TOKENS = 16_384
"""Read for one request on the slowest machine too: one that is busy at the start may be quick later."""
_MIN_PASS_TOKENS = 256
_N_CANDIDATES = 8
_ROUNDS, _SECONDS = 3, 3.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens that the model reads in a second, and those of an ordinary prompt's parts."""

    rate: float
    n_prefix: int
    n_candidate: float

    @property
    def n_ranked(self) -> int:
        """Candidates that are ranked in about `ANSWER_SECONDS`."""
        n = (ANSWER_SECONDS * self.rate - self.n_prefix) / self.n_candidate
        return max(MIN_RANKED, min(MAX_RANKED, int(n)))

    @property
    def pass_tokens(self) -> int:
        """Tokens that are read in about `PASS_SECONDS`."""
        return max(_MIN_PASS_TOKENS, int(PASS_SECONDS * self.rate))


def measure(recommender: Recommender, clock: Callable[[], float] = time.perf_counter) -> Speed | None:
    """Return the best of a few readings, the first of which warms up; None for an empty catalogue.

    The prompts are of items of the catalogue, no two with the same prefix.
    """
    items = list(recommender.catalogue.items)
    if not items:
        return None
    n_recent = max(1, recommender.builder.config.n_recent)
    best: Speed | None = None
    began = clock()
    for turn in range(_ROUNDS + 1):
        first = turn % len(items)
        chosen = (items[first:] + items[:first])[: n_recent + _N_CANDIDATES]
        prompt = recommender.prompt(Ask(chosen[:n_recent], f"{turn}", chosen[-_N_CANDIDATES:]))
        started = clock()
        for _ in recommender.read([prompt.group]):
            pass
        seconds = max(clock() - started, 1e-6)
        group = prompt.group
        n_suffixes = n_read_at_most(prompt) - len(group.prefix)
        speed = Speed(n_read_at_most(prompt) / seconds, len(group.prefix), n_suffixes / len(group.suffixes))
        if best is None or speed.rate > best.rate:
            best = speed
        if clock() - began > _SECONDS:
            break
    return best
