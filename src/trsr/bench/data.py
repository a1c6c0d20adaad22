"""Measure how fast `trsr import mind` reads synthetic files, against a naive script.

Each runs in a fresh process, for its own memory peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_N_NEWS = 20_000
_N_CANDIDATES = 20
# Runs in the fresh process: TASK, then its seconds and the peak of its memory.
_MEASURED = """
import json, resource, sys, time
{task}
start = time.perf_counter()
result = task(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - start
try:
    with open("/proc/self/status") as status:  # ru_maxrss would count the parent before exec
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "peak_memory_mb": peak / 1024, "events": result}}))
"""
_TRSR = """
from trsr.data.dataset import Dataset
from trsr.data.mind import MindImport
def task(source, out):
    return Dataset.open(MindImport(source=source).run(out)).info.counts["events"]
"""
# Every row a Python object, all in memory, written at the end.
_NAIVE = """
import polars as pl
def task(source, out):
    news = {}
    for line in open(source + "/news.tsv", encoding="utf-8"):
        item_id, *texts = line.rstrip("\\n").split("\\t")
        news[item_id] = texts[:4]
    histories, impressions = {}, []
    for line in open(source + "/behaviors.tsv", encoding="utf-8"):
        number, user, time, history, candidates = line.rstrip("\\n").split("\\t")
        items = history.split()
        shown = [c.rsplit("-", 1) for c in candidates.split()]
        impressions.append((number, user, time, items, [i for i, _ in shown], [c == "1" for _, c in shown]))
        if len(items) > len(histories.get(user, ())):
            histories[user] = items
    events = []
    for user in sorted(histories):
        known = [item for item in histories[user] if item in news]
        events.extend((user, item, position) for position, item in enumerate(known))
    pl.DataFrame(events, orient="row").write_parquet(out + "-events")
    pl.DataFrame(impressions, orient="row").write_parquet(out + "-impressions")
    return len(events)
"""


def bench_import(rows: int) -> dict[str, Any]:
    """Return the result of `trsr bench import`, for at least `rows` history positions."""
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder:
        written = write_mind_files(Path(folder), rows)
        megabytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        measured, naive = (_measure(task, folder, written) for task in (_TRSR, _NAIVE))
    return {
        "benchmark": "import",
        "rows": written,
        "files_mb": round(megabytes, 1),
        **measured,
        "naive": naive,
        "speedup": round(naive["seconds"] / measured["seconds"], 2),
        "memory_ratio": round(naive["peak_memory_mb"] / measured["peak_memory_mb"], 2),
    }


def write_mind_files(folder: Path, rows: int) -> int:
    """Write news.tsv and behaviors.tsv with at least `rows` history positions; return how many there are.

    A third as many users as impressions, one history per user, 1 to 63 clicks long (mean 32), on 20,000 news
    of which one in twenty has no row. Nothing is drawn: users and news follow from the row number.
    """
    words = ["market", "season", "player", "recipe", "travel", "storm", "budget", "album", "phone", "garden"]
    ids = [f"N{i}" for i in range(_N_NEWS)]
    with (folder / "news.tsv").open("w", encoding="utf-8") as news:
        for i, item_id in enumerate(ids):
            if i % 20:
                text = " ".join(words[(i * k) % len(words)] for k in (1, 3, 5, 7, 11))
                news.write(
                    f"{item_id}\t{words[i % 10]}\t{words[i % 7]}\t{text} {i}\t{text} {text}\t\t[]\t[]\n"
                )
    n_users = max(1, rows // 96)
    written = number = 0
    with (folder / "behaviors.tsv").open("w", encoding="utf-8") as behaviors:
        while written < rows:
            user = number * 7919 % n_users
            length = 1 + user * 40503 % 63
            start = user * 2654435761
            history = " ".join(ids[(start + k * 17) % _N_NEWS] for k in range(length))
            shown = " ".join(
                f"{ids[(start + number + k * 101) % _N_NEWS]}-{int(k == number % _N_CANDIDATES)}"
                for k in range(_N_CANDIDATES)
            )
            time = f"11/{1 + number % 28}/2019 {1 + number % 12}:{number % 60:02}:00 PM"
            behaviors.write(f"{number}\tU{user}\t{time}\t{history}\t{shown}\n")
            written += length
            number += 1
    return written


def _measure(task: str, folder: str, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as out:
        command = [sys.executable, "-c", _MEASURED.format(task=task), folder, f"{out}/dataset"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the measured process failed: {done.stderr.strip().splitlines()[-1]}")
    result = json.loads(done.stdout)
    return {
        "seconds": round(result["seconds"], 3),
        "rows_per_s": round(rows / result["seconds"]),
        "peak_memory_mb": round(result["peak_memory_mb"], 1),
        "events": result["events"],
    }
