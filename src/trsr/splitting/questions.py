"""What the protocols have in common: a question before its negatives are drawn, and what can be read at all.

A protocol module (`leave_one_out`, `impressions`, `temporal`) makes a `Plan` of questions; `ask` turns one
into a `RankingExample`, for an epoch where wanted. Items without any text can be neither read nor ranked: no
protocol puts them into a history, a target or a candidate list; they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.seeding import derive_rng, derive_seed
from trsr.splitting.negatives import Draw, NegativeSampler, NegativesConfig
from trsr.types import RankingExample

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Question:
    """A ranking question without its negatives.

    Attributes:
        example_id: Unique over all splits.
        user_id: Who is asked.
        history: Item ids, oldest first, strictly before the target; what the ranker will see.
        positives: What was chosen: one item, or the clicks of an impression.
        shown: The unclicked candidates of an impression; None where negatives come from the catalogue.
        also_met: Items the user is known to have met beyond `history` (cut from it, or at the same time).
        timestamp: When the question was asked (UTC), where known.
        n_known: How many items of the sampler's catalogue were known by then; None for all.
    """

    example_id: str
    user_id: str
    history: tuple[str, ...]
    positives: tuple[str, ...]
    shown: tuple[str, ...] | None = None
    also_met: tuple[str, ...] = ()
    timestamp: datetime | None = None
    n_known: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All questions of a protocol, and what is needed to ask them.

    Attributes:
        questions: By split, in an order fixed by the seed.
        samplers: What draws the negatives of each split; none for impressions.
        n_negatives: By split; None keeps all shown ones.
        paper_exact: Draw as the paper's released code does.
        counts: Plain numbers for the report.
        description: Plain values that say how the questions were made.
        warnings: Sentences that belong beside every metric.
    """

    questions: dict[Split, list[Question]]
    samplers: Mapping[Split, NegativeSampler]
    n_negatives: Mapping[Split, int | None]
    paper_exact: bool = False
    counts: dict[str, int | float] = field(default_factory=dict)
    description: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def ask(
    plan: Plan, question: Question, split: Split, seed: int, epoch: int | None = None
) -> tuple[RankingExample, int]:
    """Draw a question's negatives and shuffle its candidates, both by the example's own seed.

    Returns:
        The example, and how many of its negatives came from outside the target's category.
    """
    rng = derive_rng(seed, "negatives", split, question.example_id, *(() if epoch is None else (epoch,)))
    negatives = _negatives(plan, question, split, rng)
    candidates = (*question.positives, *negatives.item_ids)
    labels = (*(1 for _ in question.positives), *(0 for _ in negatives.item_ids))
    order = range(len(candidates))
    if not plan.paper_exact:
        order = rng.permutation(len(candidates)).tolist()
    example = RankingExample(
        question.example_id,
        question.user_id,
        question.history,
        tuple(candidates[i] for i in order),
        tuple(labels[i] for i in order),
        question.timestamp,
    )
    return example, negatives.n_widened


def _negatives(plan: Plan, question: Question, split: Split, rng: np.random.Generator) -> Draw:
    n = plan.n_negatives[split]
    if question.shown is not None:
        if n is None or n >= len(question.shown):
            return Draw(question.shown)
        places = sorted(rng.choice(len(question.shown), size=n, replace=False).tolist())
        return Draw(tuple(question.shown[i] for i in places))
    assert n is not None
    sampler = plan.samplers[split]
    if plan.paper_exact:
        return sampler.draw_unchecked(rng, n)
    met = (*question.history, *question.also_met, *question.positives)
    try:
        return sampler.draw(rng, question.positives[0], met, n, n_known=question.n_known)
    except DataError as error:
        raise DataError(f"No negatives for the user {question.user_id!r}: {error}") from error


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
            f"No item of {info.name!r} has any text in {', '.join(info.text_fields)}; import it anew."
        )
    return items


def readable_events(dataset: Dataset, items: pl.DataFrame) -> pl.LazyFrame:
    """Return the events whose item has text."""
    return dataset.events().join(items.lazy().select("item_id"), on="item_id", how="semi")


def text_counts(dataset: Dataset, items: pl.DataFrame) -> dict[str, int | float]:
    """Count items, events, and those among them that have no text."""
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


def negatives_by_split(config: NegativesConfig) -> dict[Split, int]:
    """Return how many negatives an example of each split gets."""
    return {"train": config.n_train, "valid": config.n_test, "test": config.n_test}


def make_samplers(
    dataset: Dataset,
    items: pl.DataFrame,
    config: NegativesConfig,
    popularity: pl.DataFrame | None,
    questions: Mapping[Split, Sequence[Question]],
) -> dict[Split, NegativeSampler]:
    """Build the sampler of each split over `items` in their given order; only `targets` has several.

    Args:
        dataset: Names the category fields.
        items: Catalogue with columns item_id and the category fields.
        config: The kind of negatives.
        popularity: Columns item_id and n; needed for `popularity` only.
        questions: Of each split; those of one split never lend their targets to another.
    """
    ids = items["item_id"].to_list()
    fields = dataset.info.category_fields
    if config.kind == "same-category" and not fields:
        raise DataError(
            f"The dataset {dataset.info.name!r} names no category fields, which same-category negatives "
            "need; import it with category fields or choose another kind."
        )
    counts = dict(popularity.select("item_id", "n").iter_rows()) if popularity is not None else None
    categories = None
    if config.kind == "same-category":
        categories = {row[0]: row[1:] for row in items.select("item_id", *fields).iter_rows()}
    if config.kind == "targets":
        chosen = {s: Counter(item for q in questions[s] for item in q.positives) for s in SPLITS}
        return {split: NegativeSampler(ids, config.kind, popularity=chosen[split]) for split in SPLITS}
    return dict.fromkeys(SPLITS, NegativeSampler(ids, config.kind, popularity=counts, categories=categories))


def by_seed(names: Iterable[str], seed: int) -> list[str]:
    """Return the names in an order that depends on the seed and on each name alone, not on their order."""
    return sorted(names, key=lambda name: (derive_seed(seed, "split", name), name))


def divide(
    names: Sequence[str], n_train: int | None, n_valid: int, n_test: int, what: str
) -> dict[Split, list[str]]:
    """Cut a sequence into test, validation and training parts, in this order.

    A larger `n_train` never changes what is held out.

    Raises:
        DataError: there are fewer names than asked for.
    """
    require(len(names), n_train, n_valid, n_test, what)
    held = n_test + n_valid
    return {
        "train": list(names[held:] if n_train is None else names[held : held + n_train]),
        "valid": list(names[n_test:held]),
        "test": list(names[:n_test]),
    }


def require(n_found: int, n_train: int | None, n_valid: int, n_test: int, what: str) -> None:
    """Check that `n_found` users or impressions suffice for the three splits.

    Raises:
        DataError: they do not.
    """
    if n_found < n_valid + n_test + (1 if n_train is None else n_train):
        raise DataError(
            f"Only {n_found} {what} can be used, but {n_train or 'at least 1'} for training, {n_valid} for "
            f"validation and {n_test} for the test are asked; lower these numbers or the limits on history."
        )


def newest(history: Sequence[str], n: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a history into its newest `n` items and the older ones that are cut off."""
    if n is None or len(history) <= n:
        return tuple(history), ()
    return tuple(history[-n:]), tuple(history[:-n])
