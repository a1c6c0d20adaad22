"""From calls and tokens to hours, machines and money."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

TRAINING_WEIGHT = 3
"""A token learnt from costs as much as three read: the backward pass is twice the forward pass
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage asks of a model.

    Attributes:
        stage: Its name.
        calls: Prompts.
        read: Tokens read.
        written: Tokens written, at most.
        calls_exact: Whether `calls` is exactly what a run will make.
        read_exact: Prompts whose tokens are exact; the others are bounded from above.
        weight: Tokens are charged so many times.
    """

    stage: str
    calls: int
    read: int
    written: int = 0
    calls_exact: bool = True
    read_exact: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does and costs.

    Attributes:
        tokens_per_second: Tokens that one machine reads and writes in a second, all its prompts together.
        price_per_million: Money for a million of them.
        within: Hours in which all shall be done, which says how many machines it takes.
    """

    tokens_per_second: float | None = None
    price_per_million: float | None = None
    within: float = 24.0


def price(work: Sequence[Work], rates: Rates) -> list[dict[str, Any]]:
    """Return one row a stage with hours (of one machine), machines and money, and one for all of them.

    What cannot be said for want of a rate is None. `machines` are those it takes to be done with that row
    within the hours allowed; stages follow each other, so the last row says how many do for all.
    """
    rows = [_priced(stage, rates) for stage in work]
    total = {"stage": "all", "calls": sum(row["calls"] for row in rows)}
    for name in ("read", "written", "hours", "money"):
        values = [row[name] for row in rows]
        total[name] = None if None in values else sum(values)
    for row in [*rows, total]:
        row["machines"] = None if row["hours"] is None else math.ceil(row["hours"] / rates.within)
    return [*rows, total]


def _priced(work: Work, rates: Rates) -> dict[str, Any]:
    charged = (work.read + work.written) * work.weight
    speed, money = rates.tokens_per_second, rates.price_per_million
    return {
        **asdict(work),
        "hours": None if speed is None else charged / speed / 3600,
        "money": None if money is None else charged / 1e6 * money,
    }
