"""How processes that use one store share calls, so that none is made twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Claims(Protocol):
    """The calls that one process has taken; implemented by `trsr.experiment.ray_claims`."""

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Take these calls; return those that are left to another process, which took them before."""
        ...

    def release(self, keys: Sequence[str]) -> None:
        """Let go of calls that failed, so that others need not wait for their texts."""
        ...
