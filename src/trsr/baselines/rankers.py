"""Baselines that are made of a dataset, for `trsr.evaluate`; a ranker of one's own can look like these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trsr.baselines.simple import Bm25Index, Bm25Ranker, PopularityRanker, RecencyRanker
from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.recommend.ranker import ExampleScores
from trsr.splitting.split import Split
from trsr.summarize.counted import field_values
from trsr.types import RankingExample

_WHOLE = 10_000
"""Words of a field at most: all of them."""


class Popularity(PopularityRanker):
    """Ranks by the number of users who interacted with an item, in the events that may be learned from."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self._n_users: dict[str, int] | None = None  # type: ignore[assignment]

    def fit(self, split: Split) -> None:
        """Count the users of each item in `split.training_events`."""
        super().__init__(split.training_events)

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer per example.

        Raises:
            DataError: `fit` was not called.
        """
        if self._n_users is None:
            raise DataError("Popularity counts nothing yet; call `fit` with a split first.")
        return super().rank(examples)


class Recency(RecencyRanker):
    """Ranks by how often and how lately an item's categories occur in the user's history."""

    def __init__(self, data: Dataset, *, half_life: float = 5.0) -> None:
        fields = data.info.category_fields
        categories = {i: frozenset(field_values(item, fields)) for i, item in data.catalogue().items()}
        super().__init__(categories, half_life=half_life)


class BM25(Bm25Ranker):
    """Ranks an item's text by BM25 against the texts of the newest history items."""

    def __init__(self, data: Dataset, *, n_recent: int | None = 5) -> None:
        text = data.item_texts(None, _WHOLE, None)
        super().__init__(
            Bm25Index({item_id: text(item_id) for item_id in data.catalogue()}), n_recent=n_recent
        )
