"""Counts what the caps of fields cut from the texts of items, field by field, for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trsr.experiment.experiment import Workbench, item_cuts
from trsr.storage import read_json
from trsr.text import FieldCut

FILE = "field_cuts.json"
_SETTINGS = {
    "prompt": ("prompt.max_field_tokens", "tokens"),
    "summary": ("summary.max_field_tokens", "words"),
}


def shown_items(bench: Workbench) -> set[str]:
    """Return the items that the prompts of the test show."""
    n_recent = bench.config.prompt.n_recent
    return {
        item
        for example in bench.splits.test
        for item in (*example.candidates, *(example.history[-n_recent:] if n_recent else ()))
    }


def summary_cuts(bench: Workbench) -> Callable[[str], dict[str, FieldCut]]:
    """Return what `summary.max_field_tokens` cuts from an item's fields, by its id."""
    summary = bench.config.summary
    return item_cuts(bench.dataset, summary.fields, summary.max_field_tokens, None)


def write_cuts(
    bench: Workbench, part: str, cuts: Callable[[str], Mapping[str, FieldCut]], items: Iterable[str]
) -> None:
    """Keep in the run what one cap cut from the texts of some items."""
    fields: dict[str, dict[str, int]] = {}
    for item in items:
        for field, cut in cuts(item).items():
            counts = fields.setdefault(field, {"texts": 0, "cut_texts": 0, "tokens": 0, "cut_tokens": 0})
            counts["texts"] += 1
            counts["cut_texts"] += cut.n_cut > 0
            counts["tokens"] += cut.n_tokens
            counts["cut_tokens"] += cut.n_cut
    cap = getattr(bench.config, part).max_field_tokens
    bench.folder.write_json(FILE, {**read_cuts(bench), part: {"cap": cap, "fields": fields}})


def read_cuts(bench: Workbench) -> dict[str, Any]:
    """Return what `write_cuts` kept; empty for a run made before it did."""
    file = bench.folder.path / FILE
    return dict(read_json(file)) if file.exists() else {}


def cut_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Say which fields were cut, and how much of them."""
    said = []
    for part, found in facts.items():
        setting, unit = _SETTINGS[part]
        cut = [
            f"{field}: {counts['cut_texts']:,} of {counts['texts']:,} texts cut, "
            f"{counts['cut_tokens'] / counts['tokens']:.0%} of their {unit}"
            for field, counts in found["fields"].items()
            if counts["cut_tokens"]
        ]
        if cut:
            said.append(f"{setting} ({found['cap']}) cut {'; '.join(cut)}.")
    return said
