"""Runs one experiment with several seeds and pools what came out.

Each seed is an ordinary run folder `RUN/seedN`, which can be killed, taken up, evaluated and read like any
other. Summaries do not depend on the seed: each run begins with those the one before it wrote.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trsr.errors import RunMismatchError
from trsr.evaluate.evaluation import add_spread, main_metrics, pool, summarise
from trsr.evaluate.report import ReportContext, StageCost, write_report
from trsr.evaluate.slices import Traits
from trsr.experiment.evaluating import (
    asked_pair,
    example_traits,
    measure_run,
    report_context,
    targets_in_history,
)
from trsr.experiment.experiment import Workbench
from trsr.experiment.leakage import check_run
from trsr.experiment.stages import run_stages
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
    """Run every seed to its end, then write `metrics.json` and `report.html` of all.

    Args:
        out: The folder above the runs.
        open_bench: (seed, run folder) -> its workbench.
        seeds: The seeds, in order.
        say: Is told what happens.

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
        run_stages(bench, say=partial(_tell, say, seed))
        benches[seed] = bench
    _write_pooled(out, benches)


def _tell(say: Callable[[str], None], seed: int, line: str) -> None:
    say(f"seed {seed}: {line}")


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
    # An example that several seeds ask keeps the traits of the first: only its target's count can differ.
    traits: dict[str, Traits] = {}
    for bench in benches.values():
        traits = example_traits(bench) | traits
    seeds = ", ".join(map(str, benches))
    protocol = first.splits.description | {
        "seeds": seeds,
        "pooled": "each example's value is averaged over the seeds that asked it",
        "warnings": list(dict.fromkeys(w for bench in benches.values() for w in bench.splits.warnings)),
    }
    metrics = summarise(
        pool(list(measured.values())),
        protocol=protocol,
        compared=main_metrics(first.config.evaluate.ks),
        seed=first.config.seed,
        traits=traits,
        slice_pair=asked_pair(first.config),
    )
    metrics["counts"]["targets_in_history"] = targets_in_history(benches.values())
    metrics["leakage"] = _add_checks([check_run(bench) for bench in benches.values()])
    add_spread(metrics, measured)
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / "metrics.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_report(out, metrics=metrics, context=_context(benches, f"{first.config.name}, seeds {seeds}"))


def _context(benches: Mapping[int, Workbench], title: str) -> ReportContext:
    """Tell of all seeds what can be added up, and where the rest stands."""
    runs = {seed: report_context(bench) for seed, bench in benches.items()}
    first = next(iter(runs.values()))
    folders = ", ".join(f"seed{seed}" for seed in runs)
    note = f"Example users and training curves of each seed stand in its own report (folders {folders})."
    return replace(
        first,
        title=title,
        command="\n".join(dict.fromkeys(line for run in runs.values() for line in run.command.splitlines())),
        stages=_add_costs([cost for run in runs.values() for cost in run.stages]),
        summaries={},
        training=(),
        users=(),
        notes=[*dict.fromkeys(note for run in runs.values() for note in run.notes), note],
    )


def _add_checks(checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what the leakage checks of the seeds looked at."""
    total: Counter[str] = Counter()
    for check in checks:
        total.update(check["checked"])
    return {"checked": dict(total), "found": sum(check["found"] for check in checks)}


def _add_costs(costs: list[StageCost]) -> list[StageCost]:
    """Add up what a stage took in every seed; what is None everywhere stays None."""
    totals: dict[str, Counter[str]] = {}
    for cost in costs:
        numbers: dict[str, Any] = {"seconds": cost.seconds, "calls": cost.calls, "tokens": cost.tokens}
        totals.setdefault(cost.name, Counter()).update({k: v for k, v in numbers.items() if v is not None})
    return [
        StageCost(name, total["seconds"], total.get("calls"), total.get("tokens"))
        for name, total in totals.items()
    ]
