"""From `scores.parquet` to `metrics.json` and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from trsr.config import RunConfig, own_ranker, swept
from trsr.data.files import read_json, read_table
from trsr.evaluate.aggregate import main_metrics, summarise
from trsr.evaluate.context import (
    ExampleBlock,
    ExampleCandidate,
    ExampleUser,
    ReportContext,
    StageCost,
    TrainingRow,
)
from trsr.evaluate.measured import Measured, measure, metric_list
from trsr.evaluate.report import write_report
from trsr.pipeline.field_cuts import cut_sentences, read_cuts
from trsr.pipeline.leakage import check_run
from trsr.pipeline.profile_quality import profile_facts
from trsr.pipeline.ranking import probabilistic_rankers
from trsr.pipeline.traits import example_traits, targets_in_history
from trsr.pipeline.variants import profile_pair
from trsr.pipeline.workbench import Workbench
from trsr.rank.base import ranked
from trsr.types import RankingExample

N_EXAMPLE_USERS = 3


def evaluate_scores(bench: Workbench) -> dict[str, Any]:
    """Compute the metrics and write the report.

    Raises:
        DataError: the scores are not those of this run.
        LeakageError: something has seen a target.
        OutputError: the run folder cannot be written.
    """
    leakage = check_run(bench)
    splits = bench.splits
    metrics = summarise(
        measure_run(bench),
        protocol={**splits.description, "counts": splits.counts, "warnings": list(splits.warnings)},
        compared=main_metrics(bench.config.evaluate.ks),
        seed=bench.config.seed,
        traits=example_traits(bench),
        slice_pair=asked_pair(bench.config),
    )
    metrics["counts"]["targets_in_history"] = targets_in_history([bench])
    metrics["leakage"] = leakage
    metrics["own_ranker"] = own_ranker(bench.config)
    if bench.config.sweep:
        metrics["sweep"] = swept(bench.config)
    profiles = profile_facts(bench)
    if profiles is not None:
        metrics["profiles"] = profiles
    if cuts := read_cuts(bench):
        metrics["field_cuts"] = cuts
    bench.folder.write_json("metrics.json", metrics)
    write_report(bench.folder.path, metrics=metrics, context=report_context(bench))
    return {"rankers": len(metrics["rankers"])}


def measure_run(bench: Workbench) -> Measured:
    """Compute every ranker's metrics of each test example from the scores of a run.

    Raises:
        DataError: the scores are not those of this run.
    """
    metrics = metric_list(bench.config.evaluate.ks)
    return measure(_scores(bench), metrics, probabilistic=probabilistic_rankers(bench.config))


def asked_pair(config: RunConfig) -> tuple[str, str] | None:
    """Return the rankers that are compared on every slice: with profile and without; None if not asked."""
    pair = profile_pair(config)
    return pair if pair is not None and pair[0] in config.rankers else None


def _scores(bench: Workbench) -> pl.DataFrame:
    return read_table(bench.folder.path / "scores.parquet")


def report_context(bench: Workbench) -> ReportContext:
    """Gather what the report tells beside the metrics."""
    folder, scores = bench.folder, _scores(bench)
    stages, sittings = folder.stages(), folder.sittings()
    summaries = {"method": bench.config.summary.method} | stages.get("summarize", {})
    return ReportContext(
        title=bench.config.name,
        command="\n".join(dict.fromkeys(sitting["command"] for sitting in sittings)),
        config_yaml=(folder.path / "config.yaml").read_text(encoding="utf-8"),
        environment={k: v for k, v in sittings[0].items() if k not in ("command", "process")},
        stages=[
            StageCost(name, facts["seconds"], facts.get("calls_made"), facts.get("generated_tokens"))
            for name, facts in stages.items()
        ],
        summaries={k: v for k, v in summaries.items() if k not in ("seconds", "sha256")},
        training=_training_rows(bench),
        training_metric="validation recall@3 + @5 + @10",
        users=[_example_user(bench, e, scores) for e in bench.splits.test[:N_EXAMPLE_USERS]],
        notes=[*_sitting_notes(sittings), *_calibration_notes(stages), *cut_sentences(read_cuts(bench))],
    )


def _sitting_notes(sittings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say it where not all stages were made by the same code on the same machine."""
    kinds = {json.dumps([s.get(k) for k in ("commit", "versions", "python", "system")]) for s in sittings}
    if len(kinds) == 1:
        return []
    return [
        f"The run was made in {len(sittings)} sittings that differ in commit, versions or machine; the "
        "environment below is that of the first, `env.json` has them all."
    ]


def _calibration_notes(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say it where the fine-tuned model's scores are not calibrated."""
    said = str(stages.get("calibrate", {}).get("calibration", ""))
    if not said.startswith("none"):
        return []
    return [f"The scores of llm are not calibrated ({said.removeprefix('none: ')})."]


def _training_rows(bench: Workbench) -> list[TrainingRow]:
    file = bench.folder.path / "training.json"
    if bench.config.train is None or not file.exists():
        return []
    log = read_json(file)["log"]
    return [TrainingRow(int(r["step"]), r.get("loss"), r.get("eval_recall_sum")) for r in log]


def _example_user(bench: Workbench, example: RankingExample, scores: pl.DataFrame) -> ExampleUser:
    """Show one user in full, with the candidates as the last configured ranker orders them."""
    ranker = bench.config.rankers[-1]
    rows = scores.filter((pl.col("example_id") == example.example_id) & (pl.col("ranker") == ranker))
    labels = dict(zip(rows["item_id"], rows["label"], strict=True))
    text = bench.item_texts(bench.config.prompt.fields, bench.config.prompt.max_field_tokens, None)
    written = bench.summary_texts.get(example.example_id, [])
    blocks = bench.summariser.blocks(example.history)
    n_recent = bench.config.prompt.n_recent
    return ExampleUser(
        user_id=example.user_id,
        blocks=tuple(
            ExampleBlock(tuple(text(i) for i in block.item_ids), written[block.index] if written else "")
            for block in blocks
        ),
        profile=bench.profiles.get(example.example_id, ""),
        recent_items=tuple(text(i) for i in example.history[-n_recent:]) if n_recent else (),
        candidates=tuple(
            ExampleCandidate(text(item.item_id), item.score, labels[item.item_id])
            for item in ranked(
                example,
                rows["margin"].to_numpy(),
                None if rows["score"].has_nulls() else rows["score"].to_numpy(),
            )
        ),
    )
