"""Small plots as inline SVG that take their colours from the page.

Matplotlib has no light and dark mode: each colour here is a placeholder that becomes a CSS variable,
which `report.html.j2` defines for both. Text stays text and takes the page's font. The same input gives the
same bytes. All functions raise `MissingExtraError` without matplotlib.

An entry is a value with its interval as in `metrics.json`: `{"value": ..., "ci95": [low, high]}`, each
possibly None.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from trsr.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = Mapping[str, Any]

INK, FAINT, LINE, ACCENT = "#010203", "#010204", "#010205", "#010206"
N_SERIES_COLORS = 8
SLICE_AXES = {"history_length": "items in the history", "target": "target", "interest": "users"}
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
    "axes.titlepad": 10,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def draw_metrics(
    metrics: Mapping[str, Any],
    ordered: Sequence[str],
    best: Mapping[str, str | None],
    sweeps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Draw a few metrics of different kinds; the tables have them all.

    Args:
        metrics: The content of `metrics.json`.
        ordered: The rankers, best first; slices show as many as there are colours.
        best: By metric, the significantly best ranker.
        sweeps: See `report.sweeps`.

    Returns:
        Lists of plots: `bars`, `sweeps`, `calibration`, and `slices` by way to cut.
    """
    rankers, chance, headline = metrics["rankers"], metrics["protocol"]["chance"], _headline(list(best))
    bars = []
    for metric in headline:
        known = [name for name in ordered if rankers[name].get(metric, {"value": None})["value"] is not None]
        entries = {name: rankers[name][metric] for name in known}
        if known:
            bars.append(bar_plot(metric, entries, marked=best[metric], chance=chance[metric]))
    swept = []
    for sweep in sweeps:
        setting, by_value = sweep["setting"], sweep["rankers"]
        for metric in sweep["table"]["columns"]:
            series = {setting: [rankers[ranker][metric] for ranker in by_value.values()]}
            swept.append(slice_plot(metric, list(by_value), series, x_label=setting))
    slices: dict[str, list[Markup]] = {}
    for way, parts in metrics.get("slices", {}).items():
        if len(parts) < 2:
            continue
        labels = [part["name"].removesuffix(" items") for part in parts]
        slices[way] = []
        for metric in headline[:2]:
            series = {
                name: [part["rankers"][name][metric] for part in parts] for name in ordered[:N_SERIES_COLORS]
            }
            slices[way].append(slice_plot(metric, labels, series, x_label=SLICE_AXES[way]))
    curves = [
        reliability_plot(ranker, {variant: entry["curve"] for variant, entry in variants.items()})
        for ranker, variants in metrics.get("calibration", {}).items()
    ]
    return {"bars": bars, "sweeps": swept, "slices": slices, "calibration": curves}


def _headline(names: Sequence[str]) -> list[str]:
    """Choose the first recall, the deepest mrr and ndcg, and auc."""
    chosen = []
    for family, pick in [("recall@", 0), ("mrr@", -1), ("ndcg@", -1), ("auc", 0)]:
        chosen += [name for name in names if name.startswith(family)][pick:][:1]
    return chosen


def bar_plot(
    title: str, entries: Mapping[str, Entry], *, marked: str | None = None, chance: float | None = None
) -> Markup:
    """Draw horizontal bars with whiskers, the first on top, the marked one in colour; dashed at chance."""
    with _figure(2.9, 0.7 + 0.26 * len(entries)) as (figure, axes):
        for place, (name, entry) in enumerate(entries.items()):
            color, alpha = (ACCENT, 0.9) if name == marked else (FAINT, 0.45)
            axes.barh(place, entry["value"], height=0.62, color=color, alpha=alpha)
            if None not in entry["ci95"]:
                axes.plot(entry["ci95"], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
        if chance is not None:
            axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(entries)), list(entries), color=INK)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        # The title starts at the left edge of the picture, over the names.
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        values = ", ".join(f"{name} {entry['value']:.3f}" for name, entry in entries.items())
        return _svg(figure, f"{title}: {values}")


def slice_plot(
    title: str, slices: Sequence[str], series: Mapping[str, Sequence[Entry]], *, x_label: str
) -> Markup:
    """Draw one point with whiskers per slice and series; colours in the order of the series."""
    with _figure(3.9, 2.5) as (figure, axes):
        for index, entries in enumerate(series.values()):
            color = _SERIES[index % N_SERIES_COLORS]
            shift = (index - (len(series) - 1) / 2) * min(0.12, 0.7 / len(series))
            xs = np.arange(len(entries)) + shift
            ys = [math.nan if entry["value"] is None else entry["value"] for entry in entries]
            axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.45)
            axes.plot(xs, ys, "o", color=color, markersize=4)
            for x, entry in zip(xs, entries, strict=True):
                if None not in entry["ci95"]:
                    axes.plot([x, x], entry["ci95"], color=color, linewidth=1.4)
        axes.set_xticks(range(len(slices)), list(slices))
        axes.set_xlim(-0.5, len(slices) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_title(title)
        return _svg(figure, f"{title} by {x_label}")


def line_plot(
    title: str, points: Sequence[tuple[float, float]], *, x_label: str, mark_max: bool = False
) -> Markup:
    """Draw a curve, with a dot and the value at its largest point if `mark_max`."""
    with _figure(3.9, 2.2) as (figure, axes):
        xs, ys = zip(*points, strict=True)
        marker = "o" if len(points) < 12 else None
        axes.plot(xs, ys, color=ACCENT, linewidth=1.6, marker=marker, markersize=3.5)
        if mark_max:
            best = int(np.argmax(ys))
            axes.plot(xs[best], ys[best], "o", color=ACCENT, markersize=7)
            axes.annotate(
                f"{ys[best]:.3f}", (xs[best], ys[best]), (0, 8), textcoords="offset points", ha="center"
            )
        axes.margins(x=0.08, y=0.2)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.set_title(title)
        return _svg(figure, f"{title} by {x_label}")


def reliability_plot(title: str, curves: Mapping[str, Sequence[Entry]]) -> Markup:
    """Draw the share chosen over the mean score, on axes that grow with the square root.

    Args:
        title: Names the ranker.
        curves: By name, the points as in `metrics.json` (`score`, `rate`, `ci95`). The last one is in the
            accent colour if there are several.
    """
    last = list(curves.values())[-1]
    largest = max(
        (max(point["score"], point["rate"]) for points in curves.values() for point in points), default=1
    )
    top = min(1.0, max(0.05, 1.15 * largest))
    with _figure(3.6, 3.4) as (figure, axes):
        axes.plot([0, top], [0, top], color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        for points in curves.values():
            color = ACCENT if len(curves) > 1 and points is last else FAINT
            xs, ys = [point["score"] for point in points], [point["rate"] for point in points]
            axes.plot(xs, ys, "o-", color=color, linewidth=1, markersize=4.5)
            for x, point in zip(xs, points, strict=True):
                if None not in point["ci95"]:
                    axes.plot([x, x], point["ci95"], color=color, linewidth=1.2, alpha=0.6)
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_yscale("function", functions=(_root, np.square))
        ticks = _root_ticks(top)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel("mean score")
        axes.set_ylabel("share chosen")
        axes.grid()
        axes.set_title(title)
        values = ", ".join(f"{point['rate']:.3f} at {point['score']:.3f}" for point in last)
        return _svg(figure, f"{title}, share chosen by mean score: {values}")


def _root(values: Any) -> Any:
    return np.sqrt(np.clip(values, 0, None))


def _root_ticks(top: float) -> list[float]:
    """Return ticks of a square-root axis from 0 to `top`, far enough apart to be read."""
    chosen = [0.0]
    for tick in (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0):
        if tick <= top and np.sqrt(tick) - np.sqrt(chosen[-1]) >= 0.13 * np.sqrt(top):
            chosen.append(tick)
    return chosen


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure (in inches) outside pyplot's global state."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, description: str) -> Markup:
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
    return Markup(svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1))
