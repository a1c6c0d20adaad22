"""Runs one experiment with several seeds and pools the results.

Each seed is an ordinary run folder `RUN/seedN`, which can be killed, resumed and evaluated like any other.
Summaries do not depend on the seed: each run begins with those the one before it wrote.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trsr.errors import RunMismatchError
from trsr.evaluate.evaluation import add_spread, main_metrics, pool, summarise
from trsr.evaluate.report import ReportContext, write_report
from trsr.evaluate.slices import Traits
from trsr.experiment.evaluating import (
    example_traits,
    measure_run,
    report_context,
    slice_pair,
    targets_in_history,
)
from trsr.experiment.experiment import Workbench
from trsr.experiment.leakage import check_run
from trsr.experiment.stages import run_stages, say_with
from trsr.storage import write_whole

_STORE = "summaries.sqlite"


def check_seeds_folder(out: Path) -> None:
    """Refuse a folder that holds something other than runs by seed.

    Raises:
        RunMismatchError: it holds a run of a single seed, or files that belong to no run.
    """
    if (out / "config.yaml").exists():
        raise RunMismatchError(
            f"{out} holds a run of one seed; name another folder with --out, or leave out --seeds."
        )
    if out.is_dir() and any(out.iterdir()) and not any(out.glob("seed*/config.yaml")):
        raise RunMismatchError(f"{out} is not empty and holds no run; name another folder with --out.")


def run_seeds(
    out: Path,
    open_bench: Callable[[int, Path], Workbench],
    seeds: range,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Run every seed to its end, then write `metrics.json` and the report of all of them.

    Args:
        out: The folder above the runs.
        open_bench: (seed, run folder) -> its workbench.
        seeds: The seeds, in order.
        say: Receives a line for each finished stage.

    Raises:
        RunMismatchError: `out`, or a run in it, belongs to something else.
        OutputError: a folder cannot be written.
    """
    check_seeds_folder(out)
    benches: dict[int, Workbench] = {}
    for seed in seeds:
        bench = open_bench(seed, out / f"seed{seed}")
        if benches:
            _take_summaries(benches[seed - 1].folder.path / _STORE, bench.folder.path / _STORE)
        run_stages(bench, say=partial(say_with, say, f"seed {seed}"))
        benches[seed] = bench
    _write_pooled(out, benches)


def _take_summaries(source: Path, target: Path) -> None:
    """Copy a finished store of summaries to a run that has none yet."""
    if not source.exists() or target.exists():
        return

    def copy(file: Path) -> None:
        with (
            contextlib.closing(sqlite3.connect(source)) as old,
            contextlib.closing(sqlite3.connect(file)) as new,
        ):
            old.backup(new)

    write_whole(target, copy)


def _write_pooled(out: Path, benches: Mapping[int, Workbench]) -> None:
    """Average over the seeds and write metrics and report."""
    first = next(iter(benches.values()))
    measured = {seed: measure_run(bench) for seed, bench in benches.items()}
    # An example of several seeds keeps the traits of the first: only its target's count can differ.
    traits: dict[str, Traits] = {}
    for bench in benches.values():
        traits = example_traits(bench) | traits
    protocol = first.splits.description | {
        "seeds": ", ".join(map(str, benches)),
        "pooled": "each example's value is averaged over the seeds that asked it",
        "warnings": list(dict.fromkeys(w for bench in benches.values() for w in bench.splits.warnings)),
    }
    metrics = summarise(
        pool(list(measured.values())),
        protocol=protocol,
        compared=main_metrics(first.config.evaluate.ks),
        seed=first.config.seed,
        traits=traits,
        slice_pair=slice_pair(first.config),
    )
    metrics["counts"]["targets_in_history"] = targets_in_history(benches.values())
    checks = [check_run(bench)["checked"] for bench in benches.values()]
    metrics["leakage"] = {"checked": _sums(checks), "found": 0}
    add_spread(metrics, measured)
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "metrics.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_report(out, metrics=metrics, context=_context(benches))


def _sums(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts up by name; what is None everywhere is left out."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update({name: n for name, n in one.items() if n is not None})
    return dict(total)


def _context(benches: Mapping[int, Workbench]) -> ReportContext:
    """Add up the costs of all seeds, and name the reports that hold the rest."""
    runs = [report_context(bench) for bench in benches.values()]
    costs: dict[str, list[dict[str, Any]]] = {}
    for name, facts in (stage for run in runs for stage in run.stages.items()):
        shown = {key: facts.get(key) for key in ("seconds", "calls_made", "generated_tokens")}
        costs.setdefault(name, []).append(shown)
    folders = ", ".join(f"seed{seed}" for seed in benches)
    note = f"Example users and training curves of each seed are in its own report (folders {folders})."
    return replace(
        runs[0],
        title=f"{runs[0].title}, seeds {', '.join(map(str, benches))}",
        command="\n".join(dict.fromkeys(line for run in runs for line in run.command.splitlines())),
        stages={name: _sums(each) for name, each in costs.items()},
        summaries={},
        training=(),
        users=(),
        notes=[*dict.fromkeys(note for run in runs for note in run.notes), note],
    )
