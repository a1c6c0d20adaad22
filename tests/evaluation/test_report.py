"""The report: complete, harmless whatever the texts say, and careful about what is significant."""

from __future__ import annotations

import html
import html.parser
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import OutputError
from trsr.evaluation.evaluate_scores import evaluate_scores, summarize
from trsr.evaluation.per_example import measure, metric_list
from trsr.evaluation.profile_quality import ProfileQuality, ProfileRow, summarize_profiles
from trsr.evaluation.report import (
    ExampleUser,
    ReportContext,
    sweeps,
    write_report,
)
from trsr.evaluation.slices import ExampleFeatures
from trsr.recommend.calibration import Calibration

HOSTILE = (
    '</style><script>alert("x")</script> | `tick` \n# heading <img src=x onerror=y>'
    " \u202egnp ${{7*7}} {{ 7*7 }}"
)
PLAIN = ReportContext(title="t", command="c", config_yaml="")


def make_metrics() -> dict[str, Any]:
    """Return metrics with calibrated scores, slices, a sweep and profiles; `good` is significantly best."""
    scores = make_scores()
    better = pl.Series(Calibration("platt", 2.0, -5.0).apply(scores["margin"].to_numpy()))
    score = pl.when(pl.col("ranker") == "good").then(better).otherwise(pl.col("score"))
    metrics = summarize(
        measure(scores.with_columns(score=score), metric_list((3,)), probabilistic=["good", "noise"]),
        protocol={
            "protocol": "sampled",
            "config": {"kind": "sampled", "negatives": {"n_test": 20}},
            "warnings": ["Users are split and not time."],
        },
        compared=["recall@3", "auc"],
        features={f"e{i}": ExampleFeatures(10, i % 20, i / 60 if i >= 10 else None) for i in range(60)},
        slice_pair=("good", "noise"),
    )
    metrics |= {"sweep": {"prompt.n_recent": {"0": "noise", "3": "good"}}, "own_ranker": "good"}
    metrics["counts"]["targets_in_history"] = 3
    quality = ProfileQuality(0.1, 0.2, 0.0, 0.5, 9.0, 0.0, 0.3, ("word0",))
    prediction = {name: np.asarray([0.5, 0.7]) for name in ("auc", "mrr", "auc_gain")}
    rows = [ProfileRow(f"e{i}", f"u{i}", "text", quality) for i in range(2)]
    metrics["profiles"] = summarize_profiles(rows, prediction, method="recurrent")
    return metrics


METRICS = make_metrics()


def make_context(text: str = "Title: gel pens, 12 pack") -> ReportContext:
    return ReportContext(
        title="A run",
        command="trsr run config.yaml --out RUN",
        config_yaml="seed: 0\ntrain:\n  lr: 5.0e-4\n",
        environment={"python": "3.11"},
        stages={
            "summarize": {"seconds": 3725.0, "calls_made": 1200, "generated_tokens": 250_000},
            "evaluate": {"seconds": 1.25},
        },
        summaries={"calls": 1200},
        training=[
            {"step": 10, "loss": 0.9},
            {"step": 20, "loss": 0.5, "eval_recall_sum": 1.2},
            {"step": 30, "loss": 0.4, "eval_recall_sum": 1.4},
        ],
        users=[
            ExampleUser(
                user_id=text,
                blocks=(((text, text), text),),
                profile=text,
                recent_items=(text,),
                candidates=((text, 0.9, 0), ("the chosen one", 0.4, 1)),
            )
        ],
        notes=["The test users are few."],
    )


def write(folder: Path, metrics: dict[str, Any] = METRICS, context: ReportContext | None = None) -> str:
    path = write_report(folder, metrics=metrics, context=context or make_context())
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The usual report."""
    return write(tmp_path_factory.mktemp("report") / "made" / "by the report")


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        (
            "results",
            [
                "Value and 95 % interval over users",
                "<dt>protocol</dt><dd>sampled</dd>",
                '<tr class="chance"><th scope="row">chance</th><td>0.143</td>',
            ],
        ),
        (
            "beats",
            [
                "good beats every other ranker on recall@3 (corrected p < 0.05).",
                "good is ahead by",
                "No significant difference does not mean equal",
            ],
        ),
        (
            "sweeps",
            ["Significantly different from 3, this run's own: 0 on recall@3 (-0.", "3 (own)", "p < 0.001"],
        ),
        (
            "slices",
            [
                "Cold and warm targets",
                "fewer than 10, warm 10 or more; of several targets the rarest counts.</p>",
                "recent-shift",
                "10 examples are in neither.",
                '<tr class="chance"><th scope="row">examples</th><td>30</td><td>30</td>',
                "good - noise",
            ],
        ),
        (
            "profiles",
            ["auc_gain", "chance 0.500", "Of 2 profiles: 2 with grounding below 0.5, 2 with name_", "word0"],
        ),
        (
            "reliability",
            [
                "good, not calibrated",
                "changes good's ece from 0.",
                "on the diagonal",
                "calibrated scores.",
            ],
        ),
        ("users", ["gel pens", "the chosen one", "2 items in 1 block", "--share: 0.900"]),
        ("training", ["validation recall@3", "1.2000", "0.4000"]),
        ("cost", ["1 h 02 min", "250,000"]),
        (
            "limits",
            [
                "The test users are few.",
                "63 of 1,260 prompts",
                "Krichene",
                "Users are split and not time.",
                "In 3 of 60 examples a target is in the history",
            ],
        ),
        ("again", ["trsr run config.yaml --out RUN", "lr: 5.0e-4", "n_test: 20"]),
    ],
)
def test_report_has_a_section_for_each_part(report: str, section: str, parts: list[str]) -> None:
    (text,) = re.findall(f'<section id="{section}".*?</section>', html.unescape(report), flags=re.S)
    for part in parts:
        assert part in text
    assert ("<svg" in text) == (section in ("results", "sweeps", "slices", "reliability", "training"))


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    metrics = {key: METRICS[key] for key in ("protocol", "rankers", "counts")} | {"comparisons": []}
    headings = re.findall(r"<h2>(.*?)</h2>", write(tmp_path, metrics, PLAIN))
    assert headings == ["Results", "Limits of this result", "Reproduce"]


def test_rankers_are_in_order_of_the_first_metric_with_the_best_marked(report: str) -> None:
    rows = re.findall(r'<th scope="row">([^<]+)</th>', report)
    assert rows[:4] == ["good", "constant", "noise", "chance"]
    (best,) = re.findall(r'<th scope="row">good</th>(.*?)</tr>', report)[:1]
    value = METRICS["rankers"]["good"]["recall@3"]["value"]
    assert best.startswith(f'<td class="best"><b>{value:.3f}</b>')


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([0.5, 0.6], "Its interval does not overlap with any other."),
        ([0.2, 0.6], "Its interval overlaps with noise: this run alone does not order them."),
        ([0.12, 0.13], "overlaps with no other, but it does not lie beyond chance"),
        ([None, None], "where chance is 0.143.</p>"),
    ],
)
def test_finding_without_comparisons_follows_from_the_intervals(
    tmp_path: Path, ends: list[float | None], words: str
) -> None:
    others = {name: {"recall@3": {"value": 0.1, "ci95": [0.05, 0.11]}} for name in ("noise", "constant")}
    if ends[0] == 0.2:
        others["noise"]["recall@3"]["ci95"] = [0.1, 0.3]
    rankers = others | {"good": {"recall@3": {"value": 0.5, "ci95": ends}}}
    metrics = {key: METRICS[key] for key in ("protocol", "counts")} | {"rankers": rankers, "comparisons": []}
    assert words in write(tmp_path, metrics, PLAIN)


class Tags(html.parser.HTMLParser):
    """Collects every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_loads_and_runs_nothing_whatever_the_texts_say(tmp_path: Path) -> None:
    page = write(tmp_path, context=make_context(HOSTILE))
    tags = Tags(page)
    names = {name for name, _ in tags.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "h6"}
    attributes = [(key, value or "") for _, given in tags.tags for key, value in given.items()]
    assert not [key for key, _ in attributes if key.startswith("on")]
    links = [value for key, value in attributes if key in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "url(http" not in page
    assert '<script>alert("x")</script>' in tags.words, "shown as text"
    assert "{{ 7*7 }}" in tags.words, "never rendered as a template"
    assert "\u202e" not in page
    assert any(given.get("http-equiv") == "Content-Security-Policy" for _, given in tags.tags)


def test_ids_are_unique_and_plots_take_their_colours_from_the_page(report: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', re.sub(r"<defs>.*?</defs>", "", report, flags=re.S))
    assert len(ids) == len(set(ids))
    assert report.count("<svg") == 4 + 2 + 4 + 2 + 2
    assert "#0102" not in report
    assert "#0103" not in report
    used, defined = set(re.findall(r"var\((--\w+)\)", report)), set(re.findall(r"(--\w+):", report))
    assert used <= defined


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, report: str) -> None:
    assert write(tmp_path) == report


def test_without_matplotlib_the_tables_remain_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write(tmp_path)
    assert page.count("trsr[report]") == 1
    assert "<svg" not in page
    assert "Comparison of rankers" in page


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write(tmp_path / "file")


def test_only_as_many_rankers_are_drawn_as_there_are_colours(tmp_path: Path) -> None:
    many = {f"r{i:02d}": METRICS["rankers"]["noise"] for i in range(12)}
    parts = [part | {"rankers": many, "comparisons": []} for part in METRICS["slices"]["target"]]
    metrics = {key: METRICS[key] for key in ("protocol", "counts")} | {"rankers": many, "comparisons": []}
    page = write(tmp_path, metrics | {"slices": {"target": parts}})
    plots = re.findall(r'<svg[^>]*by target".*?</svg>', page, flags=re.S)
    assert len(plots) == 2
    assert all(plot.count(f"var(--s{i})") == plot.count("var(--s0)") > 0 for plot in plots for i in range(8))


def test_a_report_without_a_truth_names_no_winner(tmp_path: Path) -> None:
    scores = make_scores().with_columns(pl.lit(0).cast(pl.Int64).alias("label"))
    page = write(tmp_path, evaluate_scores(scores, protocol={}), PLAIN)
    assert "the rankers cannot be compared" in page
    assert "Comparison of rankers" not in page


def test_sweeps_compare_each_value_with_the_runs_own() -> None:
    named = pl.col("ranker").replace({"good": "llm", "noise": "n_recent=0", "constant": "n_recent=5"})
    metrics = evaluate_scores(make_scores().with_columns(named), protocol={})
    assert sweeps(metrics) == []
    metrics |= {"sweep": {"prompt.n_recent": {"0": "n_recent=0", "3": "llm"}}, "own_ranker": "llm"}
    (sweep,) = sweeps(metrics)
    assert (sweep["setting"], sweep["table"]["columns"]) == ("prompt.n_recent", ["recall@3", "mrr@10", "auc"])
    (zero, cells), (own, own_cells) = sweep["table"]["rows"]
    assert (zero, own) == ("0", "3 (own)")
    values = [metrics["rankers"][name]["auc"]["value"] for name in ("n_recent=0", "llm")]
    assert f"{values[0] - values[1]:+.3f}, p < 0.001" in cells[2]["note"]
    assert [cell["mark"] for cell in cells] == ["differs"] * 3
    assert [cell["mark"] for cell in own_cells] == [""] * 3
    metrics |= {"sweep": {"n": {"0": "n_recent=0", "5": "n_recent=5"}}, "own_ranker": "n_recent=0"}
    assert sweeps(metrics)[0]["sentence"] == "No value differs significantly from 0, this run's own."
