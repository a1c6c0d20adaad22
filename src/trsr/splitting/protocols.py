"""The three ways to turn a dataset into ranking questions, as configuration; `kind` tells them apart.

What they do is in `leave_one_out`, `impressions` and `temporal`; `examples.build_examples` chooses.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.splitting.negatives import NegativesConfig

_PAPER_NEGATIVES = NegativesConfig(kind="uniform", n_train=1, n_test=20)


class SampledProtocol(BaseModel):
    """The paper's: one question a user, whose target is the user's last item; users are split by seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sampled"] = "sampled"
    """Always `sampled`."""

    min_history: int = Field(default=10, ge=1)
    """Fewest items before the target; users with fewer are left out."""

    max_history: int = Field(default=25, ge=1)
    """Most items before the target; users with more are left out, unless `truncate`."""

    truncate: bool = False
    """Keep users with longer histories, with their newest `max_history` items."""

    n_train: int | None = Field(default=None, ge=1)
    """Training users; None for all that validation and test leave."""

    train_targets: int = Field(default=1, ge=1)
    """Targets of a training user: so many last items, all chosen, and the history ends before the first of
    them. More of them teach more from one reading of the user (as PinnerFormer's training on a stretch of
    actions, KDD 2022); validation and test have one. An item that was met twice is one target."""

    n_valid: int = Field(default=100, ge=0)
    """Validation users."""

    n_test: int = Field(default=200, ge=1)
    """Test users."""

    negatives: NegativesConfig = NegativesConfig()
    """How the other candidates are drawn."""

    paper_exact: bool = False
    """The draw of the paper's released code, for comparison only: the target is always candidate 0, no
    shuffle, 1 negative in training and 20 at test, which may equal the target or history items."""

    @model_validator(mode="before")
    @classmethod
    def _paper_negatives(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("paper_exact") and values.get("negatives") is None:
            return {**values, "negatives": _PAPER_NEGATIVES}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> SampledProtocol:
        if self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        if self.train_targets > self.min_history:
            raise ValueError(
                f"train_targets {self.train_targets} leaves users with a history of min_history"
                f" {self.min_history} without one; at most {self.min_history} fit"
            )
        if self.paper_exact and self.train_targets > 1:
            raise ValueError("paper_exact has one target a user; leave `train_targets` out")
        if self.paper_exact and self.negatives != _PAPER_NEGATIVES:
            raise ValueError("paper_exact fixes the negatives (uniform, 1 and 20); leave `negatives` out")
        return self


class ImpressionsProtocol(BaseModel):
    """MIND's official one: the candidates that were shown, and the clicks on them.

    Split by time where every impression has a time (the newest are the test), else by seed over users.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["impressions"]
    """Always `impressions`."""

    min_history: int = Field(default=1, ge=0)
    """Fewest history items with text; impressions with fewer are left out."""

    max_history: int | None = Field(default=None, ge=1)
    """Keep the newest so many history items; None keeps all."""

    n_train: int | None = Field(default=None, ge=1)
    """Training impressions; None for all that validation and test leave."""

    n_valid: int = Field(default=200, ge=0)
    """Validation impressions."""

    n_test: int = Field(default=500, ge=1)
    """Test impressions."""

    n_train_negatives: int | None = Field(default=4, ge=1)
    """Unclicked candidates kept in a training example, drawn anew each epoch; None keeps all. Validation and
    test always keep all."""

    @model_validator(mode="after")
    def _consistent(self) -> ImpressionsProtocol:
        if self.max_history is not None and self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        return self


class TemporalProtocol(BaseModel):
    """A global split in time: train before the first cut, validation between the two, test after the second.

    One question a user and split: the user's last event in that stretch, with all that came before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["temporal"]
    """Always `temporal`."""

    valid_quantile: float = Field(default=0.8, gt=0, lt=1)
    """Where validation starts: the time by which this share of all events has happened."""

    test_quantile: float = Field(default=0.9, gt=0, lt=1)
    """Where the test starts."""

    min_history: int = Field(default=1, ge=0)
    """Fewest items before the target; questions with fewer are left out."""

    max_history: int | None = Field(default=None, ge=1)
    """Keep the newest so many history items; None keeps all."""

    n_train: int | None = Field(default=None, ge=1)
    """Training users, chosen by seed; None for all."""

    n_valid: int | None = Field(default=None, ge=0)
    """Validation users, chosen by seed; None for all."""

    n_test: int | None = Field(default=None, ge=1)
    """Test users, chosen by seed; None for all."""

    negatives: NegativesConfig = NegativesConfig()
    """How the other candidates are drawn, from the items known by the time of the question."""

    @model_validator(mode="after")
    def _consistent(self) -> TemporalProtocol:
        if self.valid_quantile >= self.test_quantile:
            raise ValueError(
                f"valid_quantile {self.valid_quantile} must be below test_quantile {self.test_quantile}"
            )
        if self.max_history is not None and self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        return self


ProtocolConfig = Annotated[
    SampledProtocol | ImpressionsProtocol | TemporalProtocol, Field(discriminator="kind")
]
