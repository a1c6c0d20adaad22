"""Settings of the baselines that have any, light to import; see `docs/baselines.md`.

A setting that is a tuple is tuned: each of its values is tried, in all combinations with other tuples, and
the combination that ranks the validation examples best is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


_Listed = BeforeValidator(_listed)  # `n_epochs: 5` means `n_epochs: [5]`
_Tried = Field(min_length=1)
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], _Tried, _Listed]
Positives = Annotated[tuple[Annotated[float, Field(gt=0)], ...], _Tried, _Listed]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], _Tried, _Listed]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination of the tuned settings with the others, the first values first."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        tried = [value if isinstance(value, tuple) else (value,) for value in values.values()]
        return [dict(zip(values, point, strict=True)) for point in product(*tried)]


class DecayedPopularityConfig(_Settings):
    """Popularity with exponential decay."""

    half_life_days: Positives = (30.0, 1.0, 7.0, 365.0)
    """Days after which an interaction counts half."""


class EmbeddingConfig(_Settings):
    """Similarity of item texts."""

    model: str = "smollm2-135m"
    """The embedded model, a hub id or a local folder; encoders and language models both serve."""
    max_tokens: int = Field(default=32, ge=1)
    """Tokens of an item's text that are read, the first ones."""
    max_batch_tokens: int = Field(default=2048, ge=1)
    """Most tokens of a forward pass; bounds the memory, changes no result."""
    n_recent: Annotated[tuple[Count | None, ...], _Tried, _Listed] = (None, 10, 3, 1)
    """How many of the newest items make up the user; null for the whole history."""
    centre: Annotated[tuple[bool, ...], _Tried, _Listed] = (True, False)
    """Whether the mean embedding of the catalogue is subtracted first."""


class BagOfWordsConfig(_Settings):
    """Logistic regression on the words of candidates."""

    C: Positives = (10.0, 1.0, 100.0)
    """Inverse strength of the penalty on its weights."""
    max_ngram: Counts = (2,)
    """Longest n-gram of words that is a feature."""
    min_df: int = Field(default=2, ge=1)
    """Training candidates in which an n-gram must occur."""


class _SequentialConfig(_Settings):
    dim: Counts = (64,)
    """Width of embeddings and layers."""
    n_epochs: Counts = (3, 8)
    learning_rate: Positives = (0.003,)
    dropout: Shares = (0.2,)
    batch_size: int = Field(default=256, ge=2)
    """Training rows per step."""
    n_negatives: int = Field(default=256, ge=1)
    """Negatives that the rows of a step share, drawn by popularity to the power 0.5."""
    max_len: int = Field(default=20, ge=2)
    """Newest items of a history that are read; longer training sequences are cut into pieces."""


class _TransformerConfig(_SequentialConfig):
    n_layers: int = Field(default=1, ge=1)
    n_heads: int = Field(default=1, ge=1)
    """Must divide `dim`."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if wrong := [dim for dim in self.dim if dim % self.n_heads]:
            raise ValueError(f"n_heads {self.n_heads} does not divide dim {wrong[0]}")
        return self


class SasRecConfig(_TransformerConfig):
    """SASRec."""


class Gru4RecConfig(_SequentialConfig):
    """GRU4Rec."""

    n_epochs: Counts = (5, 15)
    learning_rate: Positives = (0.05, 0.01)
    batch_size: int = Field(default=128, ge=2)
    """Sequences read in parallel, at most as many as there are."""


class Bert4RecConfig(_TransformerConfig):
    """BERT4Rec."""

    n_epochs: Counts = (10, 30)
    batch_size: int = Field(default=128, ge=2)
    """Sequences per step."""
    n_heads: int = Field(default=2, ge=1)
    """Must divide `dim`."""
    mask_prob: float = Field(default=0.2, gt=0, lt=1)
    """Share of a sequence's items that are hidden and to be guessed."""


class NcfConfig(_Settings):
    """NeuMF, the complete model of the NCF family."""

    n_factors: Counts = (8, 32)
    """Width of the matrix factorisation and of the last layer; the layers before have 2, 4 and 8 times it."""
    n_epochs: Counts = (10,)
    learning_rate: Positives = (0.003,)
    batch_size: int = Field(default=256, ge=1)
    """Interactions per step."""
    n_negatives: int = Field(default=4, ge=1)
    """Uniform negatives per interaction."""
    weight_decay: float = Field(default=0.0, ge=0)


class BaselinesConfig(BaseModel):
    """Settings of the baselines; each counts only where the baseline is among `rankers`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    popularity_decayed: DecayedPopularityConfig = DecayedPopularityConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    bag_of_words: BagOfWordsConfig = BagOfWordsConfig()
    sasrec: SasRecConfig = SasRecConfig()
    gru4rec: Gru4RecConfig = Gru4RecConfig()
    bert4rec: Bert4RecConfig = Bert4RecConfig()
    ncf: NcfConfig = NcfConfig()


def described(point: dict[str, Any], grid: Sequence[dict[str, Any]]) -> str:
    """Return the tuned settings of one point in words, for example `n_epochs 5, learning_rate 0.05`."""
    tuned = [name for name, value in point.items() if any(other[name] != value for other in grid)]
    return ", ".join(f"{name} {point[name]}" for name in tuned)
