"""From `scores.parquet` to `metrics.json` and the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import polars as pl

from trsr.errors import MissingExtraError
from trsr.evaluation.evaluate_scores import main_metrics, summarize
from trsr.evaluation.metrics import Floats
from trsr.evaluation.per_example import PerExampleMetrics, measure, metric_list
from trsr.evaluation.profile_quality import (
    ProfileFrame,
    ProfileRow,
    ProfileSource,
    folded,
    predictive_values,
    profile_quality,
    summarize_profiles,
    without_prefill,
)
from trsr.evaluation.report import (
    ExampleUser,
    ReportContext,
    write_report,
)
from trsr.evaluation.slices import ExampleFeatures, interest_shift
from trsr.experiment.config import RunConfig, own_ranker, swept
from trsr.experiment.experiment import NO_CAP, Experiment
from trsr.experiment.leakage import check_run
from trsr.experiment.ranking import probabilistic_rankers
from trsr.experiment.variants import profile_pair
from trsr.recommend.ranker import best_first
from trsr.summarize.counted import LABELS, field_values, title_words
from trsr.summarize.prompts import example_text, frame_text
from trsr.types import RankingExample

N_EXAMPLE_USERS = 3


def evaluate_scores(experiment: Experiment) -> dict[str, Any]:
    """Compute the metrics and write the report.

    Raises:
        DataError: the scores are from another run.
        LeakageError: something has seen a target.
        OutputError: the run folder cannot be written.
    """
    leakage = check_run(experiment)
    splits = experiment.splits
    metrics = summarize(
        measure_run(experiment),
        protocol=splits.facts,
        compared=main_metrics(experiment.config.evaluate.ks),
        seed=experiment.config.seed,
        features=example_features(experiment),
        slice_pair=slice_pair(experiment.config),
    )
    metrics["counts"]["targets_in_history"] = targets_in_history([experiment])
    metrics["leakage"] = leakage
    metrics["own_ranker"] = own_ranker(experiment.config)
    if experiment.config.sweep:
        metrics["sweep"] = swept(experiment.config)
    if (profiles := profile_facts(experiment)) is not None:
        metrics["profiles"] = profiles
    if cuts := experiment.folder.read_json("field_cuts.json", {}):
        metrics["field_cuts"] = cuts
    experiment.folder.write_json("metrics.json", metrics)
    write_report(experiment.folder.path, metrics=metrics, context=report_context(experiment))
    return {"rankers": len(metrics["rankers"])}


def measure_run(experiment: Experiment) -> PerExampleMetrics:
    """Compute every ranker's metrics of each test example from the scores of a run.

    Raises:
        DataError: the scores are from another run.
    """
    metrics = metric_list(experiment.config.evaluate.ks)
    return measure(experiment.scores, metrics, probabilistic=probabilistic_rankers(experiment.config))


def slice_pair(config: RunConfig) -> tuple[str, str] | None:
    """Return the rankers compared on every slice, with profile and without; None if the run lacks them."""
    pair = profile_pair(config)
    return pair if pair is not None and pair[0] in config.rankers else None


def _chosen(example: RankingExample) -> list[str]:
    return [item for item, label in zip(example.candidates, example.labels, strict=True) if label]


def targets_in_history(experiments: Iterable[Experiment]) -> int:
    """Return how many test examples, each id once, have a chosen candidate that their own history holds."""
    examples = (example for experiment in experiments for example in experiment.splits.test)
    return len({e.example_id for e in examples if not set(_chosen(e)).isdisjoint(e.history)})


def example_features(experiment: Experiment) -> dict[str, ExampleFeatures]:
    """Return the features of each test example by its id, from data before its target only.

    Raises:
        DataError: the examples were made from another dataset.
    """
    frame = experiment.splits.training_events.group_by("item_id").agg(n=pl.len())
    counts: dict[str, int] = dict(frame.iter_rows())
    summarizer = experiment.summarizer
    fields, title = summarizer.category_fields, summarizer.title_field
    read = {item_id for example in experiment.splits.test for item_id in example.history}
    values = {
        item_id: field_values(item, fields) if fields else title_words(item, title)
        for item_id, item in summarizer.items.items()
        if item_id in read
    }
    return {
        example.example_id: ExampleFeatures(
            history_length=len(example.history),
            target_count=min((counts.get(item, 0) for item in _chosen(example)), default=None),
            shift=interest_shift([values[item] for item in example.history]),
        )
        for example in experiment.splits.test
    }


def profile_facts(experiment: Experiment) -> dict[str, Any] | None:
    """Return the quality of the profiles of the test examples; None for the method `none`.

    Without bm25s the measures of prediction are left out.
    """
    config, examples = experiment.config, experiment.splits.test
    if config.summary.method == "none":
        return None
    frame, source_of = profile_frame(experiment), _source_maker(experiment)
    rows = []
    for example in examples:
        source = source_of(example)
        quality = profile_quality(source, frame)
        rows.append(ProfileRow(example.example_id, example.user_id, source.text, quality))
    bodies = {name: without_prefill(profile, frame.prefill) for name, profile in experiment.profiles.items()}
    predicted: dict[str, Floats] = {}
    with contextlib.suppress(MissingExtraError):
        predicted = predictive_values(examples, bodies, experiment.bm25_index)
    return summarize_profiles(rows, predicted, method=config.summary.method, seed=config.seed)


def profile_frame(experiment: Experiment) -> ProfileFrame:
    """Return the words of this run's profiles that do not come from users."""
    info, template = experiment.dataset.info, experiment.summarizer.template
    fields = " ".join(info.text_fields).replace("_", " ")
    labels = " ".join(LABELS)
    if not experiment.config.summary.needs_calls:
        return ProfileFrame(folded(f"{labels} {fields}"))
    counts = labels if experiment.config.summary.counts else ""
    return ProfileFrame(
        words=folded(f"{frame_text(template)} {fields} {counts}"),
        example_words=folded(example_text(template)),
        prefill=template.own_text("prefill"),
    )


def _source_maker(experiment: Experiment) -> Callable[[RankingExample], ProfileSource]:
    """Return a function from an example to its profile and the texts it was made from."""
    summarizer, written = experiment.summarizer, experiment.config.summary.needs_calls
    # A counted profile reads the whole title; the categories, which both may name, are added below.
    title = tuple(filter(None, [summarizer.title_field]))
    text = summarizer.item_text if written else experiment.dataset.item_texts(title, NO_CAP, None)

    def source(example: RankingExample) -> ProfileSource:
        categories = [
            field_values(summarizer.items[item], summarizer.category_fields) for item in example.history
        ]
        texts = [
            "; ".join([text(item), *values]) for item, values in zip(example.history, categories, strict=True)
        ]
        versions = experiment.summary_texts[example.example_id] if written else []
        return ProfileSource(
            text=experiment.profiles.get(example.example_id, ""),
            item_texts=texts,
            categories=categories,
            versions=versions[: len(summarizer.blocks(example.history))],  # a tree's merges come after them
        )

    return source


def report_context(experiment: Experiment) -> ReportContext:
    """Gather the parts of the report other than the metrics."""
    folder, scores = experiment.folder, experiment.scores
    stages, sessions = folder.stages(), folder.sessions()
    summaries = {"method": experiment.config.summary.method} | stages.get("summarize", {})
    log = [] if experiment.config.train is None else folder.read_json("training.json", {"log": []})["log"]
    return ReportContext(
        title=experiment.config.name,
        command="\n".join(dict.fromkeys(session["command"] for session in sessions)),
        config_yaml=(folder.path / "config.yaml").read_text(encoding="utf-8"),
        environment={k: v for k, v in sessions[0].items() if k not in ("command", "process")},
        stages=stages,
        summaries={k: v for k, v in summaries.items() if k not in ("seconds", "sha256")},
        training=log,
        users=[_example_user(experiment, e, scores) for e in experiment.splits.test[:N_EXAMPLE_USERS]],
        notes=_notes(experiment),
    )


def _notes(experiment: Experiment) -> list[str]:
    notes = []
    sessions = experiment.folder.sessions()
    if (
        len({json.dumps([s.get(k) for k in ("commit", "versions", "python", "system")]) for s in sessions})
        > 1
    ):
        notes.append(
            f"The run was made in {len(sessions)} sessions that differ in commit, versions or machine; the "
            "environment below is from the first, `env.json` has them all."
        )
    calibration = str(experiment.folder.stages().get("calibrate", {}).get("calibration", ""))
    if calibration.startswith("none"):
        notes.append(f"The scores of llm are not calibrated ({calibration.removeprefix('none: ')}).")
    return notes + cut_sentences(experiment.folder.read_json("field_cuts.json", {}))


def cut_sentences(cuts: Mapping[str, Any]) -> list[str]:
    """Describe which fields the caps of `Experiment.record_cuts` cut, and by how much."""
    sentences = []
    for part, found in cuts.items():
        unit = "tokens" if part == "prompt" else "words"
        cut = [
            f"{field}: {counts['cut_texts']:,} of {counts['texts']:,} texts cut, "
            f"{counts['cut_tokens'] / counts['tokens']:.0%} of their {unit}"
            for field, counts in found["fields"].items()
            if counts["cut_tokens"]
        ]
        if cut:
            sentences.append(f"{part}.max_field_tokens ({found['cap']}) cut {'; '.join(cut)}.")
    return sentences


def _example_user(experiment: Experiment, example: RankingExample, scores: pl.DataFrame) -> ExampleUser:
    """Show one user in full, with the candidates in the order of the last configured ranker."""
    ranker, prompt = experiment.config.rankers[-1], experiment.config.prompt
    rows = scores.filter((pl.col("example_id") == example.example_id) & (pl.col("ranker") == ranker))
    labels = dict(zip(rows["item_id"], rows["label"], strict=True))
    text = experiment.dataset.item_texts(prompt.fields, prompt.max_field_tokens, None)
    written = experiment.summary_texts.get(example.example_id, [])
    order = best_first(
        example.candidates,
        rows["margin"].to_numpy(),
        None if rows["score"].has_nulls() else rows["score"].to_numpy(),
    )
    return ExampleUser(
        user_id=example.user_id,
        blocks=tuple(
            (tuple(map(text, block.item_ids)), written[block.index] if written else "")
            for block in experiment.summarizer.blocks(example.history)
        ),
        profile=experiment.profiles.get(example.example_id, ""),
        recent_items=tuple(map(text, example.history[-prompt.n_recent :])) if prompt.n_recent else (),
        candidates=tuple((text(item.item_id), item.score, labels[item.item_id]) for item in order),
    )
