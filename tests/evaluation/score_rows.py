"""Rows of scores as rankers leave them, for the tests of what is computed from them."""

from __future__ import annotations

import numpy as np
import polars as pl

from trsr.recommend.ranker import sigmoid


def make_scores(n_examples: int = 60, n_candidates: int = 21, per_user: int = 2) -> pl.DataFrame:
    """Return scores of `good` (noisy truth), `noise` and `constant`; the positive always comes first."""
    rng = np.random.default_rng(0)
    label = np.tile([1] + [0] * (n_candidates - 1), n_examples)
    example = np.repeat(np.arange(n_examples), n_candidates)
    frames = []
    for ranker, margin in {
        "good": rng.normal(size=len(label)) + 2 * label,
        "noise": rng.normal(size=len(label)),
        "constant": np.zeros(len(label)),
    }.items():
        frames.append(
            pl.DataFrame(
                {
                    "example_id": [f"e{i}" for i in example],
                    "user_id": [f"u{i // per_user}" for i in example],
                    "item_id": [f"i{i % n_candidates}" for i in range(len(label))],
                    "label": label,
                    "ranker": ranker,
                    "margin": margin.astype(np.float32),
                    "score": sigmoid(margin),
                    "n_prompt_tokens": 100,
                    "n_cut_tokens": np.where(example < 3, 5, 0),
                }
            )
        )
    return pl.concat(frames)
