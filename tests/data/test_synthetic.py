"""The synthetic dataset: natural texts, one dataset per seed, and a lasting taste that predicts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.splitting.impressions import ImpressionsProtocol
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import build_examples
from trsr.splitting.temporal import TemporalProtocol
from trsr.types import RankingExample

SMALL = SyntheticConfig(n_users=300, n_items=600)
DOMAINS = ("products", "news")


@pytest.fixture(scope="module", params=DOMAINS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = SMALL.model_copy(update={"domain": request.param})
    return generate(config, tmp_path_factory.mktemp("synthetic") / "d")


def shelf_of(data: Dataset) -> dict[str, str]:
    names = ("category", "subcategory") if data.info.domain == "news" else ("category",)
    return {i: " / ".join(item.fields[name] for name in names) for i, item in data.catalogue().items()}


def recall_at_3(examples: Sequence[RankingExample], shelf: dict[str, str], n_last: int | None) -> float:
    """Rank by how often the candidate's shelf occurs in the (last) history; ties share ranks."""
    total = 0.0
    for example in examples:
        seen = Counter(shelf[i] for i in (example.history if n_last is None else example.history[-n_last:]))
        scores = np.array([seen[shelf[i]] for i in example.candidates])
        target = scores[example.labels.index(1)]
        better, equal = int((scores > target).sum()), int((scores == target).sum())
        total += min(max(3 - better, 0), equal) / equal
    return total / len(examples)


def test_whole_history_predicts_the_target_better_than_the_last_items(small: Dataset) -> None:
    protocol = SampledProtocol(min_history=7, max_history=29, n_valid=0, n_test=250)
    test = build_examples(small, protocol, seed=0).test
    shelf = shelf_of(small)
    whole, last_3, last_5 = (recall_at_3(test, shelf, n) for n in (None, 3, 5))
    assert whole > last_3 + 0.15
    assert whole > last_5 + 0.15
    assert last_3 > 3 / 21 + 0.05  # the shift is worth knowing too


def test_the_last_items_mostly_come_from_the_shift(small: Dataset) -> None:
    shelf = shelf_of(small)
    shared = []
    for history in small.histories():
        early = {shelf[i] for i in history.item_ids[:-6]}
        shared += [shelf[i] in early for i in history.item_ids[-6:-1]]
    assert np.mean(shared) < 0.4


def test_texts_read_naturally(small: Dataset) -> None:
    texts = set()
    for item in small.catalogue().values():
        assert list(item.fields) == small.info.text_fields
        prose = item.fields["description" if small.info.domain == "products" else "abstract"]
        for text in item.fields.values():
            assert not re.search(r"[{}]|  |None| ,| \.|\.\.", text)
            assert text == text.strip()
            assert item.item_id not in text
        assert not re.search(r"\b[Aa] (?!one)[aeio]|\b[Aa]n [^aeiouAEIOUh]", prose), prose
        assert all(re.fullmatch(r"[A-Z].*\.", line) for line in re.split(r"(?<=\.) ", prose)), prose
        assert 60 < len(prose) < 300
        assert item.fields["title"][0].isupper()
        texts.add(tuple(item.fields.values()))
    assert len(texts) > 0.95 * len(small.catalogue())


def test_one_seed_gives_one_dataset(small: Dataset, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"domain": small.info.domain})
    assert generate(config, tmp_path / "again").info == small.info
    other = generate(config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not set(other.catalogue()) & set(small.catalogue())


def test_more_users_or_items_leave_the_earlier_ones_unchanged(tmp_path: Path) -> None:
    few = generate(SMALL, tmp_path / "few")
    many = generate(SMALL.model_copy(update={"n_users": 2100}), tmp_path / "many")
    assert many.info.counts["users"] == many.info.counts["impressions"] == 2100
    users = few.events().select(pl.col("user_id").unique()).collect()["user_id"]
    kept = pl.col("user_id").is_in(users.to_list())
    assert few.events().collect().equals(many.events().filter(kept).collect())
    wide = generate(SMALL.model_copy(update={"n_items": 2500}), tmp_path / "wide")
    assert few.items().collect().equals(wide.items().head(600).collect())


def test_histories_have_the_requested_size_and_rise_in_time_without_repeats(small: Dataset) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    lengths = []
    for history in small.histories():
        assert history.timestamps is not None
        assert all(a < b for a, b in zip(history.timestamps, history.timestamps[1:], strict=False))
        assert start <= history.timestamps[0]
        assert history.timestamps[-1] <= start + timedelta(days=60)
        assert len(set(history.item_ids)) == len(history)
        lengths.append(len(history))
    assert (min(lengths), max(lengths)) == (8, 30)
    assert np.mean(lengths) == pytest.approx(17, abs=1.5)


def test_each_impression_shows_the_final_item_among_new_ones(small: Dataset) -> None:
    impressions = small.impressions()
    assert impressions is not None
    rows = impressions.collect().to_dicts()
    histories = list(small.histories())
    places = []
    for row, history in zip(rows, histories, strict=True):
        assert history.timestamps is not None
        assert (row["user_id"], row["timestamp"]) == (history.user_id, history.timestamps[-1])
        assert tuple(row["history"]) == history.item_ids[:-1]
        assert len(row["candidates"]) == len(set(row["candidates"])) == 20
        clicked = [i for i, c in zip(row["candidates"], row["clicked"], strict=True) if c]
        assert clicked == [history.item_ids[-1]]
        assert set(row["candidates"]) & set(history.item_ids) == {history.item_ids[-1]}
        places.append(row["clicked"].index(True))
    assert len(set(places)) == 20


def test_every_protocol_can_use_it(small: Dataset) -> None:
    for protocol in (
        SampledProtocol(n_valid=20, n_test=30),
        TemporalProtocol(kind="temporal", min_history=3),
        ImpressionsProtocol(kind="impressions", n_valid=20, n_test=30),
    ):
        splits = build_examples(small, protocol, seed=0)
        assert len(splits.train) > 50
        assert len(splits.test) >= 30


def test_some_items_are_more_popular_than_others(small: Dataset) -> None:
    counts = small.events().group_by("item_id").len().collect()["len"]
    mean = counts.sum() / 600
    assert counts.max() > 2 * mean  # type: ignore[operator]


def test_a_dataset_without_impressions_has_no_impressions_file(tmp_path: Path) -> None:
    data = generate(SMALL.model_copy(update={"n_impression_candidates": 0}), tmp_path / "d")
    assert data.impressions() is None


def test_a_config_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="mean_history"):
        SyntheticConfig(mean_history=40)
    with pytest.raises(ValidationError, match="n_items"):
        SyntheticConfig(n_items=200, max_history=100, mean_history=50)
    with pytest.raises(ValidationError):
        SyntheticConfig.model_validate({"n_user": 5})
