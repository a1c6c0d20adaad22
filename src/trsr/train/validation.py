"""The paper's rule for the best checkpoint: the sum of recall at 3, 5 and 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CUTOFFS = (3, 5, 10)


def recall_sum(margins: npt.NDArray[np.float32], labels: Sequence[int]) -> float:
    """Return R@3 + R@5 + R@10 of one group, in [0, 3]; among ties, the expectation over random orders.

    A candidate with g better and t equal ones (itself included) is within the first k with probability
    min(1, max(0, (k - g) / t)).
    """
    better = (margins[None, :] > margins[:, None]).sum(axis=1)
    equal = (margins[None, :] == margins[:, None]).sum(axis=1)
    chosen = np.asarray(labels, dtype=bool)
    if not chosen.any():
        raise ValueError("a validation group without a chosen candidate cannot be judged")
    return float(sum(np.clip((k - better) / equal, 0, 1)[chosen].mean() for k in CUTOFFS))
