"""The `impressions` protocol: the candidates that were shown and the clicks on them, as MIND evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.splitting.protocols import ImpressionsProtocol
from trsr.splitting.questions import (
    SPLITS,
    Plan,
    Question,
    Split,
    by_seed,
    newest,
    readable_items,
    require,
    text_counts,
)

_NO_TIMES = (
    "Leakage warning: not every impression has a time ({missing:,} of {n:,} lack it), so users are split and "
    "not time; training clicks may have happened after test impressions."
)


def plan_impressions(dataset: Dataset, protocol: ImpressionsProtocol, seed: int) -> Plan:
    """Choose the impressions of each split and leave out what has no text.

    Raises:
        DataError: the dataset has no impressions, or fewer than asked for can be used.
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
    if usable["timestamp"].null_count() == 0 and len(usable):
        parts, valid_from, test_from = _divide_by_time(usable, protocol, seed)
        description |= {
            "split": "time",
            "valid_from": valid_from.isoformat(),
            "test_from": test_from.isoformat(),
        }
    else:
        parts = _divide_by_user(usable, protocol, seed)
        missing = usable["timestamp"].null_count()
        warnings = (_NO_TIMES.format(missing=missing, n=len(usable)),)
    chosen = [i for split in SPLITS for i in parts[split]]
    found = _questions(logged, items, chosen, protocol.max_history)
    counts |= {"impressions_not_drawn": len(usable) - len(chosen), **text_counts(dataset, items)}
    return Plan(
        {split: [found[i] for i in parts[split]] for split in SPLITS},
        samplers={},
        n_negatives={"train": protocol.n_train_negatives, "valid": None, "test": None},
        counts=counts,
        description=description,
        warnings=warnings,
    )


def _usable(
    logged: pl.LazyFrame, items: pl.DataFrame, min_history: int
) -> tuple[pl.DataFrame, dict[str, int | float]]:
    """Return impression_id, user_id, timestamp of the usable impressions, and what was left out."""
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
            "An impression has not as many clicks as candidates; `trsr validate` says which one: mend it."
        ) from error
    if table["impression_id"].n_unique() != len(table):
        raise DataError("An impression_id stands on several impressions; import the dataset anew.")
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
) -> tuple[dict[Split, list[str]], datetime, datetime]:
    """Test on the newest, validate on those before, train on the rest; equal times are never divided."""
    rest = usable.sort("timestamp", "impression_id")
    parts: dict[Split, list[str]] = {}
    starts: dict[Split, datetime] = {}
    held: tuple[tuple[Split, int], ...] = (("test", protocol.n_test), ("valid", protocol.n_valid))
    for split, n in held:
        if len(rest) < n + 1:
            break
        start = rest["timestamp"][len(rest) - n] if n else starts["test"]
        stretch = rest.filter(pl.col("timestamp") >= start)
        parts[split] = by_seed(stretch["impression_id"].to_list(), seed)[:n]
        starts[split] = start
        rest = rest.filter(pl.col("timestamp") < start)
    n_train = 1 if protocol.n_train is None else protocol.n_train
    if len(parts) < len(held) or len(rest) < n_train:
        raise DataError(
            f"Only {len(usable)} impressions can be used, {len(rest)} of them before what is held out, but "
            f"{n_train} for training, {protocol.n_valid} for validation and {protocol.n_test} for the test "
            "are asked; lower these numbers."
        )
    parts["train"] = by_seed(rest["impression_id"].to_list(), seed)[: protocol.n_train]
    return parts, starts["valid"], starts["test"]


def _divide_by_user(usable: pl.DataFrame, protocol: ImpressionsProtocol, seed: int) -> dict[Split, list[str]]:
    """Give whole users to the test, then to validation, then to training, until each has enough."""
    by_user: dict[str, list[str]] = {}
    for impression_id, user_id in usable.sort("impression_id").select("impression_id", "user_id").iter_rows():
        by_user.setdefault(user_id, []).append(impression_id)
    users = iter(by_seed(by_user, seed))
    parts: dict[Split, list[str]] = {}
    asked: tuple[tuple[Split, int | None], ...] = (
        ("test", protocol.n_test),
        ("valid", protocol.n_valid),
        ("train", protocol.n_train),
    )
    for split, n in asked:
        part: list[str] = []
        while (n is None or len(part) < n) and (user := next(users, None)) is not None:
            part += by_user[user]
        parts[split] = part[:n]
    n_found = sum(map(len, parts.values()))
    require(n_found, protocol.n_train, protocol.n_valid, protocol.n_test, "impressions")
    return parts


def _questions(
    logged: pl.LazyFrame, items: pl.DataFrame, chosen: Sequence[str], max_history: int | None
) -> dict[str, Question]:
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    rows = logged.join(pl.LazyFrame({"impression_id": list(chosen)}), on="impression_id", how="semi")
    columns = ("impression_id", "user_id", "timestamp", "history", "candidates", "clicked")
    questions = {}
    for name, user_id, timestamp, raw_history, candidates, clicked in (
        rows.select(columns).collect().iter_rows()
    ):
        history, _ = newest([known[i] for i in raw_history or () if i in known], max_history)
        # A candidate that was shown twice is one candidate, clicked if it was clicked once.
        click: dict[str, bool] = {}
        for item_id, was_clicked in zip(candidates, clicked, strict=True):
            if item_id in known:
                click[known[item_id]] = click.get(item_id, False) or was_clicked
        positives = tuple(i for i, was_clicked in click.items() if was_clicked)
        shown = tuple(i for i, was_clicked in click.items() if not was_clicked)
        questions[name] = Question(name, user_id, history, positives, shown, timestamp=timestamp)
    return questions
