"""Random numbers that do not depend on order or parallelism.

Each generator is derived from the run's seed and the names of a user, example or epoch. There is no global
state (SPEC 7 of the Scientific Python project).
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 64-bit seed that depends on `seed` and on every name, in order."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def derive_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator for `names`, for example `derive_rng(0, "negatives", user_id)`."""
    return np.random.default_rng(derive_seed(seed, *names))
