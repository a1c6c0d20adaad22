"""The `sampled` protocol: one question a user, the last item as target, users split by seed.

Training users can be asked for several of their last items at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from trsr.data.dataset import Dataset
from trsr.splitting.protocols import SampledProtocol
from trsr.splitting.questions import (
    SPLITS,
    Plan,
    Question,
    by_seed,
    divide,
    make_samplers,
    negatives_by_split,
    newest,
    readable_events,
    readable_items,
    text_counts,
)

_NO_TIMES = (
    "Leakage warning: the events carry no times, so users are split and not time; training users' events may "
    "have happened after test users' targets."
)
_SOME_TIMES = (
    "Leakage warning: {share:.1%} of the events carry no time, and the histories of their users are in the "
    "order of the raw file; users are split and not time, so training may see what happened after test "
    "targets."
)
_TIMES_UNUSED = (
    "Leakage warning: users are split and not time, so training may see what happened after test targets; "
    "the events carry times, which the temporal protocol respects."
)


def plan_sampled(dataset: Dataset, protocol: SampledProtocol, seed: int) -> Plan:
    """Make the questions of the `sampled` protocol.

    Raises:
        DataError: fewer users than asked for have a history of the right length.
    """
    items = readable_items(dataset)
    events = readable_events(dataset, items)
    lengths = events.group_by("user_id").agg(n=pl.len() - 1).collect()
    long_enough = lengths.filter(pl.col("n") >= protocol.min_history)
    eligible = long_enough
    if not protocol.truncate:
        eligible = long_enough.filter(pl.col("n") <= protocol.max_history)
    users = by_seed(eligible["user_id"].to_list(), seed)
    parts = divide(users, protocol.n_train, protocol.n_valid, protocol.n_test, "users")
    n_targets = {
        u: protocol.train_targets if split == "train" else 1 for split in SPLITS for u in parts[split]
    }
    found = _questions(events, items, n_targets, protocol.max_history)
    questions = {split: [found[u] for u in parts[split]] for split in SPLITS}

    popularity = None
    if protocol.negatives.kind == "popularity":
        held_out = [q.positives[0] for split in ("valid", "test") for q in questions[split]]
        popularity = _popularity(events, held_out)
    n_users = dataset.events().select(pl.col("user_id").n_unique()).collect().item()
    untimed = dataset.events().select(pl.col("timestamp").is_null().mean()).collect().item()
    return Plan(
        questions,
        make_samplers(dataset, items, protocol.negatives, popularity, questions),
        negatives_by_split(protocol.negatives),
        paper_exact=protocol.paper_exact,
        counts={
            **text_counts(dataset, items),
            "users": n_users,
            "users_eligible": len(eligible),
            "users_too_short": n_users - len(long_enough),
            "users_too_long": len(long_enough) - len(eligible),
            "users_truncated": sum(bool(q.also_met) for split in SPLITS for q in questions[split]),
            "users_not_drawn": len(eligible) - sum(map(len, parts.values())),
        },
        description={"split": "users by seed", "target": _target_in_words(protocol)},
        warnings=(_time_warning(untimed),),
    )


def _questions(
    events: pl.LazyFrame, items: pl.DataFrame, n_targets: Mapping[str, int], max_history: int
) -> dict[str, Question]:
    """Make the question of each user in `n_targets`, which says how many last items are asked for."""
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    rows = (
        events.join(pl.LazyFrame({"user_id": list(n_targets)}), on="user_id", how="semi")
        .sort("user_id", "position")
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp")
        .collect()
    )
    questions = {}
    for user_id, item_ids, timestamps in rows.iter_rows():
        # One string object an item, not one an event: at a million users this is most of the memory.
        met = [known[item_id] for item_id in item_ids]
        n = n_targets[user_id]
        history, cut = newest(met[:-n], max_history)
        targets = tuple(dict.fromkeys(met[-n:]))
        questions[user_id] = Question(
            user_id, user_id, history, targets, also_met=cut, timestamp=timestamps[-n]
        )
    return questions


def _time_warning(untimed: float) -> str:
    """Return the warning for this share of events without a time."""
    if untimed == 0:
        return _TIMES_UNUSED
    return _NO_TIMES if untimed == 1 else _SOME_TIMES.format(share=untimed)


def _target_in_words(protocol: SampledProtocol) -> str:
    n = protocol.train_targets
    return "each user's last item" + (f" (in training the last {n})" if n > 1 else "")


def _popularity(events: pl.LazyFrame, held_out: list[str]) -> pl.DataFrame:
    """Count events by item, without the held-out targets."""
    targets = pl.LazyFrame({"item_id": held_out}, schema={"item_id": pl.String}).group_by("item_id").len("m")
    return (
        events.group_by("item_id")
        .len("n")
        .join(targets, on="item_id", how="left")
        .select("item_id", n=pl.col("n").cast(pl.Int64) - pl.col("m").fill_null(0).cast(pl.Int64))
        .collect()
    )
