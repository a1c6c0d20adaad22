"""The paper's protocol on real data sets gives the known numbers of users (skipped where the data is not)."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from trsr.data.dataset import Dataset, write_dataset
from trsr.data.mind import MindImport
from trsr.splitting.impressions import ImpressionsProtocol
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import build_examples

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("TRSR_REAL_DATA")
    if not folder:
        pytest.skip("TRSR_REAL_DATA names no folder with the real data sets")
    return Path(folder)


def from_lists(out: Path, items: pl.DataFrame, sequences: Path, category_fields: list[str]) -> Dataset:
    lists = pl.read_ndjson(sequences).select("user_id", "items")
    events = lists.with_columns(position=pl.int_ranges(pl.col("items").list.len())).explode(
        "items", "position"
    )
    return write_dataset(
        out,
        name="real",
        domain="products",
        text_fields=[name for name in items.columns if name != "item_id"],
        category_fields=category_fields,
        items=items,
        events=events.rename({"items": "item_id"}).with_columns(timestamp=None),
        source="TRSR_REAL_DATA",
    )


@pytest.mark.parametrize("kind", ["uniform", "popularity", "same-category", "targets"])
def test_amazon_office_has_1281_users_of_the_papers_length(
    real_data: Path, tmp_path: Path, kind: str
) -> None:
    folder = real_data / "amazon_office"
    data = from_lists(
        tmp_path / "d", pl.read_ndjson(folder / "items.jsonl"), folder / "sequences.jsonl", ["categories"]
    )
    protocol = SampledProtocol.model_validate({"negatives": {"kind": kind}})
    splits = build_examples(data, protocol, seed=0)
    assert splits.counts["users_eligible"] == 1281
    assert splits.counts["users"] == 4905
    assert len(splits.train) == 1281 - 300
    fitted = splits.training_events
    assert 53_258 - 26 * 300 < len(fitted) <= 53_258 - 300
    assert len(splits.resample(1)[0].candidates) == 5


def test_mind_click_histories_have_1418_users_of_the_papers_length(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "mind_small"
    names = ["item_id", "category", "subcategory", "title", "abstract", "url", "entities", "more_entities"]
    raw = pl.read_csv(
        folder / "news.tsv", separator="\t", has_header=False, quote_char=None, new_columns=names
    )
    news = raw.select(names[:4])
    data = from_lists(
        tmp_path / "d", news, folder / "click_histories_with_text.jsonl", ["category", "subcategory"]
    )
    splits = build_examples(data, SampledProtocol(), seed=0)
    assert splits.counts["users_eligible"] == 1418
    assert splits.counts["users"] == 4492
    assert splits.counts["events"] == 86_565


def test_mind_impressions_leave_out_items_without_text(real_data: Path, tmp_path: Path) -> None:
    data = Dataset.open(MindImport(source=real_data / "mind_small").run(tmp_path / "d"))
    protocol = ImpressionsProtocol(kind="impressions", n_valid=50, n_test=100)
    splits = build_examples(data, protocol, seed=0)
    assert splits.counts["impressions"] == 5000
    assert splits.counts["missing_text_rate_history"] == pytest.approx(0.38, abs=0.01)
    assert splits.counts["missing_text_rate_candidates"] == pytest.approx(0.81, abs=0.01)
    catalogue = data.catalogue()
    for example in [*splits.train, *splits.valid, *splits.test]:
        assert {0, 1} == set(example.labels)
        assert all(catalogue[item].fields for item in (*example.history, *example.candidates))
    held = {
        (e.user_id, i)
        for e in [*splits.valid, *splits.test]
        for i in e.candidates[: e.labels.index(1) + 1][-1:]
    }
    assert not held & set(splits.training_events.select("user_id", "item_id").iter_rows())
