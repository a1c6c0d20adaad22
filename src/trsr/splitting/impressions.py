"""The `impressions` protocol: the candidates that were shown and the clicks on them, as MIND evaluates."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.splitting.example_specs import (
    ExampleSpec,
    Plan,
    by_seed,
    newest,
    readable_items,
    require,
    text_counts,
)
from trsr.splitting.negatives import SplitName


class ImpressionsProtocol(BaseModel):
    """MIND's official protocol: the candidates that were shown, and the clicks on them.

    Split by time where every impression has a time (the newest are the test), else by seed over users.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["impressions"]
    """Always `impressions`."""
    min_history: int = Field(default=1, ge=0)
    """Fewest history items with text; impressions with fewer are left out."""
    max_history: int | None = Field(default=None, ge=1)
    """Newest history items that are kept; None keeps all."""
    n_train: int | None = Field(default=None, ge=1)
    """Training impressions; None for all that validation and test leave."""
    n_valid: int = Field(default=200, ge=0)
    """Validation impressions."""
    n_test: int = Field(default=500, ge=1)
    """Test impressions."""
    n_train_negatives: int | None = Field(default=4, ge=1)
    """Unclicked candidates kept in a training example, drawn again each epoch; None keeps all. Validation and
    test always keep all."""

    @model_validator(mode="after")
    def _consistent(self) -> ImpressionsProtocol:
        if self.max_history is not None and self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        return self


def plan_impressions(dataset: Dataset, protocol: ImpressionsProtocol, seed: int) -> Plan:
    """Choose the impressions of each split and leave out items without text.

    Raises:
        DataError: the dataset has no impressions, or fewer than requested can be used.
    """
    logged = dataset.impressions()
    if logged is None:
        raise DataError(
            f"The dataset {dataset.info.name!r} has no impressions; use the sampled or temporal protocol."
        )
    items = readable_items(dataset)
    usable, counts = _usable(logged, items, protocol.min_history)
    warnings: tuple[str, ...] = ()
    description: dict[str, object] = {"split": "users by seed", "target": "clicks among the shown candidates"}
    n_untimed = usable["timestamp"].null_count()
    if n_untimed == 0 and len(usable):
        parts, valid_from, test_from = _divide_by_time(usable, protocol, seed)
        times = {"valid_from": valid_from.isoformat(), "test_from": test_from.isoformat()}
        description |= {"split": "time", **times}
    else:
        parts = _divide_by_user(usable, protocol, seed)
        warnings = (
            f"Leakage warning: not every impression has a time ({n_untimed:,} of {len(usable):,} lack it), "
            "so users are split and not time; training clicks may have happened after test impressions.",
        )
    n_drawn = sum(map(len, parts.values()))
    found = _specs(logged, items, (name for part in parts.values() for name in part), protocol.max_history)
    return Plan(
        {split: [found[name] for name in part] for split, part in parts.items()},
        n_negatives={"train": protocol.n_train_negatives, "valid": None, "test": None},
        counts=counts | {"impressions_not_drawn": len(usable) - n_drawn, **text_counts(dataset, items)},
        description=description,
        warnings=warnings,
    )


def _usable(
    logged: pl.LazyFrame, items: pl.DataFrame, min_history: int
) -> tuple[pl.DataFrame, dict[str, int | float]]:
    """Return impression_id, user_id, timestamp of the usable impressions, and the counts of the others."""
    known = items.lazy().select("item_id", has_text=pl.lit(True))
    shown = (
        logged.select("impression_id", "candidates", "clicked")
        .explode("candidates", "clicked")
        .group_by("impression_id", "candidates")
        .agg(pl.col("clicked").any())
        .join(known, left_on="candidates", right_on="item_id", how="left")
        .group_by("impression_id")
        .agg(
            n_shown=pl.len(),
            n_clicked=(pl.col("has_text") & pl.col("clicked")).sum(),
            n_unclicked=(pl.col("has_text") & ~pl.col("clicked")).sum(),
        )
    )
    before = (
        logged.select("impression_id", "history")
        .explode("history")
        .filter(pl.col("history").is_not_null())
        .join(known, left_on="history", right_on="item_id", how="left")
        .group_by("impression_id")
        .agg(n_history=pl.len(), n_readable=pl.col("has_text").sum())
    )
    counted = (
        logged.select("impression_id", "user_id", "timestamp")
        .join(shown, on="impression_id", how="left")
        .join(before, on="impression_id", how="left")
        .with_columns(pl.col("n_history", "n_readable", "n_shown", "n_clicked", "n_unclicked").fill_null(0))
    )
    try:
        table = counted.collect()
    except pl.exceptions.ShapeError as error:
        raise DataError(
            "An impression has not as many clicks as candidates; `trsr validate` names it; correct it."
        ) from error
    if table["impression_id"].n_unique() != len(table):
        raise DataError("Several impressions have the same impression_id; import the dataset again.")
    rankable = table.filter((pl.col("n_clicked") > 0) & (pl.col("n_unclicked") > 0))
    usable = rankable.filter(pl.col("n_readable") >= min_history)
    n_shown, n_history = int(table["n_shown"].sum()), int(table["n_history"].sum())
    n_read = int(table["n_clicked"].sum()) + int(table["n_unclicked"].sum())
    counts: dict[str, int | float] = {
        "impressions": len(table),
        "impressions_eligible": len(usable),
        "impressions_without_click_or_unclicked_with_text": len(table) - len(rankable),
        "impressions_too_short_history": len(rankable) - len(usable),
        "candidates_logged": n_shown,
        "candidates_without_text": n_shown - n_read,
        "missing_text_rate_candidates": (n_shown - n_read) / n_shown if n_shown else 0.0,
        "missing_text_rate_history": 1 - int(table["n_readable"].sum()) / n_history if n_history else 0.0,
    }
    return usable.select("impression_id", "user_id", "timestamp"), counts


def _divide_by_time(
    usable: pl.DataFrame, protocol: ImpressionsProtocol, seed: int
) -> tuple[dict[SplitName, list[str]], datetime, datetime]:
    """Test on the newest, validate on the ones before, train on the rest; equal times stay together."""
    rest = usable.sort("timestamp", "impression_id")
    n_train = 1 if protocol.n_train is None else protocol.n_train
    parts: dict[SplitName, list[str]] = {}
    starts: list[datetime] = []
    held: tuple[tuple[SplitName, int], ...] = (("test", protocol.n_test), ("valid", protocol.n_valid))
    for split, n in held:
        if len(rest) < n + 1:
            break
        starts.append(rest["timestamp"][len(rest) - n] if n else starts[0])
        stretch = rest.filter(pl.col("timestamp") >= starts[-1])
        parts[split] = by_seed(stretch["impression_id"].to_list(), seed)[:n]
        rest = rest.filter(pl.col("timestamp") < starts[-1])
    if len(parts) < len(held) or len(rest) < n_train:
        raise DataError(
            f"Only {len(usable)} impressions can be used, {len(rest)} of them before the held-out ones, but "
            f"{n_train} for training, {protocol.n_valid} for validation and {protocol.n_test} for the test "
            "are requested; lower these numbers."
        )
    parts["train"] = by_seed(rest["impression_id"].to_list(), seed)[: protocol.n_train]
    return parts, starts[1], starts[0]


def _divide_by_user(
    usable: pl.DataFrame, protocol: ImpressionsProtocol, seed: int
) -> dict[SplitName, list[str]]:
    """Give whole users to the test, then to validation, then to training, until each has enough."""
    by_user: dict[str, list[str]] = {}
    for impression_id, user_id in usable.sort("impression_id").select("impression_id", "user_id").iter_rows():
        by_user.setdefault(user_id, []).append(impression_id)
    users = iter(by_seed(by_user, seed))
    parts: dict[SplitName, list[str]] = {}
    sizes: dict[SplitName, int | None] = {
        "test": protocol.n_test,
        "valid": protocol.n_valid,
        "train": protocol.n_train,
    }
    for split, n in sizes.items():
        part: list[str] = []
        while (n is None or len(part) < n) and (user := next(users, None)) is not None:
            part += by_user[user]
        parts[split] = part[:n]
    n_found = sum(map(len, parts.values()))
    require(n_found, protocol.n_train, protocol.n_valid, protocol.n_test, "impressions")
    return parts


def _specs(
    logged: pl.LazyFrame, items: pl.DataFrame, names: Iterable[str], max_history: int | None
) -> dict[str, ExampleSpec]:
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    columns = ("impression_id", "user_id", "timestamp", "history", "candidates", "clicked")
    chosen = pl.LazyFrame({"impression_id": list(names)})
    rows = logged.join(chosen, on="impression_id", how="semi").select(columns).collect()
    specs = {}
    for name, user_id, timestamp, raw_history, candidates, clicked in rows.iter_rows():
        history, _ = newest([known[i] for i in raw_history or () if i in known], max_history)
        # A candidate that was shown twice is one candidate, clicked if it was clicked once.
        clicks: dict[str, bool] = {}
        for item_id, was_clicked in zip(candidates, clicked, strict=True):
            if item_id in known:
                clicks[known[item_id]] = clicks.get(item_id, False) or was_clicked
        positives = tuple(item_id for item_id, was_clicked in clicks.items() if was_clicked)
        shown = tuple(item_id for item_id, was_clicked in clicks.items() if not was_clicked)
        specs[name] = ExampleSpec(name, user_id, history, positives, shown, timestamp=timestamp)
    return specs
