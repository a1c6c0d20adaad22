"""Random numbers that do not depend on order or parallelism.

Every random draw belongs to a named thing (a user, an example, an epoch). Its generator is derived from the
run's seed and that name, so processing users in another order, or in several workers, changes nothing.
Follows SPEC 7 of the Scientific Python project: functions take a generator or a seed, never global state.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 64-bit seed that depends on `seed` and on every name, in order."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def derive_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of the thing called `names`, for example `derive_rng(0, "negatives", user_id)`."""
    return np.random.default_rng(derive_seed(seed, *names))
