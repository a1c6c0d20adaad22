"""The `sampled` protocol: one example per user, the last item as target, users split by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.data.dataset import Dataset
from trsr.splitting.example_specs import (
    ExampleSpec,
    Plan,
    by_seed,
    make_samplers,
    newest,
    readable_events,
    readable_items,
    require,
    text_counts,
)
from trsr.splitting.negatives import NegativesConfig, SplitName

_PAPER_NEGATIVES = NegativesConfig(kind="uniform", n_train=1, n_test=20)


class SampledProtocol(BaseModel):
    """The paper's protocol: one example per user, with the last item as target; users are split by seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sampled"] = "sampled"
    """Always `sampled`."""
    min_history: int = Field(default=10, ge=1)
    """Fewest items before the target; users with fewer are left out."""
    max_history: int = Field(default=25, ge=1)
    """Most items before the target; users with more are left out, unless `truncate`."""
    truncate: bool = False
    """Keep users with longer histories, with their newest `max_history` items."""
    n_train: int | None = Field(default=None, ge=1)
    """Training users; None for all that validation and test leave."""
    train_targets: int = Field(default=1, ge=1)
    """Targets of a training user: the last N items, all chosen, and the history ends before the first of
    them. Several targets share one prefix (as in PinnerFormer's training on a window of actions, KDD
    2022); validation and test have one. An item that occurs twice is one target."""
    n_valid: int = Field(default=100, ge=0)
    """Validation users."""
    n_test: int = Field(default=200, ge=1)
    """Test users."""
    negatives: NegativesConfig = NegativesConfig()
    """How the other candidates are drawn."""
    paper_exact: bool = False
    """The draw of the paper's released code, for comparison only: the target is always candidate 0, no
    shuffle, 1 negative in training and 20 at test, which may equal the target or history items."""

    @model_validator(mode="before")
    @classmethod
    def _paper_negatives(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("paper_exact") and values.get("negatives") is None:
            return {**values, "negatives": _PAPER_NEGATIVES}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> SampledProtocol:
        if self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        if self.train_targets > self.min_history:
            raise ValueError(
                f"train_targets {self.train_targets} leaves users with a history of min_history"
                f" {self.min_history} without one; at most {self.min_history} fit"
            )
        if self.paper_exact and self.train_targets > 1:
            raise ValueError("paper_exact has one target per user; leave `train_targets` out")
        if self.paper_exact and self.negatives != _PAPER_NEGATIVES:
            raise ValueError("paper_exact fixes the negatives (uniform, 1 and 20); leave `negatives` out")
        return self


def plan_sampled(dataset: Dataset, protocol: SampledProtocol, seed: int) -> Plan:
    """Choose the users of each split, and their targets.

    Raises:
        DataError: too few users have a history of the right length.
    """
    items = readable_items(dataset)
    events = readable_events(dataset, items)
    lengths = events.group_by("user_id").agg(n=pl.len() - 1).collect()
    long_enough = lengths.filter(pl.col("n") >= protocol.min_history)
    eligible = long_enough
    if not protocol.truncate:
        eligible = long_enough.filter(pl.col("n") <= protocol.max_history)
    require(len(eligible), protocol.n_train, protocol.n_valid, protocol.n_test, "users")
    users = by_seed(eligible["user_id"].to_list(), seed)
    held = protocol.n_test + protocol.n_valid
    parts: dict[SplitName, list[str]] = {  # a larger `n_train` never changes what is held out
        "train": users[held:][: protocol.n_train],
        "valid": users[protocol.n_test : held],
        "test": users[: protocol.n_test],
    }
    n_targets = dict.fromkeys(users[:held], 1) | dict.fromkeys(parts["train"], protocol.train_targets)
    found = _specs(events, items, n_targets, protocol.max_history)
    specs = {split: [found[user] for user in part] for split, part in parts.items()}

    popularity = None
    if protocol.negatives.kind == "popularity":
        popularity = _popularity(events, [found[user].positives[0] for user in users[:held]])
    n_users = dataset.events().select(pl.col("user_id").n_unique()).collect().item()
    last = "" if protocol.train_targets == 1 else f" (in training the last {protocol.train_targets})"
    return Plan(
        specs,
        protocol.negatives.by_split(),
        make_samplers(dataset, items, protocol.negatives, popularity, specs),
        paper_exact=protocol.paper_exact,
        counts={
            **text_counts(dataset, items),
            "users": n_users,
            "users_eligible": len(eligible),
            "users_too_short": n_users - len(long_enough),
            "users_too_long": len(long_enough) - len(eligible),
            "users_truncated": sum(bool(spec.also_seen) for spec in found.values()),
            "users_not_drawn": len(eligible) - len(found),
        },
        description={"split": "users by seed", "target": f"each user's last item{last}"},
        warnings=(_time_warning(dataset),),
    )


def _specs(
    events: pl.LazyFrame, items: pl.DataFrame, n_targets: Mapping[str, int], max_history: int
) -> dict[str, ExampleSpec]:
    """Make the example of each user in `n_targets`, which gives the number of last items that are targets."""
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    rows = (
        events.join(pl.LazyFrame({"user_id": list(n_targets)}), on="user_id", how="semi")
        .sort("user_id", "position")
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp")
        .collect()
    )
    specs = {}
    for user_id, item_ids, timestamps in rows.iter_rows():
        # One string object per item, not one per event: at a million users this is most of the memory.
        seen = [known[item_id] for item_id in item_ids]
        n = n_targets[user_id]
        history, cut = newest(seen[:-n], max_history)
        targets = tuple(dict.fromkeys(seen[-n:]))
        specs[user_id] = ExampleSpec(
            user_id, user_id, history, targets, also_seen=cut, timestamp=timestamps[-n]
        )
    return specs


def _time_warning(dataset: Dataset) -> str:
    untimed = dataset.events().select(pl.col("timestamp").is_null().mean()).collect().item()
    if untimed == 0:
        return (
            "Leakage warning: users are split and not time, so training may see what happened after test "
            "targets; the events carry times, which the temporal protocol respects."
        )
    if untimed == 1:
        return (
            "Leakage warning: the events carry no times, so users are split and not time; training users' "
            "events may have happened after test users' targets."
        )
    return (
        f"Leakage warning: {untimed:.1%} of the events carry no time, and the histories of their users are "
        "in the order of the raw file; users are split and not time, so training may see what happened after "
        "test targets."
    )


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
