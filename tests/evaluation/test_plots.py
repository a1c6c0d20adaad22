"""Plots: valid SVG, texts kept, the same bytes for the same input."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from trsr.evaluation.plots import bar_plot, line_plot, reliability_plot, slice_plot

ENTRIES: dict[str, Any] = {
    "llm $x$ <b>": {"value": 0.6, "ci95": [0.5, 0.7]},
    "random": {"value": 0.14, "ci95": [None, None]},
}
BOTH = list(ENTRIES.values())
POINTS: list[Any] = [
    {"score": 0.2, "rate": 0.3, "ci95": [0.2, 0.4]},
    {"score": 1.0, "rate": 0.9, "ci95": [None] * 2},
]
PLOTS: list[Callable[[], str]] = [
    lambda: bar_plot("recall@3", ENTRIES, marked="random", chance=0.14),
    lambda: slice_plot("mrr@10", ["1", "2-3"], {"llm": BOTH, "b": BOTH}, x_label="items"),
    lambda: slice_plot("mrr@10", ["1", "2"], {str(i): BOTH for i in range(12)}, x_label="items"),
    lambda: reliability_plot("llm", {"raw": POINTS[:1], "calibrated": POINTS}),
    lambda: reliability_plot("empty", {"raw": []}),
    lambda: line_plot("loss", [(1, 0.9), (2, 0.5)], x_label="step"),
]


@pytest.mark.parametrize("draw", PLOTS)
def test_a_plot_is_well_formed_and_always_the_same(draw: Callable[[], str]) -> None:
    svg = draw()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.attrib["role"] == "img"
    assert "<script" not in svg
    assert draw() == svg


def test_names_are_drawn_as_text_and_described_with_their_values() -> None:
    root = ET.fromstring(bar_plot("recall@3", ENTRIES))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"llm $x$ <b>", "recall@3"} <= set(texts)
    assert "random 0.140" in root.attrib["aria-label"]


def test_the_largest_value_of_a_curve_is_written() -> None:
    points = [(1.0, 0.2), (2.0, 0.7), (3.0, 0.6)]
    assert ">0.700<" in line_plot("metric", points, x_label="step", mark_max=True)


@pytest.mark.parametrize(
    ("rate", "ticks"), [(0.9, ["0", "0.05", "0.2", "0.4", "0.6", "1"]), (0.01, ["0", "0.01", "0.05"])]
)
def test_overlapping_ticks_of_a_reliability_plot_are_left_out(rate: float, ticks: list[str]) -> None:
    svg = reliability_plot("llm", {"raw": [{"score": rate, "rate": rate, "ci95": [None, None]}]})
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert texts[: len(ticks)] == ticks
