"""From a dataset and a protocol to ranking examples: split, with negatives, shuffled, counted.

The protocols themselves are in `leave_one_out`, `impressions` and `temporal`; reading and writing in
`example_files`; what rankers may learn from, in `fitting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from trsr.data.impressions import plan_impressions
from trsr.data.leave_one_out import plan_sampled
from trsr.data.protocols import ImpressionsProtocol, SampledProtocol, TemporalProtocol
from trsr.data.questions import SPLITS, Plan, Split, ask
from trsr.data.tables import Dataset
from trsr.data.temporal import plan_temporal
from trsr.types import RankingExample

AnyProtocol = SampledProtocol | ImpressionsProtocol | TemporalProtocol


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a protocol, and what has to be said about them.

    Attributes:
        train: Training examples; `make_resampler` gives them fresh negatives for each epoch.
        valid: Validation examples; may be empty.
        test: Test examples.
        counts: Plain numbers: what was found, left out and why, and `chance_recall@k` on the test.
        description: Plain values for a report: protocol, n, negatives, seed, where time is cut.
        warnings: Sentences that belong beside every metric.
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

    def of(self, split: Split) -> list[RankingExample]:
        """Return the examples of one split by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]


def build_examples(dataset: Dataset, protocol: AnyProtocol, seed: int) -> Splits:
    """Make the examples of a protocol.

    The same dataset, protocol and seed give equal examples, in whatever order the files list their rows.

    Raises:
        DataError: the dataset cannot serve the protocol, or is too small for it.
    """
    plan = _plan(dataset, protocol, seed)
    examples: dict[Split, list[RankingExample]] = {}
    n_widened = 0
    for split in SPLITS:
        asked = [ask(plan, question, split, seed) for question in plan.questions[split]]
        examples[split] = [example for example, _ in asked]
        n_widened += sum(widened for _, widened in asked)
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
    dataset: Dataset, protocol: AnyProtocol, seed: int
) -> Callable[[RankingExample, int], RankingExample]:
    """Return a function (training example, epoch) -> the same question with fresh negatives and order.

    The draw depends on seed, example and epoch alone. What the user has met is never drawn, even where it was
    cut from the example's history.
    """
    plan = _plan(dataset, protocol, seed)
    questions = {question.example_id: question for question in plan.questions["train"]}

    def resample(example: RankingExample, epoch: int) -> RankingExample:
        return ask(plan, questions[example.example_id], "train", seed, epoch)[0]

    return resample


def chance_recall(examples: Sequence[RankingExample], k: int) -> float:
    """Return the expected recall@k of a random order: the mean of min(k, n_candidates) / n_candidates."""
    if not examples:
        return float("nan")
    return sum(min(k, len(e.candidates)) / len(e.candidates) for e in examples) / len(examples)


def _plan(dataset: Dataset, protocol: AnyProtocol, seed: int) -> Plan:
    match protocol:
        case SampledProtocol():
            return plan_sampled(dataset, protocol, seed)
        case ImpressionsProtocol():
            return plan_impressions(dataset, protocol, seed)
        case TemporalProtocol():
            return plan_temporal(dataset, protocol, seed)
        case _:
            assert_never(protocol)


def _negatives_in_words(protocol: AnyProtocol) -> str:
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
