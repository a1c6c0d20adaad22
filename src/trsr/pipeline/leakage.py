"""Proves for a run folder that nothing has seen a target that it is to help predict, nor anything later.

Looked at are the examples as they are written, the events that popularity and baselines learn from, the rows
that the model is fine-tuned, calibrated and fused on, and every profile. A profile is a function of its
prompts, and a prompt's key is known: a profile is derived again, call by call, from its example's history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trsr.data.files import read_table
from trsr.data.fitting import fit_events
from trsr.data.leakage import Checked, all_or_error, fit_leaks, history_leaks, split_leaks
from trsr.llm.base import prompt_key
from trsr.pipeline.variants import variant_benches
from trsr.pipeline.warm_start import warm_start_leaks
from trsr.pipeline.workbench import Workbench
from trsr.summarize.places import is_database
from trsr.summarize.plan import plan_calls
from trsr.summarize.run import Summariser, with_counts
from trsr.summarize.store import StoredCall
from trsr.summarize.stores import open_store
from trsr.types import History, RankingExample

PROFILES = "profiles.parquet"


def check_examples(bench: Workbench) -> dict[str, int]:
    """Check the examples, and what may be learned for them; return how many rows of each were checked.

    Raises:
        LeakageError: one has seen a target.
    """
    dataset, splits = bench.dataset, bench.splits
    return all_or_error(
        {
            "examples": history_leaks(dataset, splits),
            "training_and_validation_rows": split_leaks(splits),
            "fit_events": fit_leaks(dataset, splits, fit_events(dataset, splits)),
        }
    )


def check_run(bench: Workbench) -> dict[str, Any]:
    """Check a finished run and its variants; return the entry `leakage` of `metrics.json`.

    Returns:
        `checked`: rows by kind; among `profiles`, `profiles_derived_again` are those proven from the store's
        texts, while the others are known by the items of their last call only. `found` is 0.

    Raises:
        LeakageError: something has seen a target.
    """
    total: Counter[str] = Counter()
    variants = [v for v in variant_benches(bench).values() if (v.folder.path / PROFILES).exists()]
    for one in (bench, *variants):
        profiles, n_derived = profile_leaks(one)
        total.update(check_examples(one))
        total.update(all_or_error({"profiles": profiles, "scores_learned_from": learned_score_leaks(one)}))
        if one.config.train is not None and one.config.train.warm_start is not None:
            total.update(all_or_error({"examples_against_warm_start": warm_start_leaks(one)}))
        total["profiles_derived_again"] += n_derived
    return {"checked": dict(total), "found": 0}


def profile_leaks(bench: Workbench) -> tuple[Checked, int]:
    """Look for profiles that do not come from their example's history alone.

    Returns:
        What was found, and how many profiles were derived again from history and store. The others cannot be
        where templates or the store have changed since; of them it is known that they have seen no more
        items than the history has, and that the call that wrote them read only items of it.
    """
    examples = bench.all_examples()
    frame = read_table(bench.folder.path / PROFILES)
    rows: dict[str, dict[str, Any]] = {row["example_id"]: row for row in frame.iter_rows(named=True)}
    leaks = [
        f"the profile of {name!r} serves {n} examples, which ask at different times"
        for name, n in Counter(example.example_id for example in examples).items()
        if n > 1
    ]
    stored: dict[str, StoredCall] = {}
    keys: dict[str, list[str]] = {}
    place = bench.store_place
    if bench.config.summary.needs_calls and (is_database(place) or Path(place).exists()):
        with open_store(place) as store:
            stored = store.calls([row["key"] for row in rows.values() if row["key"] is not None])
            keys = {e.example_id: _keys(bench.summariser, e, rows, stored) for e in examples}
            stored |= store.calls(sorted({key for found in keys.values() for key in found}))
    n_derived = 0
    for example in examples:
        row = rows.get(example.example_id)
        if row is None:
            continue  # it is read as an empty profile
        asked = keys.get(example.example_id, [])
        said, derived = _one_profile(bench.summariser, example, row, stored, asked)
        n_derived += derived
        leaks += [f"the profile of the example {example.example_id!r} {said}"] if said else []
    return Checked(len(rows), tuple(leaks)), n_derived


def learned_score_leaks(bench: Workbench) -> Checked:
    """Look for scores of others than validation examples in what calibration and fusion learn from."""
    file = bench.folder.path / "valid_scores.parquet"
    if not file.exists():
        return Checked(0)
    names = read_table(file, ["example_id"])["example_id"]
    allowed = {example.example_id for example in bench.splits.valid}
    foreign = sorted(set(names) - allowed)
    return Checked(
        len(names), tuple(f"{file.name} holds the example {name!r}, not of validation" for name in foreign)
    )


def _one_profile(
    summariser: Summariser,
    example: RankingExample,
    row: dict[str, Any],
    stored: dict[str, StoredCall],
    keys: Sequence[str],
) -> tuple[str, bool]:
    """Return what is wrong with a profile, empty for nothing, and whether it was derived again.

    Args:
        summariser: What profiles depend on.
        example: Whose profile it is.
        row: Of `profiles.parquet`.
        stored: Calls by key.
        keys: Of the calls that the example's history asks, in their order.
    """
    if row["user_id"] != example.user_id or row["n_items"] > len(example.history):
        return f"has seen {row['n_items']} items, its history has {len(example.history)}", False
    history = History(example.user_id, example.history)
    calls = plan_calls(summariser.blocks(example.history), summariser.config)
    if not calls:
        text = summariser.without_calls(history).text
        return ("", True) if row["text"] == text else ("is not what this version makes of its history", False)
    last = stored.get(row["key"])
    if last is None:
        return "", False
    if foreign := Counter(last.item_ids) - Counter(example.history):
        return f"was written from {next(iter(foreign))!r}, which is not in its history", False
    if row["text"] != (last.text and with_counts(last.text, history, summariser)):
        return "is not the text that the store has under its key", False
    found = [stored[key].text if key in stored else None for key in keys]
    return "", keys[-1:] == [row["key"]] and found == row["texts"]


def _keys(
    summariser: Summariser,
    example: RankingExample,
    rows: dict[str, dict[str, Any]],
    last: dict[str, StoredCall],
) -> list[str]:
    """Return the key of every call that an example's history asks, given the texts that were written.

    Empty where the profile's last call is not in the store, or its plan had other calls.
    """
    row = rows.get(example.example_id)
    calls = plan_calls(summariser.blocks(example.history), summariser.config)
    if row is None or row["key"] not in last or len(row["texts"]) != len(calls):
        return []
    texts, model, params = row["texts"], last[row["key"]].model, summariser.params
    return [
        prompt_key(summariser.prompt(call, [texts[i] for i in call.inputs]), model, params) for call in calls
    ]
