"""What a report tells beside the metrics: values only, gathered by whoever ran the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage took: wall-clock seconds, calls of a language model and tokens where there were any."""

    name: str
    seconds: float
    calls: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row of the training log; `metric` is the validation metric where it was computed."""

    step: int
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class ExampleBlock:
    """A block of a history: the texts of its items, and the summary written after it (may be empty)."""

    items: tuple[str, ...]
    summary: str = ""


@dataclass(frozen=True, slots=True)
class ExampleCandidate:
    """A ranked candidate: text, score in [0, 1], label 1 if it was chosen."""

    text: str
    score: float
    label: int

    @property
    def share(self) -> str:
        """The score as the length of its bar."""
        return f"{min(max(self.score, 0.0), 1.0):.3f}"


@dataclass(frozen=True, slots=True)
class ExampleUser:
    """A user shown in full: history in blocks, profile, recent items, candidates best first."""

    user_id: str
    blocks: tuple[ExampleBlock, ...] = ()
    profile: str = ""
    recent_items: tuple[str, ...] = ()
    candidates: tuple[ExampleCandidate, ...] = ()

    @property
    def n_items(self) -> int:
        """Items in all blocks."""
        return sum(len(block.items) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class ReportContext:
    """All that a report tells beside the metrics; what is empty is left out.

    Attributes:
        title: Names the run.
        command: The exact commands that made this run, one a line.
        config_yaml: The resolved configuration.
        environment: Versions, machine, commit, seed.
        stages: In order of execution.
        summaries: Statistics of the summaries: method, users, calls, tokens, failures.
        training: The training log, by step.
        training_metric: Name of `TrainingRow.metric`.
        users: A few users in full.
        notes: Warnings and limits of this run, one sentence each.
    """

    title: str
    command: str
    config_yaml: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageCost] = ()
    summaries: Mapping[str, Any] = field(default_factory=dict)
    training: Sequence[TrainingRow] = ()
    training_metric: str = "validation metric"
    users: Sequence[ExampleUser] = ()
    notes: Sequence[str] = ()
