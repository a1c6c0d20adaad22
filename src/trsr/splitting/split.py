"""Split a dataset by a protocol into training, validation and test examples, and read and write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, assert_never

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError

from trsr.data.dataset import Dataset
from trsr.data.schema import EVENTS, TIME
from trsr.errors import ConfigError, DataError, first_line
from trsr.splitting.example_specs import ExampleSpec, Plan, draw_candidates
from trsr.splitting.impressions import ImpressionsProtocol, plan_impressions
from trsr.splitting.negatives import SPLITS, SplitName
from trsr.splitting.sampled import SampledProtocol, plan_sampled
from trsr.splitting.temporal import TemporalProtocol, plan_temporal
from trsr.storage import atomic_write
from trsr.types import RankingExample

ProtocolConfig = Annotated[
    SampledProtocol | ImpressionsProtocol | TemporalProtocol, Field(discriminator="kind")
]
_PROTOCOL: TypeAdapter[ProtocolConfig] = TypeAdapter(ProtocolConfig)
_COLUMNS = EVENTS.names()


class Examples(list[RankingExample]):
    """The examples of one part of a split, with the whole as `split`."""

    def __init__(self, examples: Iterable[RankingExample], split: Split) -> None:
        super().__init__(examples)
        self.split = split

    def __getitem__(self, place: Any) -> Any:
        """Return one example, or with a slice some, which belong to the same split."""
        found = super().__getitem__(place)
        return Examples(found, self.split) if isinstance(place, slice) else found


def split_of(examples: Sequence[RankingExample]) -> Split:
    """Return the split that examples belong to.

    Raises:
        DataError: they are a plain list, which has none.
    """
    if not isinstance(examples, Examples):
        raise DataError(
            "Found a plain list of examples, which does not know its split; give `split.train`, "
            "`split.valid` or `split.test` as it is."
        )
    return examples.split


@dataclass(repr=False)
class Split:
    """Training, validation and test examples of a dataset; equal if their examples and facts are.

    Attributes:
        dataset: The dataset they were made from.
        protocol: The protocol that made them.
        seed: The seed of every draw.
        train: Training examples.
        valid: Validation examples; may be empty.
        test: Test examples.
        counts: Numbers found and left out, by reason, and `chance_recall@k` of the test.
        description: Plain values for a report: protocol, sizes, negatives, seed, cuts in time.
        warnings: Sentences to show with every metric.
    """

    dataset: Dataset = field(compare=False)
    protocol: ProtocolConfig
    seed: int
    train: list[RankingExample]
    valid: list[RankingExample]
    test: list[RankingExample]
    counts: dict[str, int | float] = field(default_factory=dict)
    description: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.train, self.valid, self.test = (Examples(getattr(self, name), self) for name in SPLITS)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(getattr(self, name))}" for name in SPLITS)
        return f"Split({self.protocol.kind}: {sizes})"

    @property
    def facts(self) -> dict[str, object]:
        """Description, counts and warnings, as `metrics.json` has them."""
        return {**self.description, "counts": self.counts, "warnings": list(self.warnings)}

    @property
    def valid_from(self) -> datetime | None:
        """Where a split in time begins to hold out; None where users are split."""
        text = self.description.get("valid_from")
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    @cached_property
    def training_events(self) -> pl.DataFrame:
        """The events that rankers may be fitted on: user_id, item_id, position, timestamp.

        - `sampled`: all events; those of validation and test users end strictly before their target.
        - `temporal`: all events before validation begins.
        - `impressions`: logged events before validation begins (where they have times) and the clicks of
          training impressions; of validation and test users, only the history that their first such
          impression lists, and never an item that they choose in validation or test.

        Users who are in no split count as training users. Where logged histories carry no times, as in MIND,
        the histories of other users may reach beyond the start of validation.

        Raises:
            DataError: the examples were made from another dataset.
        """
        match self.protocol.kind:
            case "temporal":
                events = self.dataset.events().filter(pl.col("timestamp") < self.valid_from)
            case "impressions":
                events = _around_impressions(self)
            case "sampled":
                events = _before_targets(self)
        return events.select(_COLUMNS).sort("user_id", "position").collect()

    def resample(self, epoch: int) -> list[RankingExample]:
        """Return the training examples with the negatives and the order of an epoch; epoch 0 is `train`.

        The draw depends on seed, example and epoch alone. Items the user has interacted with are never drawn,
        even those cut from the example's history.
        """
        if not epoch:
            return list(self.train)
        plan, specs = self._train_specs
        return [draw_candidates(plan, specs[e.example_id], "train", self.seed, epoch)[0] for e in self.train]

    @cached_property
    def _train_specs(self) -> tuple[Plan, dict[str, ExampleSpec]]:
        plan = _plan(self.dataset, self.protocol, self.seed)
        return plan, {spec.example_id: spec for spec in plan.specs["train"]}

    def write(self, folder: str | Path) -> None:
        """Write `train.parquet`, `valid.parquet`, `test.parquet`, and last `splits.json`.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        for name in SPLITS:
            write_examples(folder / f"{name}.parquet", getattr(self, name))
        facts = {"counts": self.counts, "description": self.description, "warnings": self.warnings}
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        atomic_write(folder / "splits.json", lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: str | Path, dataset: Dataset, protocol: ProtocolConfig, seed: int) -> Split:
        """Read the folder that `write` wrote; dataset, protocol and seed are the ones it was made with.

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
        train, valid, test = (read_examples(folder / f"{name}.parquet") for name in SPLITS)
        return cls(dataset, protocol, seed, train, valid, test, counts, description, warnings)


def split(data: Dataset, protocol: str = "sampled", seed: int = 0, **settings: Any) -> Split:
    """Make the training, validation and test examples of a dataset.

    Args:
        data: The dataset.
        protocol: `sampled` (each user's last item against drawn negatives; users are split by seed),
            `impressions` (the candidates that were shown, as MIND logs them) or `temporal` (one cut in time
            for all).
        seed: The seed of every draw; the same dataset, protocol and seed give equal examples.
        settings: Of the protocol, such as `n_train`, `min_history` or `negatives`. `n_valid` and `n_test` of
            `sampled` are 100 and 200, or a tenth and a fifth of the users where that is less.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: the dataset cannot serve the protocol, or is too small for it.
    """
    if protocol == "sampled":
        n_users = data.info.counts["users"]
        settings = {"n_valid": min(100, n_users // 10), "n_test": min(200, max(1, n_users // 5)), **settings}
    try:
        config = _PROTOCOL.validate_python({"kind": protocol, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "protocol"
        raise ConfigError(f"{where}: found {first['input']!r}, {first['msg']}.") from error
    return build_examples(data, config, seed)


def build_examples(dataset: Dataset, protocol: ProtocolConfig, seed: int) -> Split:
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
    return Split(
        dataset, protocol, seed, **examples, counts=counts, description=description, warnings=plan.warnings
    )


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
    """Read the file that `write_examples` wrote.

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


def _before_targets(split: Split) -> pl.LazyFrame:
    """Cut each held-out user's events at the last occurrence of their target."""
    held = _positives([*split.valid, *split.test])
    events = split.dataset.events()
    cuts = events.join(held, on=["user_id", "item_id"]).group_by("user_id").agg(cut=pl.col("position").max())
    found = cuts.collect()
    if len(found) != held.select(pl.col("user_id").n_unique()).collect().item():
        raise DataError(
            f"A validation or test target is not among the events of {split.dataset.info.name!r}; the "
            "examples were made from another dataset, make them again."
        )
    return events.join(found.lazy(), on="user_id", how="left").filter(
        pl.col("cut").is_null() | (pl.col("position") < pl.col("cut"))
    )


def _around_impressions(split: Split) -> pl.LazyFrame:
    held_out = [*split.valid, *split.test]
    held = _positives(held_out)
    events = split.dataset.events()
    if split.valid_from is not None:
        events = events.filter(pl.col("timestamp").is_null() | (pl.col("timestamp") < split.valid_from))
    others = events.join(held, on="user_id", how="anti").select(_COLUMNS)
    known = pl.concat([others, _first_histories(held_out)])
    clicks = _positives(split.train).join(known, on=["user_id", "item_id"], how="anti")
    ends = known.group_by("user_id").agg(end=pl.col("position").max() + 1)
    clicks = clicks.join(ends, on="user_id", how="left").select(
        "user_id",
        "item_id",
        position=pl.col("end").fill_null(0) + pl.int_range(pl.len()).over("user_id"),
        timestamp="timestamp",
    )
    return pl.concat([known, clicks]).join(held, on=["user_id", "item_id"], how="anti")


def _first_histories(examples: Iterable[RankingExample]) -> pl.LazyFrame:
    """Return, as events, the history of each user's earliest example."""
    first: dict[str, RankingExample] = {}
    for example in examples:
        best = first.get(example.user_id)
        if best is None or _age(example) < _age(best):
            first[example.user_id] = example
    rows = [
        (user_id, item_id, position, None)
        for user_id, example in first.items()
        for position, item_id in enumerate(example.history)
    ]
    return pl.LazyFrame(rows, schema=EVENTS, orient="row")


def _age(example: RankingExample) -> tuple[float, int, str]:
    time = example.timestamp.timestamp() if example.timestamp is not None else 0.0
    return time, len(example.history), example.example_id


def _positives(examples: Iterable[RankingExample]) -> pl.LazyFrame:
    """Return user_id, item_id, timestamp of the chosen items, each pair once."""
    rows = [
        (example.user_id, item_id, example.timestamp)
        for example in examples
        for item_id, label in zip(example.candidates, example.labels, strict=True)
        if label
    ]
    schema = {name: EVENTS[name] for name in ("user_id", "item_id", "timestamp")}
    return pl.LazyFrame(rows, schema=schema, orient="row").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
