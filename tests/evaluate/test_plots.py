"""Plots: valid SVG, texts kept, the same bytes for the same input."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from trsr.evaluate.plots import Bar, _root_ticks, bar_plot, line_plot, reliability_plot, slice_plot

BARS = [Bar("llm $x$ <b>", 0.6, 0.5, 0.7, apart=True), Bar("random", 0.14)]
PLOTS: list[Callable[[], str]] = [
    lambda: bar_plot("recall@3", BARS, chance=0.14),
    lambda: slice_plot("mrr@10", ["1", "2-3"], {"llm": BARS, "b": BARS}, x_label="items"),
    lambda: slice_plot("mrr@10", ["1", "2"], {str(i): BARS for i in range(12)}, x_label="items"),
    lambda: reliability_plot(
        "llm", {"raw": [(0.0, BARS[0])], "calibrated": [(0.2, BARS[1]), (1.0, BARS[0])]}
    ),
    lambda: reliability_plot("empty", {"raw": []}),
    lambda: line_plot("loss", [(1, 0.9), (2, 0.5)], x_label="step"),
    lambda: line_plot("metric", [(1, 0.9), (2, 0.5)], x_label="step", mark="max"),
]


@pytest.mark.parametrize("draw", PLOTS)
def test_a_plot_is_well_formed_and_always_the_same(draw: Callable[[], str]) -> None:
    svg = draw()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.attrib["role"] == "img"
    assert "<script" not in svg
    assert draw() == svg


def test_names_are_drawn_as_text_and_not_as_formulas() -> None:
    root = ET.fromstring(bar_plot("recall@3", BARS))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "llm $x$ <b>" in texts
    assert "recall@3" in texts


def test_the_description_carries_the_values() -> None:
    label = ET.fromstring(bar_plot("recall@3", BARS)).attrib["aria-label"]
    assert "random 0.140" in label


def test_the_best_point_of_a_curve_is_written_beside_it() -> None:
    points = [(1.0, 0.2), (2.0, 0.7), (3.0, 0.6)]
    assert ">0.700<" in line_plot("metric", points, x_label="step", mark="max")
    assert ">0.200<" in line_plot("metric", points, x_label="step", mark="min")


@pytest.mark.parametrize(("top", "ticks"), [(1.0, [0, 0.05, 0.2, 0.4, 0.6, 1]), (0.05, [0, 0.01, 0.05])])
def test_ticks_that_would_overlap_are_left_out(top: float, ticks: list[float]) -> None:
    assert _root_ticks(top) == ticks
