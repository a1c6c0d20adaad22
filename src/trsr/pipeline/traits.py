"""What is known of a run's test examples besides their candidates: it divides them into slices."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from trsr.data.fitting import fit_events
from trsr.evaluate.slices import Traits, interest_shift
from trsr.pipeline.workbench import Workbench
from trsr.summarize.counted import field_values, title_words


def targets_in_history(benches: Iterable[Workbench]) -> int:
    """Return how many test examples, each id once, have a chosen candidate that their own history holds."""
    return len(
        {
            example.example_id
            for bench in benches
            for example in bench.splits.test
            if any(
                label and item in example.history
                for item, label in zip(example.candidates, example.labels, strict=True)
            )
        }
    )


def example_traits(bench: Workbench) -> dict[str, Traits]:
    """Return the traits of each test example by its id, from data before its target only.

    Raises:
        DataError: the examples were made from another dataset.
    """
    counts = fit_events(bench.dataset, bench.splits).group_by("item_id").agg(n=pl.len())
    met: dict[str, int] = dict(counts.iter_rows())
    summariser = bench.summariser
    fields, title = summariser.category_fields, summariser.title_field
    read = {item_id for example in bench.splits.test for item_id in example.history}
    values = {
        item_id: field_values(item, fields) if fields else title_words(item, title)
        for item_id, item in summariser.items.items()
        if item_id in read
    }
    return {
        example.example_id: Traits(
            history_length=len(example.history),
            target_count=min(
                (
                    met.get(item, 0)
                    for item, label in zip(example.candidates, example.labels, strict=True)
                    if label
                ),
                default=None,
            ),
            shift=interest_shift([values[item] for item in example.history]),
        )
        for example in bench.splits.test
    }
