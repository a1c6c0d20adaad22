"""`split`: the examples of a protocol, with the dataset they were made from."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError
from trsr.splitting.examples import ProtocolConfig, Splits, build_examples, make_resampler
from trsr.splitting.leakage import training_events
from trsr.types import RankingExample

_PROTOCOL: TypeAdapter[ProtocolConfig] = TypeAdapter(ProtocolConfig)


class Examples(list[RankingExample]):
    """The examples of one part of a split, which they remember as `split`."""

    def __init__(self, examples: Iterable[RankingExample], split: Split) -> None:
        super().__init__(examples)
        self.split = split


class Split:
    """Training, validation and test examples of a dataset.

    Attributes:
        dataset: What they were made from.
        protocol: How.
        seed: The seed of every draw.
        train: Training examples.
        valid: Validation examples; may be empty.
        test: Test examples.
        description: Protocol, counts and negatives, for a report.
        warnings: Sentences to show with every metric.
    """

    def __init__(
        self, dataset: Dataset, protocol: ProtocolConfig, seed: int, splits: Splits | None = None
    ) -> None:
        """Make the examples, or take those in `splits`, which an equal call has made."""
        self.dataset, self.protocol, self.seed = dataset, protocol, seed
        self._splits = splits or build_examples(dataset, protocol, seed)
        self.train = Examples(self._splits.train, self)
        self.valid = Examples(self._splits.valid, self)
        self.test = Examples(self._splits.test, self)
        self.description = self._splits.description
        self.warnings = self._splits.warnings

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(getattr(self, name))}" for name in ("train", "valid", "test"))
        return f"Split({self.protocol.kind}: {sizes})"

    @cached_property
    def training_events(self) -> pl.DataFrame:
        """The events that a ranker may be fitted on, none of them at or after a held-out target."""
        return training_events(self.dataset, self._splits)

    def resample(self, epoch: int) -> list[RankingExample]:
        """Return the training examples with the negatives of an epoch; epoch 0 is `train`."""
        if not epoch:
            return list(self.train)
        draw = make_resampler(self.dataset, self.protocol, self.seed)
        return [draw(example, epoch) for example in self.train]


def split(data: Dataset, protocol: str = "sampled", seed: int = 0, **settings: Any) -> Split:
    """Make the training, validation and test examples of a dataset.

    Args:
        data: The dataset.
        protocol: `sampled` (each user's last item against drawn negatives; users are split by seed),
            `impressions` (what was shown, as MIND logs it) or `temporal` (one cut in time for all).
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
    return Split(data, config, seed)
