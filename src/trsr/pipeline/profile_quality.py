"""Gathers the profiles of a run's test examples with their sources, for `metrics.json` and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trsr.errors import MissingExtraError
from trsr.evaluate.metrics import Floats
from trsr.evaluate.profile_prediction import predictive_values
from trsr.evaluate.profile_quality import ProfileFrame, ProfileSource, profile_quality, without_prefill
from trsr.evaluate.profile_summary import ProfileRow, summarise_profiles
from trsr.evaluate.profile_words import folded
from trsr.pipeline.workbench import NO_CAP, Workbench
from trsr.summarize.counted import LABELS, field_values
from trsr.summarize.prompts import example_text, frame_text
from trsr.types import RankingExample


def profile_facts(bench: Workbench) -> dict[str, Any] | None:
    """Return what the profiles of the test examples are worth; None for the method `none`.

    Without bm25s the measures of prediction are left out.
    """
    if bench.config.summary.method == "none":
        return None
    frame, source_of = profile_frame(bench), _source_maker(bench)
    rows = []
    for example in bench.splits.test:
        source = source_of(example)
        quality = profile_quality(source, frame)
        rows.append(ProfileRow(example.example_id, example.user_id, source.text, quality))
    return summarise_profiles(
        rows, _prediction(bench, frame), method=bench.config.summary.method, seed=bench.config.seed
    )


def profile_frame(bench: Workbench) -> ProfileFrame:
    """Return the words of this run's profiles that do not come from users."""
    info, template = bench.dataset.info, bench.summariser.template
    fields = " ".join(info.text_fields).replace("_", " ")
    labels = " ".join(LABELS)
    if not bench.config.summary.needs_calls:
        return ProfileFrame(folded(f"{labels} {fields}"))
    counts = labels if bench.config.summary.counts else ""
    return ProfileFrame(
        words=folded(f"{frame_text(template)} {fields} {counts}"),
        example_words=folded(example_text(template)),
        prefill=template.own_text("prefill"),
    )


def _source_maker(bench: Workbench) -> Callable[[RankingExample], ProfileSource]:
    """Return a function from an example to its profile and what that was made from."""
    summariser, written = bench.summariser, bench.config.summary.needs_calls
    # A counted profile reads the whole title; what both may say of an item by its category is added below.
    title = tuple(filter(None, [summariser.title_field]))
    text = summariser.item_text if written else bench.item_texts(title, NO_CAP, None)

    def source(example: RankingExample) -> ProfileSource:
        name = example.example_id
        categories = [
            field_values(summariser.items[item], summariser.category_fields) for item in example.history
        ]
        versions = bench.summary_texts[name] if written else []
        return ProfileSource(
            text=bench.profiles.get(name, ""),
            item_texts=[
                "; ".join([text(item), *values])
                for item, values in zip(example.history, categories, strict=True)
            ],
            categories=categories,
            # A tree's merges stand behind the summaries of the blocks.
            versions=versions[: len(summariser.blocks(example.history))],
        )

    return source


def _prediction(bench: Workbench, frame: ProfileFrame) -> dict[str, Floats]:
    bodies = {name: without_prefill(profile, frame.prefill) for name, profile in bench.profiles.items()}
    try:
        return predictive_values(bench.splits.test, bodies, bench.bm25_index)
    except MissingExtraError:
        return {}
