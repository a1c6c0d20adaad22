"""Looks at the model that a training begins with: does it fit the run, and has it seen what is asked?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from trsr.data.example_files import read_splits
from trsr.data.examples import Splits
from trsr.data.leakage import Checked, all_or_error
from trsr.errors import DataError, LeakageError, RunMismatchError
from trsr.llm import models
from trsr.llm.adapter import check_adapter, read_adapter_info
from trsr.pipeline.workbench import Workbench
from trsr.types import RankingExample


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
