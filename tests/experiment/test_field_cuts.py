"""What the caps of fields cut is counted by candidate, kept by field, and said in the report."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from trsr.experiment.evaluating import cut_sentences
from trsr.llm.fake import FakeTokenizer
from trsr.text import FieldCut, field_cuts, verbalize_item
from trsr.types import Item

ITEM = Item("i", {"title": "Clay pot", "desc": "one two three four five, six seven", "none": ""})


def test_words_and_tokens_beyond_the_cap_are_counted_by_field() -> None:
    assert field_cuts(ITEM, fields=None, max_field_tokens=5, tokenizer=None) == {
        "title": FieldCut(2, 0),
        "desc": FieldCut(8, 3),
    }
    tokenizer = FakeTokenizer()
    found = field_cuts(ITEM, fields=("desc",), max_field_tokens=10, tokenizer=tokenizer)
    n = len(tokenizer.encode(ITEM.fields["desc"]))
    assert found == {"desc": FieldCut(n, n - 10)}
    shown = verbalize_item(ITEM, fields=("desc",), max_field_tokens=10, tokenizer=tokenizer)
    assert len(tokenizer.encode(shown.removeprefix("Desc: "))) == 10


def test_a_text_of_a_megabyte_is_counted_by_its_first_page() -> None:
    item = Item("i", {"desc": "word " * 200_000})
    found = field_cuts(item, fields=None, max_field_tokens=64, tokenizer=None)["desc"]
    assert found.n_tokens == pytest.approx(200_000, rel=0.01)
    assert found.n_cut == found.n_tokens - 64


def test_the_report_says_how_much_of_each_field_was_cut() -> None:
    desc = {"texts": 300, "cut_texts": 288, "tokens": 1000, "cut_tokens": 700}
    title = {"texts": 300, "cut_texts": 0, "tokens": 900, "cut_tokens": 0}
    facts = {"prompt": {"cap": 64, "fields": {"title": title, "desc": desc}}}
    assert cut_sentences(facts) == [
        "prompt.max_field_tokens (64) cut desc: 288 of 300 texts cut, 70% of their tokens."
    ]


def test_a_run_counts_its_caps_in_scores_metrics_and_report(finished_run: Path) -> None:
    kept = json.loads((finished_run / "field_cuts.json").read_text(encoding="utf-8"))
    assert set(kept) == {"prompt", "summary"}
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["field_cuts"] == kept
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    n_cut = scores.filter(pl.col("n_cut_tokens") > 0).height
    assert n_cut > 0
    assert metrics["counts"]["cut_prompts"] == n_cut
    report = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "prompt.max_field_tokens (6) cut title: " in report or "(6) cut description: " in report
