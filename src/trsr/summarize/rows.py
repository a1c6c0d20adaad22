"""What every store of summaries holds, whichever database keeps it: whole rows, counts of them, and a choice.

For looking after stores (`trsr store`); writing summaries needs no more than `store.TextStore`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from trsr.summarize.store import StoredCall, TextStore

PAGE = 1000
"""Rows read or written at once."""


class Row(NamedTuple):
    """One row, with the columns of all stores: `item_ids` is a JSON list, `created_at` seconds since 1970."""

    key: str
    text: str | None
    error: str | None
    model: str
    template_hash: str
    item_ids: str
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    n_attempts: int
    created_at: float


class Part(NamedTuple):
    """Counts over all rows of one model and one template; `first` and `last` are of `created_at`."""

    model: str
    template_hash: str
    n_texts: int
    n_failed: int
    n_attempts: int
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are meant: those for which all that is given is true.

    Attributes:
        failed: Failed calls only.
        model: The model id, whole.
        template_hash: Beginning of the template's hash.
        before: Rows made before this time, in seconds since 1970.
    """

    failed: bool = False
    model: str | None = None
    template_hash: str | None = None
    before: float | None = None


class Store(TextStore, Protocol):
    """A store that can be copied, counted and cleaned."""

    def __enter__(self) -> Self:
        """Return the store; leaving the block closes it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        ...

    def close(self) -> None:
        """Give back files and connections; safe to call twice."""
        ...

    def calls(self, keys: Sequence[str]) -> dict[str, StoredCall]:
        """Return what is known of the calls among `keys`, failed ones included."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yield every row in the order of the keys; memory stays flat."""
        ...

    def add(self, rows: Iterable[Row]) -> int:
        """Take over rows as they are, and return how many were new.

        A text is never replaced. A text takes the place of a failed call, and attempts add up; a failed call
        is taken only where its key is unknown. So adding the same rows again changes nothing.
        """
        ...

    def parts(self) -> list[Part]:
        """Count the rows of each model and template, in the order of their names."""
        ...

    def count(self, choice: Choice) -> int:
        """Return how many rows are meant."""
        ...

    def remove(self, choice: Choice) -> int:
        """Remove the rows that are meant, and return how many there were."""
        ...

    def n_bytes(self) -> int:
        """Return the space taken on disk."""
        ...
