"""What the models of cornac have in common here: lazy import, randomness of their own, unknown items.

Cornac (Salah, Truong and Lauw, "Cornac: A comparative framework for multimodal recommender systems", JMLR
2020) knows users and items by numbers, seeds torch and numpy globally, and answers for the whole catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from trsr.errors import MissingExtraError
from trsr.seeding import derive_seed
from trsr.types import RankingExample


def require_cornac() -> None:
    """Check that cornac and torch are there, without importing them.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for package, extra in (("cornac", "baselines"), ("torch", "hf")):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


def small_seed(seed: int, name: str) -> int:
    """Return a seed of a model, small enough for numpy's old generators."""
    return derive_seed(seed, "baseline", name) % 2**31


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch and numpy globally within the block, and leave them outside as they were."""
    import torch

    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


def candidate_margins(
    scores: npt.NDArray[np.float64], number: Mapping[str, int], candidates: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Pick the candidates' scores; an item unknown to the model gets 1 less than the lowest of all.

    Args:
        scores: Shape (n_items,), of every item of the model.
        number: Where each item stands in `scores`.
        candidates: Item ids.
    """
    unknown = float(scores.min()) - 1
    return np.asarray([scores[number[i]] if i in number else unknown for i in candidates], dtype=np.float32)


def unknown_items(number: Mapping[str, int], examples: Sequence[RankingExample]) -> dict[str, int]:
    """Count the candidates, and the chosen ones among them, that a model has never met."""
    asked = [(i, label) for e in examples for i, label in zip(e.candidates, e.labels, strict=True)]
    return {
        "candidates": len(asked),
        "unknown_candidates": sum(item not in number for item, _ in asked),
        "unknown_targets": sum(bool(label) and item not in number for item, label in asked),
    }
