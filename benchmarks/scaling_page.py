"""Write docs/scaling.md and docs/scaling.svg from the recorded results of `benchmarks/scale.py`.

python benchmarks/scaling_page.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from results_page import table

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "scale.json"
PAGE, PLOT = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.svg"
LARGE = (10_000_000, 100_000_000)
STAGES = {
    "plan": ("planning", "cpu_us_a_call", "call"),
    "summarize": ("summarizing, fake engine included", "cpu_us_a_call", "call"),
    "known": ("summarizing from the store", "cpu_us_a_call", "call"),
    "rank": ("ranking, without a model", "cpu_us_a_user", "user"),
}
AIM_USERS, AIM_US, AIM_MB = 1_000_000, 200, 2000
# What the paper estimate takes for granted; a server's rate is measured by `trsr bench summarize`.
TOKENS_PER_SECOND, PRICE_PER_MILLION = 20_000, 0.05

Record = dict[str, Any]


def read() -> Record:
    """Return the recorded file."""
    content: Record = json.loads(RESULT.read_text(encoding="utf-8"))
    return content


def sizes(record: Record) -> list[int]:
    """Return the numbers of users that were measured."""
    return sorted(int(n) for n in record["results"])


def measured(record: Record) -> str:
    """Return CPU and memory of every stage and size."""
    head = ["users", *(f"{title}, µs a {of}" for title, _, of in STAGES.values()), "own µs a call", "MB"]
    rows = []
    for n in sizes(record):
        found = record["results"][str(n)]
        cells = [f"{found[s][name]:,.0f}" if s in found else "–" for s, (_, name, _) in STAGES.items()]
        own = f"{found['summarize']['own_cpu_us_a_call']:,.0f}" if "summarize" in found else "–"
        most = max((found[stage]["memory_mb"] for stage in found), default=0)
        rows.append([f"{n:,}", *cells, own, f"{most:,.0f}"])
    return table(head, rows, len(head) - 1)


def stores(record: Record) -> str:
    """Return rows per second of both stores."""
    head = ["users", "SQLite read", "SQLite copied", "Postgres one by one", "copied", "looked up"]
    rows = []
    for n in sizes(record):
        found = record["results"][str(n)]
        cells = [
            f"{found[stage][name]['rows_a_second']:,}" if stage in found else "–"
            for stage, name in (
                ("store", "read"),
                ("store", "copied"),
                ("postgres", "put"),
                ("postgres", "copied"),
                ("postgres", "looked_up"),
            )
        ]
        rows.append([f"{n:,}", *cells])
    return table(head, rows, len(head) - 1)


def slope(record: Record) -> float:
    """Return the exponent of the growth of summarizing CPU time with the users; 1 is linear."""
    known = [n for n in sizes(record) if "summarize" in record["results"][str(n)]]
    few, many = known[0], known[-1]
    used = [record["results"][str(n)]["summarize"]["cpu_s"] for n in (few, many)]
    return math.log(used[1] / used[0]) / math.log(many / few)


def largest(record: Record, stage: str) -> tuple[int, Record]:
    """Return the largest measured size of a stage, with its values."""
    n = max(n for n in sizes(record) if stage in record["results"][str(n)])
    return n, record["results"][str(n)][stage]


def estimate(record: Record) -> str:
    """Return estimates for up to 100 million users, from the largest sizes measured."""
    n, wrote = largest(record, "summarize")
    n_plan, planned = largest(record, "plan")
    n_few, few = min(
        (int(size), found["plan"]) for size, found in record["results"].items() if "plan" in found
    )
    a_call = max(
        0.0, (planned["memory_mb"] - few["memory_mb"]) * 1e6 / max(1, planned["calls"] - few["calls"])
    )
    rows = []
    for users in (*sizes(record), *LARGE):
        calls, tokens = users * wrote["calls"] / n, users * planned["tokens_at_most"] / n_plan
        written = calls * 48
        rows.append(
            [
                f"{users:,}",
                f"{calls / 1e6:,.3f}",
                f"{(tokens + written) / 1e9:,.3f}",
                f"{calls * wrote['own_cpu_us_a_call'] / 3.6e9:,.2f}",
                f"{(tokens + written) / TOKENS_PER_SECOND / 3600:,.1f}",
                f"{(tokens + written) / 1e6 * PRICE_PER_MILLION:,.0f}",
                f"{users * wrote['store_bytes'] / n / 1e9:,.2f}",
                f"{few['memory_mb'] / 1e3 + a_call * calls / 1e9:,.2f}" if n_plan > n_few else "–",
            ]
        )
    head = ["users", "million calls", "billion tokens at most", "own CPU hours", "engine hours"]
    head += ["money", "store, GB", "exact plan, GB of memory"]
    return table(head, rows, len(head) - 1)


def drawn(record: Record) -> str:
    """Return the numbers of the plot as text."""
    return json.dumps(record["results"], sort_keys=True)


def plot(record: Record, file: Path) -> None:
    """Draw seconds of CPU against users, with a straight line for linear growth."""
    mpl.rcParams["svg.hashsalt"] = "trsr"  # equal files for equal numbers
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for stage, (title, _, _) in STAGES.items():
        if stage == "rank":  # of so many users at most
            continue
        points = [(n, record["results"][str(n)].get(stage)) for n in sizes(record)]
        shown = [(n, found["cpu_s"]) for n, found in points if found]
        axes.plot([n for n, _ in shown], [s for _, s in shown], "-o", label=title)
    n, wrote = largest(record, "summarize")
    ends = [sizes(record)[0], LARGE[-1]]
    axes.plot(ends, [wrote["cpu_s"] * users / n for users in ends], ":", color="grey", label="linear")
    axes.set(xscale="log", yscale="log", xlabel="users", ylabel="seconds of CPU", title="Growth")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None, "Description": drawn(record)})


def verdict(record: Record) -> str:
    """Compare the largest run with the aim."""
    n, wrote = largest(record, "summarize")
    own, most = wrote["own_cpu_us_a_call"], wrote["memory_mb"]
    said = f"Measured at {n:,} users: {own:,.0f} µs and {most:,.0f} MB"
    if n < AIM_USERS:
        said += f"; {AIM_USERS:,} users are not measured yet"
    else:
        said += f": {'met' if own <= AIM_US and most <= AIM_MB else 'missed'}"
    return (
        f"Aim: at most {AIM_US} µs of the framework's own CPU per summary call and {AIM_MB:,} MB of memory\n"
        f"at {AIM_USERS:,} users.\n{said}.\n"
        f"CPU time grows with the power {slope(record):.2f} of the users (1 is linear)."
    )


def page(record: Record) -> str:
    """Return docs/scaling.md."""
    data = ", ".join(f"{name} {value}" for name, value in record["data"].items())
    commits = sorted({found["commit"] for of in record["results"].values() for found in of.values()})
    parts = [
        "# Scaling",
        "Made by `python benchmarks/scaling_page.py` from `benchmarks/results/scale.json`.",
        "The framework's own cost, without a model: synthetic data, the fake engine, one process.",
        verdict(record),
        "![Seconds of CPU against users](scaling.svg)",
        measured(record),
        "*Own* is summarizing without the time inside the fake engine. Every size includes making the\n"
        "texts of 20,000 items, so small sizes cost more per call. MB is the largest memory of any stage,\n"
        "of which up to 64 MB are SQLite's pages. Ranking is measured on at most 20,000 users with 20\n"
        "candidates each.",
        "## Stores, rows per second",
        stores(record),
        "Wall time; a dash means not measured. PostgreSQL runs on the same machine and is measured with\n"
        "`--postgres URL`, on at most 100,000 rows.",
        "## Estimates for up to 100 million users",
        estimate(record),
        "Calls, tokens, bytes and CPU are scaled from the largest size measured, with an engine that reads\n"
        f"and writes {TOKENS_PER_SECOND:,} tokens per second at a price of {PRICE_PER_MILLION} per million.\n"
        "Histories of this data are short. `trsr plan CONFIG --users N` does the same for your own data,\n"
        "with the tokens of your own prompts.",
        "## First limits",
        "Concluded from these numbers and the design; not measured.",
        "- *Engine*: the first limit by far. It takes most of the hours at every size.\n"
        "- *`--dry-run` on all users*: it counts equal calls once, so it keeps a key for every call in\n"
        "  memory (last column). `trsr plan --users` reads a sample and does not.\n"
        "- *SQLite*: it has one writer, and rows come in the order of hashes, so a file larger than memory\n"
        "  reads a page from the disk per row. For such sizes use PostgreSQL, which many writers can share.\n"
        "- *`trsr summarize`, `trsr run`*: they keep all profiles in memory to write `profiles.parquet`.\n"
        "  `summarize_each`, measured here, keeps a window of users.\n"
        "- *Catalogue*: all items are in memory, which grows with items, not with users.",
        f"```sh\n{record['command']}\n```",
        f"{record['machine']}, commit `{'`, `'.join(commits)}`. Data: {data}.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    record = read()
    PAGE.write_text(page(record), encoding="utf-8")
    plot(record, PLOT)


if __name__ == "__main__":
    main()
