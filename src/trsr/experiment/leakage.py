"""Proves for a run folder that nothing has seen a target that it is to help predict, nor anything later.

Looked at are the examples as they are written, the events that popularity and baselines learn from, the rows
that the model is fine-tuned, calibrated and fused on, and every profile. A profile is a function of its
prompts, and a prompt's key is known: a profile is derived again, call by call, from its example's history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trsr.errors import DataError, LeakageError, RunMismatchError
from trsr.experiment.experiment import Workbench
from trsr.experiment.variants import variant_benches
from trsr.llm import models
from trsr.llm.base import prompt_key
from trsr.recommend.model_folder import check_adapter, read_adapter_info
from trsr.splitting.examples import Splits, read_splits
from trsr.splitting.leakage import Checked, all_or_error, fit_events, fit_leaks, history_leaks, split_leaks
from trsr.storage import read_table
from trsr.summarize.plan import plan_calls
from trsr.summarize.store import StoredCall, open_store
from trsr.summarize.store_url import is_database
from trsr.summarize.user_plan import Summariser, with_counts
from trsr.types import History, RankingExample


def check_warm_start(bench: Workbench) -> None:
    """Refuse a model to begin with that was made for something else, or has seen a target of this run.

    Raises:
        RunMismatchError: it is no model folder, or its base model, template, answers or LoRA are others.
        LeakageError: it has seen a target, or nobody can tell.
    """
    config = bench.config
    if config.train is None or config.train.warm_start is None:
        return
    folder = Path(config.train.warm_start)
    info = read_adapter_info(folder)
    base = models.model_id(config.recommender.model)
    check_adapter(
        info,
        folder,
        template_hash=bench.ranking_template.hash,
        prompt_version=bench.tokenizer.prompt_version,
        base_model_id=base,
        quantization=config.recommender.quantization,
    )
    wanted = config.train.lora.model_dump(mode="json")
    if info.training.get("lora") != wanted:
        raise RunMismatchError(
            f"The model in {folder} has the LoRA {info.training.get('lora')}, but train.lora is {wanted}; "
            "give train.lora the values of that model, or leave out train.warm_start."
        )
    if info.labels != bench.labels:
        raise RunMismatchError(
            f"The model in {folder} answers with the tokens {info.labels}, the prompt of this run asks for "
            f"{bench.labels}; use its prompt, or leave out train.warm_start."
        )
    all_or_error({"examples": warm_start_leaks(bench)})


def warm_start_leaks(bench: Workbench) -> Checked:
    """Look for targets that the model which training begins with has already seen.

    It has seen the training examples of its run, and of the runs whose models that one began with: their
    targets, and what their histories hold unless the example that is asked now shows it too. Validation
    examples chose it, so none of these may be a test example now.

    Raises:
        LeakageError: one of these runs has no examples, so nobody can tell.
    """
    learned, chosen_by = _Seen(), _Seen()
    for splits in _earlier(bench):
        learned.add(splits.train)
        chosen_by.add(splits.valid)
    valid, test = bench.splits.valid, bench.splits.test
    found = [*learned.targets_of((*valid, *test)), *chosen_by.targets_of(test)]
    return Checked(
        len(valid) + len(test),
        tuple(f"the model of warm_start has seen the target of the example {name!r}" for name in found),
    )


class _Seen:
    """Pairs of user and item: chosen, or met in a history."""

    def __init__(self) -> None:
        self._chosen: set[tuple[str, str]] = set()
        self._met: set[tuple[str, str]] = set()

    def add(self, examples: Iterable[RankingExample]) -> None:
        for example in examples:
            self._chosen |= {(example.user_id, item_id) for item_id in _positives(example)}
            self._met |= {(example.user_id, item_id) for item_id in example.history}

    def targets_of(self, examples: Iterable[RankingExample]) -> Iterator[str]:
        """Yield the ids of examples of which a target was seen."""
        for example in examples:
            targets = {(example.user_id, item_id) for item_id in _positives(example)}
            shown = {(example.user_id, item_id) for item_id in example.history}
            if targets & self._chosen or (targets - shown) & self._met:
                yield example.example_id


def _earlier(bench: Workbench) -> Iterator[Splits]:
    """Yield the examples of the runs that the model comes from, the newest first."""
    model = bench.config.train.warm_start if bench.config.train else None
    while model is not None:
        run = Path(model).parent
        try:
            yield read_splits(run / "examples")
        except DataError as error:
            raise LeakageError(
                f"{run} holds no examples, so nobody can tell what the model in {model} has seen; "
                "leave it in the run folder that made it, or leave out train.warm_start."
            ) from error
        model = read_adapter_info(Path(model)).training.get("warm_start")


def _positives(example: RankingExample) -> Iterable[str]:
    return (item for item, label in zip(example.candidates, example.labels, strict=True) if label)


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
