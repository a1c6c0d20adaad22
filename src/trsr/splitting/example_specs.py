"""Shared parts of the protocols: examples without negatives, and the items and events that have text.

No protocol uses an item without text as history, target or candidate; such items are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.seeding import derive_rng, derive_seed
from trsr.splitting.negatives import SPLITS, NegativeSampler, NegativesConfig, SplitName
from trsr.types import RankingExample


@dataclass(frozen=True, slots=True)
class ExampleSpec:
    """A ranking example without its negatives.

    Attributes:
        example_id: Unique over all splits.
        user_id: The user.
        history: Item ids, oldest first, strictly before the target, as the ranker sees them.
        positives: The chosen items: one, or the clicks of an impression.
        shown: The unclicked candidates of an impression; None where negatives come from the catalogue.
        also_seen: Items the user also interacted with by then (cut from `history`, or at the same time).
        timestamp: When the choice was made (UTC), where known.
        n_known: How many items of the sampler's catalogue were known by then; None for all.
    """

    example_id: str
    user_id: str
    history: tuple[str, ...]
    positives: tuple[str, ...]
    shown: tuple[str, ...] | None = None
    also_seen: tuple[str, ...] = ()
    timestamp: datetime | None = None
    n_known: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All examples of a protocol, and how their negatives are drawn.

    Attributes:
        specs: By split, in an order fixed by the seed.
        n_negatives: By split; None keeps all shown ones.
        samplers: The sampler of each split; none for impressions.
        paper_exact: Draw as the paper's released code does.
        counts: Plain numbers for the report.
        description: Plain values that describe how the examples were made.
        warnings: Sentences that belong to every metric.
    """

    specs: dict[SplitName, list[ExampleSpec]]
    n_negatives: Mapping[SplitName, int | None]
    samplers: Mapping[SplitName, NegativeSampler] = field(default_factory=dict)
    paper_exact: bool = False
    counts: dict[str, int | float] = field(default_factory=dict)
    description: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def draw_candidates(
    plan: Plan, spec: ExampleSpec, split: SplitName, seed: int, epoch: int | None = None
) -> tuple[RankingExample, int]:
    """Draw negatives and shuffle the candidates, both by the example's own seed.

    Returns:
        The example, and how many of its negatives came from outside the target's category.
    """
    rng = derive_rng(seed, "negatives", split, spec.example_id, *(() if epoch is None else (epoch,)))
    negatives, n_widened = _draw_negatives(plan, spec, split, rng)
    candidates = (*spec.positives, *negatives)
    order = range(len(candidates)) if plan.paper_exact else rng.permutation(len(candidates)).tolist()
    example = RankingExample(
        spec.example_id,
        spec.user_id,
        spec.history,
        tuple(candidates[i] for i in order),
        tuple(int(i < len(spec.positives)) for i in order),
        spec.timestamp,
    )
    return example, n_widened


def _draw_negatives(
    plan: Plan, spec: ExampleSpec, split: SplitName, rng: np.random.Generator
) -> tuple[tuple[str, ...], int]:
    n = plan.n_negatives[split]
    if spec.shown is not None:
        if n is None or n >= len(spec.shown):
            return spec.shown, 0
        places = sorted(rng.choice(len(spec.shown), size=n, replace=False).tolist())
        return tuple(spec.shown[i] for i in places), 0
    assert n is not None
    if plan.paper_exact:
        return plan.samplers[split].draw_unchecked(rng, n), 0
    seen = (*spec.history, *spec.also_seen, *spec.positives)
    try:
        return plan.samplers[split].draw(rng, spec.positives[0], seen, n, n_known=spec.n_known)
    except DataError as error:
        raise DataError(f"No negatives for the user {spec.user_id!r}: {error}") from error


def readable_items(dataset: Dataset) -> pl.DataFrame:
    """Return the items that have text: item_id and the category fields, sorted by item_id.

    Raises:
        DataError: no item has any text.
    """
    info = dataset.info
    has_text = pl.any_horizontal(
        pl.col(name).is_not_null() & (pl.col(name).str.strip_chars() != "") for name in info.text_fields
    )
    items = (
        dataset.items().filter(has_text).select("item_id", *info.category_fields).collect().sort("item_id")
    )
    if items.is_empty():
        raise DataError(
            f"No item of {info.name!r} has any text in {', '.join(info.text_fields)}; import it again."
        )
    return items


def readable_events(dataset: Dataset, items: pl.DataFrame) -> pl.LazyFrame:
    """Return the events whose item has text."""
    return dataset.events().join(items.lazy().select("item_id"), on="item_id", how="semi")


def text_counts(dataset: Dataset, items: pl.DataFrame) -> dict[str, int | float]:
    """Count items and events, with and without text."""
    n_items = dataset.items().select(pl.len()).collect().item()
    n_events = dataset.events().select(pl.len()).collect().item()
    n_readable = readable_events(dataset, items).select(pl.len()).collect().item()
    return {
        "items": n_items,
        "items_without_text": n_items - len(items),
        "events": n_events,
        "events_without_text": n_events - n_readable,
        "missing_text_rate_events": (n_events - n_readable) / n_events if n_events else 0.0,
    }


def make_samplers(
    dataset: Dataset,
    items: pl.DataFrame,
    config: NegativesConfig,
    popularity: pl.DataFrame | None,
    specs: Mapping[SplitName, Sequence[ExampleSpec]],
) -> dict[SplitName, NegativeSampler]:
    """Build the sampler of each split over `items` in their given order; only `targets` has several.

    Args:
        dataset: Names the category fields.
        items: Catalogue with columns item_id and the category fields.
        config: The kind of negatives.
        popularity: Columns item_id and n; needed for `popularity` only.
        specs: Of each split; no split uses the targets of another.

    Raises:
        DataError: `same-category` without category fields.
    """
    ids, fields = items["item_id"].to_list(), dataset.info.category_fields
    if config.kind == "targets":
        chosen = {s: Counter(item for spec in specs[s] for item in spec.positives) for s in SPLITS}
        return {split: NegativeSampler(ids, config.kind, popularity=chosen[split]) for split in SPLITS}
    counts = None if popularity is None else dict(popularity.select("item_id", "n").iter_rows())
    categories = None
    if config.kind == "same-category":
        if not fields:
            raise DataError(
                f"The dataset {dataset.info.name!r} names no category fields, which same-category negatives "
                "need; import it with category fields or choose another kind."
            )
        categories = {row[0]: row[1:] for row in items.select("item_id", *fields).iter_rows()}
    return dict.fromkeys(SPLITS, NegativeSampler(ids, config.kind, popularity=counts, categories=categories))


def by_seed(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in an order that depends on the seed and on each name alone, not on their order."""
    return sorted(names, key=lambda name: (derive_seed(seed, "split", name), name))


def require(n_found: int, n_train: int | None, n_valid: int, n_test: int, name: str) -> None:
    """Check that `n_found` users or impressions suffice for the three splits.

    Raises:
        DataError: they do not.
    """
    if n_found < n_valid + n_test + (1 if n_train is None else n_train):
        raise DataError(
            f"Only {n_found} {name} can be used, but {n_train or 'at least 1'} for training, {n_valid} for "
            f"validation and {n_test} for the test are requested; lower these numbers or the limits on "
            "history."
        )


def newest(history: Sequence[str], n: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut a history into its newest `n` items and the older ones that are cut off."""
    if n is None or len(history) <= n:
        return tuple(history), ()
    return tuple(history[-n:]), tuple(history[:-n])
