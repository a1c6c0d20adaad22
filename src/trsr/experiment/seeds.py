"""Runs one experiment with several seeds and pools the results.

Each seed is an ordinary run folder `RUN/seedN`, which can be killed, resumed and evaluated like any other.
Summaries do not depend on the seed: each run starts with a copy of the store of the run before it.
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
from trsr.evaluation.evaluate_scores import add_spread, main_metrics, pool, summarize
from trsr.evaluation.report import ReportContext, write_report
from trsr.evaluation.slices import ExampleFeatures
from trsr.experiment.evaluating import (
    example_features,
    measure_run,
    report_context,
    slice_pair,
    targets_in_history,
)
from trsr.experiment.experiment import Experiment
from trsr.experiment.leakage import check_run
from trsr.experiment.stages import notify_with, run_stages
from trsr.storage import atomic_write

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
    open_experiment: Callable[[int, Path], Experiment],
    seeds: range,
    notify: Callable[[str], None] = lambda _: None,
) -> None:
    """Run every seed to its end, then write `metrics.json` and the report of all of them.

    Args:
        out: The folder above the runs.
        open_experiment: (seed, run folder) -> its experiment.
        seeds: The seeds, in order.
        notify: Receives a line for each finished stage.

    Raises:
        RunMismatchError: `out`, or a run in it, belongs to another configuration.
        OutputError: a folder cannot be written.
    """
    check_seeds_folder(out)
    experiments: dict[int, Experiment] = {}
    for seed in seeds:
        experiment = open_experiment(seed, out / f"seed{seed}")
        if experiments:
            _take_summaries(experiments[seed - 1].folder.path / _STORE, experiment.folder.path / _STORE)
        run_stages(experiment, notify=partial(notify_with, notify, f"seed {seed}"))
        experiments[seed] = experiment
    _write_pooled(out, experiments)


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

    atomic_write(target, copy)


def _write_pooled(out: Path, experiments: Mapping[int, Experiment]) -> None:
    """Average over the seeds and write metrics and report."""
    first = next(iter(experiments.values()))
    measured = {seed: measure_run(experiment) for seed, experiment in experiments.items()}
    # An example of several seeds keeps the features of the first: only its target's count can differ.
    features: dict[str, ExampleFeatures] = {}
    for experiment in experiments.values():
        features = example_features(experiment) | features
    protocol = first.splits.description | {
        "seeds": ", ".join(map(str, experiments)),
        "pooled": "each example's value is averaged over the seeds that have it",
        "warnings": list(
            dict.fromkeys(w for experiment in experiments.values() for w in experiment.splits.warnings)
        ),
    }
    metrics = summarize(
        pool(list(measured.values())),
        protocol=protocol,
        compared=main_metrics(first.config.evaluate.ks),
        seed=first.config.seed,
        features=features,
        slice_pair=slice_pair(first.config),
    )
    metrics["counts"]["targets_in_history"] = targets_in_history(experiments.values())
    checks = [check_run(experiment)["checked"] for experiment in experiments.values()]
    metrics["leakage"] = {"checked": _sums(checks), "found": 0}
    add_spread(metrics, measured)
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    atomic_write(out / "metrics.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_report(out, metrics=metrics, context=_context(experiments))


def _sums(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts by name; names that are None everywhere are left out."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update({name: n for name, n in one.items() if n is not None})
    return dict(total)


def _context(experiments: Mapping[int, Experiment]) -> ReportContext:
    """Add the costs of all seeds, and name the reports that hold the rest."""
    runs = [report_context(experiment) for experiment in experiments.values()]
    costs: dict[str, list[dict[str, Any]]] = {}
    for name, facts in (stage for run in runs for stage in run.stages.items()):
        shown = {key: facts.get(key) for key in ("seconds", "calls_made", "generated_tokens")}
        costs.setdefault(name, []).append(shown)
    folders = ", ".join(f"seed{seed}" for seed in experiments)
    note = f"Example users and training curves of each seed are in its own report (folders {folders})."
    return replace(
        runs[0],
        title=f"{runs[0].title}, seeds {', '.join(map(str, experiments))}",
        command="\n".join(dict.fromkeys(line for run in runs for line in run.command.splitlines())),
        stages={name: _sums(each) for name, each in costs.items()},
        summaries={},
        training=(),
        users=(),
        notes=[*dict.fromkeys(note for run in runs for note in run.notes), note],
    )
