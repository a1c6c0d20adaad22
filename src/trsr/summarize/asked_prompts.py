"""The prompts that an engine is answering: they grow while results are read; answered ones are let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from trsr.llm.base import Prompt

_ANSWERED = Prompt(())


class AskedPrompts(Sequence[Prompt]):
    """The prompts of one call of an engine's `generate`, by index; those that were answered are let go."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, Prompt]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not -self._n <= index < self._n:
            raise IndexError(index)
        return self._open.get(index % self._n, ("", _ANSWERED))[1]

    def append(self, key: str, prompt: Prompt) -> None:
        """Put a prompt behind all others."""
        self._open[self._n] = key, prompt
        self._n += 1

    def answered(self, index: int) -> str:
        """Return the key of a prompt, which is not needed any more."""
        return self._open.pop(index)[0]
