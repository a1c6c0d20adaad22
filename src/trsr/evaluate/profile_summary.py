"""From the measures of every profile to the entry `profiles` of `metrics.json`: means and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trsr.evaluate.aggregate import rounded
from trsr.evaluate.metrics import Floats
from trsr.evaluate.profile_quality import ProfileQuality
from trsr.evaluate.significance import bootstrap_columns
from trsr.seeding import derive_rng

MEASURES = ("grounding", "name_grounding", "copied", "coverage", "words", "repetition", "change")
N_WORST = 20
AT_LEAST = {"grounding": 0.5, "name_grounding": 0.5}
"""A profile with less of it is listed: more than half of what it says is not in the user's items."""
AT_MOST = {"copied": 0.2, "repetition": 0.2}
"""A profile with more of it is listed."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The profile of one example with its measures."""

    example_id: str
    user_id: str
    text: str
    quality: ProfileQuality


def summarise_profiles(
    rows: Sequence[ProfileRow], prediction: Mapping[str, Floats], *, method: str, seed: int = 0
) -> dict[str, Any]:
    """Compute the entry `profiles` of `metrics.json`.

    Args:
        rows: One an example.
        prediction: Measures of prediction by name, shape (n_examples,) in the order of the rows.
        method: How the profiles were made.
        seed: The run's seed, for the bootstrap.

    Returns:
        `method`, `examples`, `empty` (profiles without text), `measures` (`value`, the mean over the examples
        that have it, `ci95` from resampling users, and `examples`, how many they are; a measure that none has
        is left out), `limits`, `beyond` (how many profiles lie beyond each limit) and `worst`: at most
        `N_WORST` profiles with the measure that lies farthest beyond its limit.
    """
    names = [*MEASURES, *prediction]
    table = np.asarray([[getattr(row.quality, name) for name in MEASURES] for row in rows], dtype=np.float64)
    table = np.column_stack([table.reshape(len(rows), len(MEASURES)), *prediction.values()])
    intervals = bootstrap_columns(table, [row.user_id for row in rows], rng=derive_rng(seed, "profiles"))
    beyond = [(distance, name, row) for row in rows for name, distance in _beyond(row).items()]
    return {
        "method": method,
        "examples": len(rows),
        "empty": sum(not row.text.strip() for row in rows),
        "measures": {
            name: {
                "value": rounded(interval.value),
                "ci95": [rounded(interval.low), rounded(interval.high)],
                "examples": interval.n_examples,
            }
            for name, interval in zip(names, intervals, strict=True)
            if interval.n_examples
        },
        "limits": {"at_least": AT_LEAST, "at_most": AT_MOST},
        "beyond": {name: sum(entry[1] == name for entry in beyond) for name in [*AT_LEAST, *AT_MOST]},
        "worst": _worst(beyond),
    }


def _beyond(row: ProfileRow) -> dict[str, float]:
    """Return how far beyond its limit each measure lies, as a share of the way to the worst value."""
    found = {}
    for name, limit in AT_LEAST.items():
        value = getattr(row.quality, name)
        if value < limit:  # never for NaN
            found[name] = (limit - value) / limit
    for name, limit in AT_MOST.items():
        value = getattr(row.quality, name)
        if value > limit:
            found[name] = (value - limit) / (1 - limit)
    return found


def _worst(beyond: Sequence[tuple[float, str, ProfileRow]]) -> list[dict[str, Any]]:
    """Return the profiles that lie farthest beyond a limit, each once; of equal ones the wordiest first."""

    def order(entry: tuple[float, str, ProfileRow]) -> tuple[float, int, str, str]:
        distance, name, row = entry
        return -distance, -len(row.quality.ungrounded), row.example_id, name

    chosen: dict[str, tuple[str, ProfileRow]] = {}
    for _, name, row in sorted(beyond, key=order):
        chosen.setdefault(row.example_id, (name, row))
    return [
        {
            "example_id": example_id,
            "user_id": row.user_id,
            "measure": name,
            "value": rounded(getattr(row.quality, name)),
            "ungrounded": list(row.quality.ungrounded),
            "text": row.text,
        }
        for example_id, (name, row) in list(chosen.items())[:N_WORST]
    ]
