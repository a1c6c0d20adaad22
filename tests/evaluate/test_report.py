"""The report: complete, harmless whatever the texts say, honest about what stands apart."""

from __future__ import annotations

import html.parser
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from trsr.errors import OutputError
from trsr.evaluate.report import stands_apart, write_report
from trsr.evaluate.report_views import (
    ExampleBlock,
    ExampleCandidate,
    ExampleUser,
    ReportContext,
    StageCost,
    TrainingRow,
)

HOSTILE = (
    '</style><script>alert("x")</script> | `tick` \n# heading <img src=x onerror=y>'
    " \u202egnp ${{7*7}} {{ 7*7 }}"
)


def entry(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "ci95": [round(value - half, 6), round(value + half, 6)]}


def make_metrics() -> dict[str, Any]:
    """Return metrics of three rankers: `llm` stands apart on recall@3 only; logloss is known for it alone."""
    rankers = {
        "random": {"recall@3": entry(0.14, 0.03), "mrr@10": entry(0.15, 0.05), "auc": entry(0.5, 0.02)},
        "llm": {
            "recall@3": entry(0.61, 0.05),
            "mrr@10": entry(0.41, 0.1),
            "auc": entry(0.8, 0.02),
            "logloss": entry(0.3, 0.01),
        },
        "bm25": {"recall@3": entry(0.35, 0.05), "mrr@10": entry(0.33, 0.1), "auc": entry(0.79, 0.02)},
    }
    part = {"examples": 75, "users": 75, "rankers": rankers}
    return {
        "protocol": {
            "protocol": "sampled",
            "negatives": "uniform",
            "config": {"kind": "sampled", "negatives": {"n_test": 20}},
            "warnings": ["Users are split and not time."],
            "chance": {"recall@3": 0.142857, "mrr@10": 0.1395, "auc": 0.5, "logloss": 0.19},
        },
        "rankers": rankers,
        "comparisons": [],
        "counts": {
            "users": 150,
            "examples": 150,
            "candidates": 3150,
            "cut_prompts": 12,
            "tie_rate": 0.01,
            "tie_rates": {"llm": 0.0},
            "examples_without_truth": 0,
        },
        "slices": {
            "history_length": [{"name": "10–12 items", **part}, {"name": "13 items", **part}],
            "target": [{"name": "warm", **part}],
        },
    }


def make_context(text: str = "Title: gel pens, 12 pack") -> ReportContext:
    return ReportContext(
        title="A run",
        command="trsr run config.yaml --out RUN",
        config_yaml="seed: 0\ntrain:\n  lr: 5.0e-4\n",
        environment={"python": "3.11"},
        stages=[StageCost("summarize", 3725.0, 1200, 250_000), StageCost("evaluate", 1.25)],
        summaries={"calls": 1200},
        training=[TrainingRow(10, 0.9, None), TrainingRow(20, 0.5, 1.2), TrainingRow(30, 0.4, 1.4)],
        training_metric="recall sum",
        users=[
            ExampleUser(
                user_id=text,
                blocks=(ExampleBlock((text, text), text),),
                profile=text,
                recent_items=(text,),
                candidates=(ExampleCandidate(text, 0.9, 0), ExampleCandidate("the chosen one", 0.4, 1)),
            )
        ],
        notes=["The test users are few."],
    )


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


def write(
    folder: Path, metrics: dict[str, Any] | None = None, context: ReportContext | None = None
) -> list[str]:
    paths = write_report(folder, metrics=metrics or make_metrics(), context=context or make_context())
    assert [path.name for path in paths] == ["report.md", "report.html"]
    return [path.read_text(encoding="utf-8") for path in paths]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The usual report, as markdown and as HTML."""
    return write(tmp_path_factory.mktemp("report") / "made" / "by the report")


def test_both_reports_hold_results_users_training_cost_limits_and_command(reports: list[str]) -> None:
    markdown, page = reports
    for text in (markdown.replace("\\", ""), page):
        for part in (
            "0.610",
            "0.560 to 0.660",
            "0.143",
            "10–12",
            "gel pens",
            "the chosen one",
            "recall sum",
            "1 h 02 min",
            "250,000",
            "The test users are few.",
            "12 of 3,150 prompts",
            "Krichene",
            "Users are split and not time.",
            "n_test: 20",
            "trsr run config.yaml --out RUN",
            "lr: 5.0e-4",
        ):
            assert part in text, part


def test_rankers_stand_in_order_of_the_first_metric_and_chance_comes_last(reports: list[str]) -> None:
    markdown, page = reports
    rows = re.findall(r"^\| (\S+) \|.* to ", markdown, flags=re.M)
    assert rows[:3] == ["llm", "bm25", "random"]
    rows = re.findall(r'<th scope="row">([^<]+)</th>', page)
    assert rows[:4] == ["llm", "bm25", "random", "chance"]


def test_a_value_is_marked_only_where_its_interval_stands_apart(tmp_path: Path, reports: list[str]) -> None:
    markdown, page = reports
    assert re.findall(r"\*\*(0\.\d+)\*\*", markdown) == ["0.610"]
    assert re.findall(r'class="apart"><b>(0\.\d+)', page) == ["0.610"]
    assert "stands apart" in markdown
    metrics = make_metrics()
    metrics["rankers"]["bm25"]["recall@3"] = entry(0.58, 0.05)
    markdown, _ = write(tmp_path, metrics)
    assert "**0." not in markdown
    assert "overlaps with that of bm25" in markdown


def test_a_best_ranker_that_only_chance_touches_is_said_to_be_near_chance(tmp_path: Path) -> None:
    metrics = make_metrics()
    for name, value in (("llm", 0.15), ("bm25", 0.09), ("random", 0.08)):
        metrics["rankers"][name]["recall@3"] = entry(value, 0.01)
    markdown, _ = write(tmp_path, metrics)
    assert "overlaps with no other, but it does not lie beyond chance" in markdown


def test_standing_apart_needs_more_than_the_best_value() -> None:
    rankers = {"a": {"logloss": entry(0.2, 0.01)}, "b": {"logloss": entry(0.3, 0.01)}}
    assert stands_apart(rankers, "logloss", 0.25) == "a"
    assert stands_apart(rankers, "logloss", 0.19) is None, "worse than chance"
    assert stands_apart({"a": rankers["a"]}, "logloss", None) is None, "nothing to compare with"
    rankers["b"]["logloss"]["ci95"] = [None, None]
    assert stands_apart(rankers, "logloss", None) is None, "an interval is unknown"
    higher = {"a": {"auc": entry(0.7, 0.01)}, "b": {"auc": entry(0.6, 0.01)}}
    assert stands_apart(higher, "auc", 0.5) == "a"
    assert stands_apart(higher, "auc", 0.695) is None


def test_the_page_loads_nothing_and_runs_nothing_whatever_the_texts_say(tmp_path: Path) -> None:
    _, page = write(tmp_path, context=make_context(HOSTILE))
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


def test_ids_of_the_page_are_unique_where_they_are_not_shared_definitions(reports: list[str]) -> None:
    _, page = reports
    body = re.sub(r"<defs>.*?</defs>", "", page, flags=re.S)
    ids = re.findall(r'\sid="([^"]+)"', body)
    assert len(ids) == len(set(ids))


def test_hostile_text_cannot_leave_its_cell_or_block_in_markdown(tmp_path: Path) -> None:
    markdown, _ = write(tmp_path, context=make_context(HOSTILE))
    for line in markdown.splitlines():
        if "alert" in line:
            assert not re.search(r"(?<!\\)<script", line)
            assert not line.startswith("# heading")
            unescaped = len(re.findall(r"(?<!\\)\|", line))
            assert unescaped == (4 if line.startswith("|") else 0) or "1 |" in line
    context = ReportContext(title="t", command="run ``` x", config_yaml="a: |\n  ```\n  # no\n  ```\n")
    markdown, _ = write(tmp_path, context=context)
    assert "````yaml" in markdown
    assert "````sh" in markdown


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, reports: list[str]) -> None:
    assert write(tmp_path) == reports


def test_parts_without_content_are_left_out(tmp_path: Path) -> None:
    metrics = make_metrics()
    del metrics["slices"]
    context = ReportContext(title="t", command="c", config_yaml="")
    for text in write(tmp_path, metrics, context):
        for heading in ("For which users and items", "Example users", "Training", "Cost"):
            assert heading not in text


def test_metrics_without_intervals_are_shown_without_them(tmp_path: Path) -> None:
    metrics = make_metrics()
    for values in metrics["rankers"].values():
        for cell in values.values():
            cell["ci95"] = [None, None]
    metrics["rankers"]["random"]["auc"]["value"] = None
    markdown, _ = write(tmp_path, metrics)
    assert "| random | 0.140 | 0.150 | – | – |" in markdown
    assert "overlap" not in markdown


def test_without_matplotlib_the_tables_remain_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    markdown, page = write(tmp_path)
    assert "trsr[report]" in page
    assert "<svg" not in page
    assert "0.610" in markdown
    assert "0.610" in page


def test_plots_take_their_colours_from_the_page(reports: list[str]) -> None:
    _, page = reports
    assert page.count("<svg") == 3 + 2 + 2
    assert "#0102" not in page
    assert "#0103" not in page
    used, defined = set(re.findall(r"var\((--\w+)\)", page)), set(re.findall(r"(--\w+):", page))
    assert used <= defined


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"report\.md cannot be written"):
        write(tmp_path / "file")
