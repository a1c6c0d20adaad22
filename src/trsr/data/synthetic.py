"""A synthetic text-rich dataset, in which the long-term taste matters beyond the last few items.

Every item is in a cell: a subtopic of a topic, and a maker (a brand or a paper). Every user has

- a lasting taste: three subtopics of different topics with weights 0.5, 0.3, 0.2, a favourite maker in each;
- a recent shift: one subtopic of a fourth topic, which fills most of the last `shift_length` events before
  the final one;
- a final event that comes from the lasting taste with probability `target_from_taste`, else from the shift.

A model of the last few items alone sees the shift, and misses the taste behind most final events. Each user
also sees one impression: the final item among others, at its time.

Users and items are drawn in whole chunks: item 7 and user 7 are the same for any number of them. The
words are in `synthetic_products.yaml` and `synthetic_news.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.data.dataset import Dataset
from trsr.data.schema import EVENTS, IMPRESSIONS
from trsr.data.writer import DatasetWriter
from trsr.seeding import derive_rng, derive_seed

START = 1_767_225_600_000_000  # 2026-01-01, in microseconds since 1970
TASTE_WEIGHTS = (0.5, 0.3, 0.2)
_CHUNK = 2048
_DRAWS = 20
_DRAWS_BY_INTEREST = 4
_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class SyntheticConfig(BaseModel):
    """Size and character of a synthetic dataset; the same seed gives the same dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["synthetic"] = "synthetic"
    domain: Literal["products", "news"] = "products"  # which words the items are made of
    n_users: int = Field(default=1000, ge=1)  # each has one history and one impression
    n_items: int = Field(default=2000, ge=200)  # at least one item for each of the 192 cells
    mean_history: float = Field(
        default=18.0, gt=0
    )  # about how many events a user has, the final one included
    min_history: int = Field(default=8, ge=2)
    max_history: int = Field(default=30, ge=2)
    shift_length: int = Field(default=5, ge=0)  # events before the final one that belong to the recent shift
    shift_strength: float = Field(default=0.85, ge=0, le=1)  # probability that one of those comes from it
    target_from_taste: float = Field(
        default=0.65, ge=0, le=1
    )  # ... that the final event comes from the taste
    noise: float = Field(default=0.1, ge=0, le=1)  # ... that an event comes from anywhere
    maker_loyalty: float = Field(default=0.5, ge=0, le=1)  # ... that it is of the subtopic's favourite maker
    popularity_skew: float = Field(default=2.0, ge=1)  # 1: items of a cell are equally liked
    n_impression_candidates: int = Field(
        default=20, ge=0
    )  # the clicked one included; below 2: no impressions
    days: int = Field(default=60, ge=1)  # length of the time in which everything happens, from 2026-01-01
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> SyntheticConfig:
        if not self.min_history <= self.mean_history <= self.max_history:
            raise ValueError(
                f"mean_history {self.mean_history} must lie between min_history {self.min_history} and "
                f"max_history {self.max_history}"
            )
        if self.n_items < 4 * (self.max_history + self.n_impression_candidates):
            raise ValueError(
                f"n_items {self.n_items} is too small for histories of {self.max_history} and impressions of "
                f"{self.n_impression_candidates}; at least four times their sum is needed"
            )
        return self


def generate(config: SyntheticConfig, out: str | Path, *, overwrite: bool = False) -> Dataset:
    """Write a synthetic dataset folder at `out`.

    Raises:
        DataError: the folder exists and is not empty.
        OutputError: the folder cannot be written.
    """
    shelves = _Shelves(config)
    with DatasetWriter(out, overwrite=overwrite) as writer:
        item_ids = [_write_items(writer, shelves, first) for first in range(0, config.n_items, _CHUNK)]
        ids = pl.concat(item_ids)
        for first in range(0, config.n_users, _CHUNK):
            _write_users(writer, config, shelves, ids, first)
        folder = writer.finish(
            name=f"synthetic-{config.domain}",
            domain=config.domain,
            text_fields=list(shelves.texts),
            category_fields=shelves.category_fields,
            source=f"trsr synthetic generator, seed {config.seed}",
        )
    return Dataset.open(folder)


class _Shelves:
    """Which item is in which cell, and its texts: item i is in cell `order[i % n_cells]`."""

    def __init__(self, config: SyntheticConfig) -> None:
        file = Path(__file__).with_name(f"synthetic_{config.domain}.yaml")
        vocabulary: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        self.config = config
        self.texts: dict[str, str] = vocabulary["texts"]
        self.category_fields: list[str] = vocabulary["category_fields"]
        self.picks: list[list[str]] = vocabulary["picks"]
        capitals = [name for names in self.picks for name in names if name[0].isupper()]
        self.words: list[dict[str, list[str]]] = []  # by subtopic
        for topic, content in vocabulary["topics"].items():
            for subtopic, words in content.pop("subtopics").items():
                lists = vocabulary["words"] | content | words | {"topic": [topic], "subtopic": [subtopic]}
                self.words.append(lists | {name: _capitals(lists[name.lower()]) for name in capitals})
        self.n_topics = len(vocabulary["topics"])
        self.per_topic = len(self.words) // self.n_topics
        self.n_makers = len(self.words[0]["maker"])
        self.n_cells = len(self.words) * self.n_makers
        self.order = derive_rng(config.seed, "cells").permutation(self.n_cells)
        self.first_of_cell = np.argsort(self.order)

    def describe(self, index: int, picks: Sequence[int]) -> tuple[str, ...]:
        """Return the texts of item number `index`; `picks` are random numbers that choose the words."""
        subtopic, maker = divmod(int(self.order[index % self.n_cells]), self.n_makers)
        lists = self.words[subtopic]
        chosen = {
            "topic": lists["topic"][0],
            "subtopic": lists["subtopic"][0],
            "maker": lists["maker"][maker],
        }
        for names, pick in zip(self.picks, picks, strict=True):
            for name in names:
                chosen[name] = lists[name][pick % len(lists[name])]
        return tuple(_filled(text, chosen) for text in self.texts.values())

    def pick(self, subtopics: _Ints, makers: _Ints, points: _Floats) -> _Ints:
        """Return an item number for each subtopic and maker; `points` in [0, 1) choose within the cell."""
        first = self.first_of_cell[subtopics * self.n_makers + makers]
        sizes = (self.config.n_items - first + self.n_cells - 1) // self.n_cells
        places = np.floor(sizes * points**self.config.popularity_skew).astype(np.int64)
        return np.asarray(first + places * self.n_cells)


def _capitals(phrases: list[str]) -> list[str]:
    return [" ".join(word[0].upper() + word[1:] for word in phrase.split()) for phrase in phrases]


def _filled(text: str, words: dict[str, str]) -> str:
    while "{" in text:  # a chosen line can hold words itself
        text = text.format_map(words)
    return " ".join(text.split())  # an empty line leaves two blanks


def _write_items(writer: DatasetWriter, shelves: _Shelves, first: int) -> pl.Series:
    config = shelves.config
    size = (_CHUNK, len(shelves.picks))
    picks = derive_rng(config.seed, "items", first).integers(1 << 30, size=size).tolist()
    rows = []
    for index in range(first, min(first + _CHUNK, config.n_items)):
        # 64 bits: two equal ids are unlikely even among a million items.
        item_id = f"{derive_seed(config.seed, 'item', index):016x}"
        rows.append((item_id, *shelves.describe(index, picks[index - first])))
    schema = dict.fromkeys(("item_id", *shelves.texts), pl.String)
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    writer.items.append(frame)
    return frame["item_id"]


def _write_users(
    writer: DatasetWriter, config: SyntheticConfig, shelves: _Shelves, item_ids: pl.Series, first: int
) -> None:
    rng = derive_rng(config.seed, "users", first)
    n_users = min(_CHUNK, config.n_users - first)
    items, lengths = _draw_events(rng, config, shelves)
    times = _draw_times(rng, config, lengths)
    shown = _draw_shown(rng, config, shelves, items)
    users = pl.Series("user_id", [f"u{i:08d}" for i in range(first, first + n_users)])

    # Columns count back from the final event; rows of the table go from the oldest event to the final one.
    backward = np.arange(config.max_history)[::-1]
    real = backward[None, :] < lengths[:n_users, None]
    row, column = np.nonzero(real)
    flat = items[:n_users, ::-1][row, column]
    events = pl.DataFrame(
        {
            "user_id": users.gather(row),
            "item_id": item_ids.gather(flat),
            "position": lengths[row] - 1 - backward[column],
            "timestamp": START + times[:n_users, ::-1][row, column],
        },
        schema=EVENTS,
    )
    writer.events.append(events)
    if config.n_impression_candidates >= 2:
        writer.impressions.append(_impressions(events, users, item_ids, shown[:n_users], items[:n_users, 0]))


def _draw_events(rng: np.random.Generator, config: SyntheticConfig, shelves: _Shelves) -> tuple[_Ints, _Ints]:
    """Draw the items of a chunk of users, shape (_CHUNK, max_history), and the lengths, shape (_CHUNK,).

    Column 0 is the final event, column 1 the one before it, and so on.
    """
    n_tastes = len(TASTE_WEIGHTS)
    # Four different topics per user: three for the lasting taste, the fourth for the shift.
    topics = rng.random((_CHUNK, shelves.n_topics)).argsort(axis=1)[:, : n_tastes + 1]
    interests = topics * shelves.per_topic + rng.integers(shelves.per_topic, size=topics.shape)
    favourites = rng.integers(shelves.n_makers, size=interests.shape)
    spread = rng.exponential(max(config.mean_history - config.min_history, 1e-9), size=_CHUNK)
    lengths = np.minimum(config.min_history + np.round(spread), config.max_history).astype(np.int64)

    from_shift = np.zeros(config.max_history)
    from_shift[1 : config.shift_length + 1] = config.shift_strength
    from_shift[0] = 1 - config.target_from_taste
    items = np.zeros((_CHUNK, config.max_history), dtype=np.int64)
    repeated = np.ones(items.shape, dtype=bool)
    for attempt in range(_DRAWS):
        which = np.searchsorted(np.cumsum(TASTE_WEIGHTS)[:-1], rng.random(items.shape), side="right")
        which = np.where(rng.random(items.shape) < from_shift, n_tastes, which)
        subtopics = np.take_along_axis(interests, which, axis=1)
        makers = np.take_along_axis(favourites, which, axis=1)
        other = rng.integers(shelves.n_makers, size=items.shape)
        makers = np.where(rng.random(items.shape) < config.maker_loyalty, makers, other)
        # Small cells run out of new items; later draws look anywhere.
        anywhere = rng.random(items.shape) < (config.noise if attempt < _DRAWS_BY_INTEREST else 1.0)
        subtopics = np.where(anywhere, rng.integers(len(shelves.words), size=items.shape), subtopics)
        makers = np.where(anywhere, other, makers)
        drawn = shelves.pick(subtopics, makers, rng.random(items.shape))
        items = np.where(repeated, drawn, items)
        repeated = _repeated(items)
        if not repeated.any():
            break
    return items, lengths


def _repeated(items: _Ints) -> npt.NDArray[np.bool_]:
    """Mark the items that are in their row further left already."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    marks = np.zeros(items.shape, dtype=bool)
    np.put_along_axis(marks, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return marks


def _draw_times(rng: np.random.Generator, config: SyntheticConfig, lengths: _Ints) -> _Ints:
    """Draw microseconds since `START`, shape (_CHUNK, max_history), falling from left to right.

    A user's final event lies in the later two thirds, the first at most a third of the whole time before it.
    """
    whole = config.days * 86_400_000_000
    final = whole * rng.uniform(1 / 3, 1, size=(_CHUNK, 1))
    span = whole * rng.uniform(0.1, 1 / 3, size=(_CHUNK, 1))
    gaps = 0.05 + rng.exponential(size=(_CHUNK, config.max_history))
    gaps[:, 0] = 0
    since = np.cumsum(gaps, axis=1)
    oldest = np.take_along_axis(since, lengths[:, None] - 1, axis=1)
    return np.asarray(final - span * since / oldest).astype(np.int64)


def _draw_shown(rng: np.random.Generator, config: SyntheticConfig, shelves: _Shelves, items: _Ints) -> _Ints:
    """Draw the items of each user's impression in random order, shape (_CHUNK, n); -1 for a missing one.

    Besides the final item they come from anywhere, popular ones more often, and never from the history.
    """
    n = max(config.n_impression_candidates - 1, 0)
    size = (_CHUNK, 3 * n)
    others = shelves.pick(
        rng.integers(len(shelves.words), size=size),
        rng.integers(shelves.n_makers, size=size),
        rng.random(size),
    )
    known = _repeated(np.hstack([items, others]))[:, items.shape[1] :]
    keep = np.argsort(known, axis=1, kind="stable")[:, :n]
    new = np.where(np.take_along_axis(known, keep, axis=1), -1, np.take_along_axis(others, keep, axis=1))
    return rng.permuted(np.hstack([items[:, :1], new]), axis=1)


def _impressions(
    events: pl.DataFrame, users: pl.Series, item_ids: pl.Series, shown: _Ints, targets: _Ints
) -> pl.DataFrame:
    history = events.group_by("user_id", maintain_order=True).agg(
        pl.col("timestamp").last(), history=pl.col("item_id").slice(0, pl.len() - 1)
    )
    row, column = np.nonzero(shown >= 0)
    candidates = shown[row, column]
    lists = pl.DataFrame(
        {
            "user_id": users.gather(row),
            "candidates": item_ids.gather(candidates),
            "clicked": candidates == targets[row],
        }
    )
    return (
        history.join(
            lists.group_by("user_id", maintain_order=True).agg("candidates", "clicked"),
            on="user_id",
            maintain_order="left",
        )
        .with_columns(impression_id="m" + pl.col("user_id").str.slice(1))
        .select(IMPRESSIONS.names())
    )
