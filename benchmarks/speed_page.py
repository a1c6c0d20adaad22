"""Write docs/speed.md and docs/speed.svg from the recorded results of `trsr bench` and of scripts.

python benchmarks/speed_page.py
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
SCORE = (
    ("candidates", "candidates"),
    ("prefix_tokens", "prefix tokens"),
    ("padded_pointwise_s", "padded, s"),
    ("pointwise_s", "one by one, s"),
    ("shared_prefix_s", "shared, s"),
    ("speedup_vs_padded", "over padded"),
    ("speedup_vs_pointwise", "over one by one"),
    ("cached_speedup", "prefix cached"),
    ("max_abs_margin_difference", "margin difference"),
    ("fraction_of_gemm_peak", "share of GEMM rate"),
    ("peak_memory_mb", "peak MB"),
)
TRAIN = (
    ("candidates", "candidates"),
    ("pointwise_s", "one by one, s"),
    ("shared_prefix_s", "shared, s"),
    ("speedup_vs_pointwise", "speed-up"),
    ("speedup_by_token_count", "by token count"),
    ("max_rel_grad_difference", "gradient difference"),
    ("fraction_of_gemm_peak", "share of GEMM rate"),
)

SUMMARIZE = (
    ("engine", "engine"),
    ("users", "users"),
    ("in_flight", "most in flight"),
    ("calls", "calls"),
    ("seconds", "s"),
    ("calls_per_s", "calls/s"),
    ("prompt_tokens", "prompt tokens"),
    ("generated_tokens", "new tokens"),
    ("reading_tokens_per_s", "read per second"),
    ("writing_tokens_per_s", "written per second"),
    ("speedup_vs_single", "over one at a time"),
)
PRECISION = (
    ("run", "run"),
    ("way", "way"),
    ("seconds_a_user", "s per user"),
    ("speedup", "over float32"),
    ("max_abs_margin_difference", "margin difference"),
    ("pairs_in_the_same_order", "pairs in the same order"),
    ("error", "error"),
)
SERVE = (
    ("served", "run"),
    ("clients", "clients"),
    ("requests", "requests"),
    ("errors", "errors"),
    ("requests_per_s", "requests/s"),
    ("p50_s", "p50 s"),
    ("p95_s", "p95 s"),
    ("p99_s", "p99 s"),
    ("engine_p95_s", "engine's p95 s"),
    ("over_engine", "over the engine"),
)
LOAD = (
    ("served", "run"),
    ("model", "model"),
    ("clients", "clients"),
    ("kind", "requests"),
    ("per_s", "answered/s"),
    ("p50_s", "p50 s"),
    ("p95_s", "p95 s"),
    ("p99_s", "p99 s"),
    ("refused", "503"),
    ("failed", "other errors"),
    ("rss_mb", "memory MB"),
)
HOSTILE = (
    ("served", "run"),
    ("kind", "text"),
    ("hostile", "hostile"),
    ("harmless", "harmless"),
    ("replaced", "other words instead"),
    ("hostile_towards_yes", "hostile, towards yes"),
    ("harmless_towards_yes", "harmless, towards yes"),
    ("more_than_harmless", "more than harmless"),
    ("ci95", "95 % interval"),
)


def read(name: str) -> dict[str, Any]:
    """Return a recorded file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(rows: Iterable[dict[str, Any]], columns: Iterable[tuple[str, str]]) -> str:
    """Return a Markdown table of some fields of each row; missing values stay empty."""
    columns = list(columns)
    lines = [
        "| " + " | ".join(title for _, title in columns) + " |",
        "|" + "---:|" * len(columns),
        *("| " + " | ".join(_cell(row.get(name)) for name, _ in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def drawn(row: dict[str, Any]) -> str:
    """Return the numbers of the plot as text."""
    slow = [row[name] for name in ("padded_pointwise_s", "pointwise_s", "candidates")]
    return json.dumps([*slow, *([point["candidates"], point["shared_prefix_s"]] for point in row["growth"])])


def plot(row: dict[str, Any], file: Path) -> None:
    """Draw seconds per user against candidates: measured if shared, multiplied for the slow methods."""
    mpl.rcParams["svg.hashsalt"] = "trsr"  # equal files for equal numbers
    counts = [point["candidates"] for point in row["growth"]]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, label in (("padded_pointwise_s", "padded to 2,048, one by one"), ("pointwise_s", "one by one")):
        each = row[name] / row["candidates"]
        axes.plot(counts, [each * n for n in counts], "--o", label=f"{label} (timed on a few, multiplied)")
    axes.plot(
        counts, [point["shared_prefix_s"] for point in row["growth"]], "-o", label="shared prefix (trsr)"
    )
    axes.set(
        xscale="log", yscale="log", xlabel="candidates of a user", ylabel="seconds", xticks=counts,
        xticklabels=counts, title="Time to rank one user",
    )  # fmt: skip
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    # The numbers are in the file, so a test can see that it is stale.
    figure.savefig(file, metadata={"Date": None, "Description": drawn(row)})


def today(command: str) -> str:
    """Return the current form of a recorded command: some commands are scripts now."""
    for old, script in (("serve", "serving.py"), ("hostile", "hostile.py")):
        command = command.replace(f"trsr bench {old} ", f"python benchmarks/{script} ")
    return command


def section(
    title: str, recorded: dict[str, Any], rows: Iterable[dict[str, Any]], columns: Iterable[tuple[str, str]]
) -> str:
    """Return one recorded file as a section."""
    commands = "\n".join(map(today, recorded["commands"]))
    note = f"\n\n{recorded['note']}" if recorded["note"] else ""
    return (
        f"## {title}\n\n{table(rows, columns)}\n\n"
        f"```sh\n{commands}\n```\n\n{recorded['machine']}, commit `{recorded['commit']}`, "
        f"torch {recorded['versions']['torch']}.{note}"
    )


def engine_rows(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per engine of `trsr bench summarize`."""
    return [
        {"engine": name, "users": result["users"], "in_flight": result.get("in_flight") or "default", **rates}
        for result in recorded["results"]
        for name, rates in result["engines"].items()
    ]


def precision_rows(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per run and method of `benchmarks/precision.py`."""
    return [
        {"run": result["run"], "way": way, **facts}
        for result in recorded["results"]
        for way, facts in result["ways"].items()
    ]


def serve_rows(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return two rows per run of `benchmarks/serving.py`: one client at a time, then several."""
    rows = []
    for result in recorded["results"]:
        one = {"clients": 1, **result["one_client"], "engine_p95_s": result["engine"]["p95_s"]}
        one["over_engine"] = f"p95 {result['p95_over_engine_p95']} times"
        several = {"clients": result["clients"], **result["several_clients"]}
        several["over_engine"] = f"throughput {result['throughput_over_engine']} times"
        rows += [{"served": result["served"], **row} for row in (one, several)]
    return rows


def serve_facts(recorded: dict[str, Any]) -> str:
    """Describe the measurement."""
    result = recorded["results"][-1]
    rates = " and ".join(str(one["cache_hit_rate"]) for one in recorded["results"])
    return textwrap.fill(
        f"`trsr serve` runs in its own process and ranks {result['candidates']} candidates over HTTP for "
        f"{result['users']} users with a cached prefix; cache hit rate {rates}. The engine answers the same "
        "requests one by one in the client's process. Concurrent clients wait for each other. There the "
        "server's throughput is compared with the engine's when it gets all requests in one call.",
        width=105,
    )


def load_rows(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return two rows per load (events, rankings), and two for small requests without and with large ones."""
    rows = []
    for result in recorded["results"]:
        attack = result["large_abandoned_requests"]
        small = [("small rankings", attack["alone"]), ("with large ones", attack["beside"])]
        for kind, key, load in [
            *((kind, kind, load) for load in result["loads"] for kind in ("event", "recommend")),
            *((kind, "rerank", load) for kind, load in small),
        ]:
            refused = load["statuses"].get("503", 0)
            failed = sum(n for code, n in load["statuses"].items() if code not in ("200", "202", "503"))
            shared = {
                "clients": load["clients"],
                "refused": refused,
                "failed": failed,
                "rss_mb": load["rss_mb"],
            }
            facts = load.get(key, {"per_s": 0})
            rows.append(
                {"served": result["served"], "model": result["model"], "kind": kind, **shared, **facts}
            )
    return rows


def load_facts(recorded: dict[str, Any]) -> str:
    """Describe the clients."""
    results = recorded["results"]
    seconds = results[0]["loads"][0]["seconds"]
    ratios = " and ".join(str(one["large_abandoned_requests"]["p95_ratio"]) for one in results)
    return textwrap.fill(
        f"Clients send requests for {seconds:g} s, each after its last answer: in turn an event, and the ten "
        "best items for a user. After a refusal they wait for `Retry-After`; 503 counts both kinds of "
        "refusals. `tiny` is a model with random weights, so its rows show the cost of the service itself. "
        "`demo` writes profiles with the embedded model on the same cores, and rankings wait for it. Then "
        "eight clients rank four short texts: first alone, then while another client sends a request for 200 "
        f"documents every second and leaves after half a second. Their p95 grows {ratios} times.",
        width=105,
    )


def hostile_rows(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per run and kind of text of `benchmarks/hostile.py`: how far the score moves."""
    return [
        {"served": result["served"], "kind": kind, **move["score"]}
        for result in recorded["results"]
        for kind, move in {"all": result["own"], **result["own_by_kind"]}.items()
    ]


def hostile_facts(recorded: dict[str, Any]) -> str:
    """Describe the measurement and the exact results."""
    results = recorded["results"]
    n = sum(result["items"] for result in results)
    prefix = sum(result["same_prefix"] for result in results)
    others = sum(result["others_exactly_as_beside_a_replaced_item"] for result in results)
    most = max(result["others_max_abs_margin_moved"] for result in results)
    as_text = sum(result["shown_as_text"] for result in results)
    return textwrap.fill(
        "The table shows the mean absolute move of an item's own score when a text is put before each of its "
        "fields: a hostile text, words of other items with the same length, or such words instead of its own "
        "texts. The score of a model trained on few users moves with any unusual text, so the question is "
        "whether a hostile one moves it more. *sure* and *reworded* are phrases that are not removed from "
        f"item texts. The shared prefix stayed the same for {prefix} of {n} items. For {others} items the "
        "margins of the other candidates were bit for bit the same as with a replaced item; compared with "
        f"the original item they differ by at most {most}, since passes of another length round differently. "
        f"{as_text} were shown as text.",
        width=105,
    )


def page() -> str:
    """Return docs/speed.md."""
    names = ("score", "train", "summarize", "serve", "serve_load", "precision", "hostile")
    score, train, summarize, serve, load, precision, hostile = map(read, names)
    parts = [
        "# Speed",
        "Made by `python benchmarks/speed_page.py` from the files in `benchmarks/results/`.",
        section("Ranking", score, score["results"], SCORE),
        "*Padded* is the method of LLM-TRSR's released code: every candidate is a separate prompt, padded\n"
        "to 2,048 tokens, with logits at every position. *One by one* omits the padding. *Shared* reads the\n"
        "common prefix of a user's candidates once. The slow methods are timed on a few candidates and\n"
        "multiplied.",
        "![Seconds to rank one user against the number of candidates](speed.svg)",
        section("Training", train, train["results"], TRAIN),
        section("Summarizing", summarize, engine_rows(summarize), SUMMARIZE),
        "Recurrent summaries of synthetic news readers with default settings. All users are submitted at\n"
        "once, and a user's calls follow each other. Most of a call is reading, since a prompt is much\n"
        "longer than its answer; *written per second* is the rate of the rest.",
        section("Serving", serve, serve_rows(serve), SERVE),
        serve_facts(serve),
        section("Serving under load", load, load_rows(load), LOAD),
        load_facts(load),
        section("Precision on a CPU", precision, precision_rows(precision), PRECISION),
        "Ranking the test users of finished runs in other precisions than float32, the default on a CPU.\n"
        "One would become the default if it were faster, margins stayed within 0.01 and all candidates kept\n"
        "their order.",
        section("Hostile items", hostile, hostile_rows(hostile), HOSTILE),
        hostile_facts(hostile),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    (DOCS / "speed.md").write_text(page(), encoding="utf-8")
    plot(next(row for row in read("score")["results"] if "growth" in row), DOCS / "speed.svg")


if __name__ == "__main__":
    main()
