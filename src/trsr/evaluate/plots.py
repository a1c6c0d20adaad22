"""Small plots as inline SVG that take their colours from the page.

Matplotlib knows nothing of light and dark; each colour here is a stand-in that becomes a CSS variable
(`--ink`, `--faint`, `--line`, `--accent`, `--s0` to `--s7`), which `report.css` defines for both. Text stays
text and takes the page's font. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trsr.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, LINE, ACCENT = "#010203", "#010204", "#010205", "#010206"
N_SERIES_COLORS = 8
_SERIES = [f"#01030{i}" for i in range(N_SERIES_COLORS)]
_VARIABLES = {INK: "--ink", FAINT: "--faint", LINE: "--line", ACCENT: "--accent"} | {
    color: f"--s{i}" for i, color in enumerate(_SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trsr",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, whose ends may be None; with `apart` it is drawn in the accent colour."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    apart: bool = False


def bar_plot(title: str, bars: Sequence[Bar], *, chance: float | None = None) -> str:
    """Draw horizontal bars, the first on top, with whiskers and a dashed line at chance."""
    with _figure(2.9, 0.7 + 0.26 * len(bars)) as (figure, axes):
        for place, bar in enumerate(bars):
            axes.barh(
                place,
                bar.value,
                height=0.62,
                color=ACCENT if bar.apart else FAINT,
                alpha=0.9 if bar.apart else 0.45,
            )
            if bar.low is not None and bar.high is not None:
                axes.plot(
                    [bar.low, bar.high], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt"
                )
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", length=0, labelsize=8.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        # The title starts at the left edge of the picture, over the names.
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        return _svg(figure, f"{title}: " + ", ".join(f"{bar.name} {bar.value:.3f}" for bar in bars))


def slice_plot(
    title: str, slices: Sequence[str], series: Mapping[str, Sequence[Bar]], *, x_label: str
) -> str:
    """Draw one point with whiskers a slice and series, side by side; colours in the order of the series.

    Args:
        title: What is measured.
        slices: Names of the slices, left to right.
        series: For each ranker, one `Bar` a slice (its name is not drawn).
        x_label: What divides the slices.
    """
    with _figure(3.9, 2.5) as (figure, axes):
        for index, (_, points) in enumerate(series.items()):
            color = _SERIES[index % N_SERIES_COLORS]
            shift = (index - (len(series) - 1) / 2) * min(0.12, 0.7 / len(series))
            xs = np.arange(len(points)) + shift
            axes.plot(xs, [point.value for point in points], color=color, linewidth=0.8, alpha=0.45)
            axes.plot(xs, [point.value for point in points], "o", color=color, markersize=4)
            for x, point in zip(xs, points, strict=True):
                if point.low is not None and point.high is not None:
                    axes.plot([x, x], [point.low, point.high], color=color, linewidth=1.4)
        axes.set_xticks(range(len(slices)), list(slices))
        axes.set_xlim(-0.5, len(slices) - 0.5)
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_title(title, pad=10)
        return _svg(figure, f"{title} by {x_label}")


def line_plot(
    title: str, points: Sequence[tuple[float, float]], *, x_label: str, mark: str | None = None
) -> str:
    """Draw a curve; `mark` = "max" or "min" puts a dot and the value at its best point."""
    with _figure(3.9, 2.2) as (figure, axes):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(
            xs, ys, color=ACCENT, linewidth=1.6, marker="o" if len(points) < 12 else None, markersize=3.5
        )
        if mark is not None:
            best = int(np.argmax(ys) if mark == "max" else np.argmin(ys))
            axes.plot(xs[best], ys[best], "o", color=ACCENT, markersize=7)
            axes.annotate(
                f"{ys[best]:.3f}", (xs[best], ys[best]), (0, 8), textcoords="offset points", ha="center"
            )
        axes.margins(x=0.08, y=0.2)
        axes.tick_params(length=0)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_title(title, pad=10)
        return _svg(figure, f"{title} by {x_label}")


def reliability_plot(title: str, curves: Mapping[str, Sequence[tuple[float, Bar]]]) -> str:
    """Draw the share that was chosen over the mean score, on axes that grow with the square root.

    Args:
        title: Names the ranker.
        curves: By name, (mean score, share as a `Bar`) of each bin. The last one is in the accent colour if
            there are several.
    """
    with _figure(3.6, 3.4) as (figure, axes):
        largest = max(
            (max(score, bar.value) for points in curves.values() for score, bar in points), default=1
        )
        top = min(1.0, max(0.05, 1.15 * largest))
        axes.plot([0, top], [0, top], color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        for place, points in enumerate(curves.values()):
            color = ACCENT if place and place == len(curves) - 1 else FAINT
            axes.plot(
                [score for score, _ in points],
                [bar.value for _, bar in points],
                "o-",
                color=color,
                linewidth=1,
                markersize=4.5,
            )
            for score, bar in points:
                if bar.low is not None and bar.high is not None:
                    axes.plot([score, score], [bar.low, bar.high], color=color, linewidth=1.2, alpha=0.6)
        ticks = _root_ticks(top)
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_yscale("function", functions=(_root, np.square))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.tick_params(length=0)
        axes.set_xlabel("mean score")
        axes.set_ylabel("share chosen")
        axes.grid()
        axes.set_title(title, pad=10)
        last = list(curves.values())[-1]
        return _svg(
            figure,
            f"{title}, share chosen by mean score: "
            + ", ".join(f"{bar.value:.3f} at {score:.3f}" for score, bar in last),
        )


def _root_ticks(top: float) -> list[float]:
    """Return ticks of an axis from 0 to `top` that grows with the square root, apart enough to be read."""
    chosen = [0.0]
    for tick in (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
        if tick <= top and np.sqrt(tick) - np.sqrt(chosen[-1]) >= 0.13 * np.sqrt(top):
            chosen.append(tick)
    return chosen


def _root(values: Any) -> Any:
    """Return the square root, that of a negative value being taken as 0."""
    return np.sqrt(np.clip(values, 0, None))


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure (in inches) that belongs to nobody's global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as an `<svg>` element with the page's colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # Several plots share a page: ids must not repeat.
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    label = re.sub(r'[&<>"\']', "", description)
    return svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1)
