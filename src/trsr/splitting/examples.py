"""From a dataset and a protocol to ranking examples: split, with negatives, shuffled; their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, assert_never

import polars as pl
from pydantic import Field

from trsr.data.dataset import Dataset
from trsr.data.schema import TIME
from trsr.errors import DataError, first_line
from trsr.splitting.example_specs import Plan, draw_candidates
from trsr.splitting.impressions import ImpressionsProtocol, plan_impressions
from trsr.splitting.negatives import SPLITS, SplitName
from trsr.splitting.sampled import SampledProtocol, plan_sampled
from trsr.splitting.temporal import TemporalProtocol, plan_temporal
from trsr.storage import atomic_write
from trsr.types import RankingExample

ProtocolConfig = Annotated[
    SampledProtocol | ImpressionsProtocol | TemporalProtocol, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a protocol, with counts, description and warnings.

    Attributes:
        train: Training examples; `make_resampler` gives them fresh negatives for each epoch.
        valid: Validation examples; may be empty.
        test: Test examples.
        counts: Plain numbers: what was found, left out and why, and `chance_recall@k` on the test.
        description: Plain values for a report: protocol, n, negatives, seed, where time is cut.
        warnings: Sentences that belong to every metric.
    """

    train: list[RankingExample]
    valid: list[RankingExample]
    test: list[RankingExample]
    counts: dict[str, int | float] = field(default_factory=dict)
    description: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def valid_from(self) -> datetime | None:
        """Where a split in time begins to hold out; None where users are split."""
        text = self.description.get("valid_from")
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    def of(self, split: SplitName) -> list[RankingExample]:
        """Return the examples of one split by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]


def build_examples(dataset: Dataset, protocol: ProtocolConfig, seed: int) -> Splits:
    """Make the examples of a protocol.

    The same dataset, protocol and seed give equal examples, in whatever order the files list their rows.

    Raises:
        DataError: the dataset cannot serve the protocol, or is too small for it.
    """
    plan = _plan(dataset, protocol, seed)
    examples: dict[SplitName, list[RankingExample]] = {}
    n_widened = 0
    for split in SPLITS:
        drawn = [draw_candidates(plan, spec, split, seed) for spec in plan.specs[split]]
        examples[split] = [example for example, _ in drawn]
        n_widened += sum(widened for _, widened in drawn)
    counts = plan.counts | {f"n_{split}": len(examples[split]) for split in SPLITS}
    if any(sampler.kind == "same-category" for sampler in plan.samplers.values()):
        counts["negatives_widened"] = n_widened
    counts |= _shape(examples["test"])
    description: dict[str, object] = {
        "protocol": protocol.kind,
        **{f"n_{split}": len(examples[split]) for split in SPLITS},
        "negatives": _negatives_in_words(protocol),
        "seed": seed,
        **plan.description,
        "config": protocol.model_dump(mode="json"),
    }
    return Splits(**examples, counts=counts, description=description, warnings=plan.warnings)


def make_resampler(
    dataset: Dataset, protocol: ProtocolConfig, seed: int
) -> Callable[[RankingExample, int], RankingExample]:
    """Return a function (training example, epoch) -> the same example with fresh negatives and order.

    The draw depends on seed, example and epoch alone. Items the user has interacted with are never drawn,
    even those cut from the example's history.
    """
    plan = _plan(dataset, protocol, seed)
    specs = {spec.example_id: spec for spec in plan.specs["train"]}

    def resample(example: RankingExample, epoch: int) -> RankingExample:
        return draw_candidates(plan, specs[example.example_id], "train", seed, epoch)[0]

    return resample


def chance_recall(examples: Sequence[RankingExample], k: int) -> float:
    """Return the expected recall@k of a random order: the mean of min(k, n_candidates) / n_candidates."""
    if not examples:
        return float("nan")
    return sum(min(k, len(e.candidates)) / len(e.candidates) for e in examples) / len(examples)


def _plan(dataset: Dataset, protocol: ProtocolConfig, seed: int) -> Plan:
    match protocol:
        case SampledProtocol():
            return plan_sampled(dataset, protocol, seed)
        case ImpressionsProtocol():
            return plan_impressions(dataset, protocol, seed)
        case TemporalProtocol():
            return plan_temporal(dataset, protocol, seed)
        case _:
            assert_never(protocol)


def _negatives_in_words(protocol: ProtocolConfig) -> str:
    if isinstance(protocol, ImpressionsProtocol):
        n = protocol.n_train_negatives
        return f"shown and not clicked: {'all' if n is None else f'up to {n}'} in training, all in the test"
    config = protocol.negatives
    words = f"{config.kind}: {config.n_train} in training, {config.n_test} in the test"
    if isinstance(protocol, SampledProtocol) and protocol.paper_exact:
        words += " (the paper's draw: may equal the target or the history, target first, not shuffled)"
    return words


def _shape(test: Sequence[RankingExample]) -> dict[str, int | float]:
    return {
        "users_test": len({e.user_id for e in test}),
        "mean_history_test": sum(len(e.history) for e in test) / len(test),
        "mean_candidates_test": sum(len(e.candidates) for e in test) / len(test),
        **{f"chance_recall@{k}": chance_recall(test, k) for k in (3, 5, 10)},
    }


EXAMPLES = pl.Schema(
    {
        "example_id": pl.String(),
        "user_id": pl.String(),
        "history": pl.List(pl.String),
        "candidates": pl.List(pl.String),
        "labels": pl.List(pl.Int8),
        "timestamp": TIME,
    }
)


def write_examples(path: str | Path, examples: Sequence[RankingExample]) -> None:
    """Write examples as parquet, in their order.

    Raises:
        OutputError: the file cannot be written; an older one is kept.
    """
    columns = {name: [getattr(example, name) for example in examples] for name in EXAMPLES.names()}
    frame = pl.DataFrame(columns, schema=EXAMPLES)
    atomic_write(Path(path), frame.write_parquet)


def read_examples(path: str | Path) -> list[RankingExample]:
    """Read what `write_examples` wrote.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        frame = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read as examples ({first_line(error)}); make them again."
        ) from error
    if frame.schema != EXAMPLES:
        raise DataError(
            f"{path} has the columns {', '.join(frame.columns)}, but examples have {', '.join(EXAMPLES)}; "
            "make them again."
        )
    return [
        RankingExample(name, user_id, tuple(history), tuple(candidates), tuple(labels), timestamp)
        for name, user_id, history, candidates, labels, timestamp in frame.iter_rows()
    ]


def write_splits(folder: str | Path, splits: Splits) -> None:
    """Write `train.parquet`, `valid.parquet`, `test.parquet`, and last `splits.json`.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    for split in SPLITS:
        write_examples(folder / f"{split}.parquet", splits.of(split))
    facts = {"counts": splits.counts, "description": splits.description, "warnings": splits.warnings}
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    atomic_write(folder / "splits.json", lambda file: file.write_text(text, encoding="utf-8"))


def read_splits(folder: str | Path) -> Splits:
    """Read what `write_splits` wrote.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        counts, description, warnings = facts["counts"], facts["description"], tuple(facts["warnings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}/splits.json cannot be read ({first_line(error)}); make the examples again."
        ) from error
    train, valid, test = (read_examples(folder / f"{split}.parquet") for split in SPLITS)
    return Splits(train, valid, test, counts, description, warnings)
