"""Checks that nothing in a run has seen a target that it helps to predict, nor anything later.

Checked are the examples as they are written, every profile, the scores that calibration and fusion learn
from, and the model that training starts with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trsr.errors import DataError, LeakageError, RunMismatchError
from trsr.experiment.experiment import Experiment
from trsr.experiment.variants import variant_experiments
from trsr.llm import models
from trsr.recommend.model_folder import check_adapter, read_adapter_info
from trsr.splitting.leakage import history_leaks, split_leaks
from trsr.splitting.split import read_examples
from trsr.storage import read_table
from trsr.summarize.store import StoredCall, open_store
from trsr.summarize.store_url import is_database_url
from trsr.summarize.user_plan import plan_user, with_counts
from trsr.types import History, RankingExample

PROFILES = "profiles.parquet"


def _refuse(leaks: Sequence[str]) -> None:
    if leaks:
        raise LeakageError(
            f"{len(leaks)} leaks were found, the first: {leaks[0]}; expected only events before each"
            " target, so no metric was written: make the run again in another folder."
        )


def check_examples(experiment: Experiment) -> dict[str, int]:
    """Check the examples; return how many were checked, by kind.

    Raises:
        LeakageError: one has seen a target.
    """
    splits = experiment.splits
    _refuse([*history_leaks(splits), *split_leaks(splits)])
    n_before = len(splits.train) + len(splits.valid)
    return {"examples": n_before + len(splits.test), "training_and_validation_rows": n_before}


def check_run(experiment: Experiment) -> dict[str, Any]:
    """Check a finished run and its variants; return the entry `leakage` of `metrics.json`.

    Raises:
        LeakageError: something has seen a target.
    """
    total: Counter[str] = Counter()
    variants = [v for v in variant_experiments(experiment).values() if (v.folder.path / PROFILES).exists()]
    for one in (experiment, *variants):
        total.update(check_examples(one))
        total.update(profiles=_check_profiles(one), scores_learned_from=_check_learned_scores(one))
        if one.config.train is not None and one.config.train.warm_start is not None:
            _refuse(warm_start_leaks(one))
            total.update(examples_against_warm_start=len(one.splits.valid) + len(one.splits.test))
    return {"checked": dict(total), "found": 0}


def _check_profiles(experiment: Experiment) -> int:
    """Refuse profiles that do not come from their example's history alone; return how many there are.

    A profile has read no more items than the history has, and its text equals the stored text under its key,
    written from items of the history. Where the store is gone only the number of items is known.
    """
    rows = {
        row["example_id"]: row for row in read_table(experiment.folder.path / PROFILES).iter_rows(named=True)
    }
    stored: dict[str, StoredCall] = {}
    place = experiment.store_place
    if experiment.config.summary.needs_calls and (is_database_url(place) or Path(place).exists()):
        with open_store(place) as store:
            stored = store.calls([row["key"] for row in rows.values() if row["key"] is not None])
    examples = [example for example in experiment.all_examples() if example.example_id in rows]
    _refuse(
        [
            f"the profile of the example {example.example_id!r} {problem}"
            for example in examples
            if (problem := _profile_problem(experiment, example, rows[example.example_id], stored))
        ]
    )
    return len(rows)


def _profile_problem(
    experiment: Experiment, example: RankingExample, row: dict[str, Any], stored: dict[str, StoredCall]
) -> str | None:
    history, summarizer = History(example.user_id, example.history), experiment.summarizer
    if row["user_id"] != example.user_id or row["n_items"] > len(history):
        return f"has seen {row['n_items']} items, its history has {len(history)}"
    if not plan_user(history, summarizer).calls:
        text = summarizer.profile_without_llm(history).text
        return None if row["text"] == text else "is not what this version makes of its history"
    last = stored.get(row["key"])
    if last is None:
        return None
    if foreign := Counter(last.item_ids) - Counter(example.history):
        return f"was written from {next(iter(foreign))!r}, which is not in its history"
    if row["text"] != (last.text and with_counts(last.text, history, summarizer)):
        return "is not the text that the store has under its key"
    return None


def _check_learned_scores(experiment: Experiment) -> int:
    """Refuse scores of other than validation examples in what calibration and fusion learn from."""
    file = experiment.folder.path / "valid_scores.parquet"
    if not file.exists():
        return 0
    names = read_table(file, ["example_id"])["example_id"]
    foreign = sorted(set(names) - {example.example_id for example in experiment.splits.valid})
    _refuse([f"{file.name} holds the example {name!r}, not of validation" for name in foreign])
    return len(names)


def check_warm_start(experiment: Experiment) -> None:
    """Refuse a warm-start model that was made for another setup or has seen a target of this run.

    Raises:
        RunMismatchError: it is not a model folder, or its base model, template, answers or LoRA differ.
        LeakageError: it has seen a target, or this cannot be known.
    """
    config = experiment.config
    if config.train is None or config.train.warm_start is None:
        return
    folder = Path(config.train.warm_start)
    info = read_adapter_info(folder)
    base = models.model_id(config.recommender.model)
    check_adapter(
        info,
        folder,
        template_hash=experiment.ranking_template.hash,
        prompt_version=experiment.tokenizer.prompt_version,
        base_model_id=base,
        quantization=config.recommender.quantization,
    )
    wanted = config.train.lora.model_dump(mode="json")
    if info.training.get("lora") != wanted:
        raise RunMismatchError(
            f"The model in {folder} has the LoRA {info.training.get('lora')}, but train.lora is {wanted}; "
            "give train.lora the values of that model, or leave out train.warm_start."
        )
    if info.labels != experiment.labels:
        raise RunMismatchError(
            f"The model in {folder} answers with the tokens {info.labels}, the prompt of this run asks for "
            f"{experiment.labels}; use its prompt, or leave out train.warm_start."
        )
    _refuse(warm_start_leaks(experiment))


def warm_start_leaks(experiment: Experiment) -> list[str]:
    """Describe the examples whose target the model of `train.warm_start` has already seen.

    It has seen the training examples of its run, and of the runs whose models that one started with: their
    targets, and the items of their histories unless the example's own history has them too. Validation
    examples chose it, so none of them may be a test example now.

    Raises:
        LeakageError: one of these runs has no examples, so this cannot be known.
    """
    learned, judged = list[RankingExample](), list[RankingExample]()
    for run in _earlier_runs(experiment):
        try:
            learned += read_examples(run / "examples" / "train.parquet")
            judged += read_examples(run / "examples" / "valid.parquet")
        except DataError as error:
            raise LeakageError(
                f"{run} holds no examples, so what its model has seen is unknown; "
                "leave the model in the run folder that made it, or leave out train.warm_start."
            ) from error
    valid, test = experiment.splits.valid, experiment.splits.test
    found = [*_already_seen((*valid, *test), learned), *_already_seen(test, judged)]
    return [f"the model of warm_start has seen the target of the example {name!r}" for name in found]


def _already_seen(examples: Iterable[RankingExample], earlier: Sequence[RankingExample]) -> Iterator[str]:
    chosen = {pair for example in earlier for pair in _targets(example)}
    read = {(example.user_id, item) for example in earlier for item in example.history}
    for example in examples:
        shown = {(example.user_id, item) for item in example.history}
        if _targets(example) & chosen or (_targets(example) - shown) & read:
            yield example.example_id


def _targets(example: RankingExample) -> set[tuple[str, str]]:
    labelled = zip(example.candidates, example.labels, strict=True)
    return {(example.user_id, item) for item, label in labelled if label}


def _earlier_runs(experiment: Experiment) -> Iterator[Path]:
    """Yield the runs that the model comes from, the newest first."""
    model = experiment.config.train.warm_start if experiment.config.train else None
    while model is not None:
        yield Path(model).parent
        model = read_adapter_info(Path(model)).training.get("warm_start")
