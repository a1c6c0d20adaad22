"""What rankers take and give: the `Ranker` protocol over examples, and single requests with their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.types import RankedItem, RankingExample


@dataclass(frozen=True, slots=True)
class ExampleScores:
    """A ranker's answer to one example.

    Attributes:
        example_id: The example.
        margins: Shape (n_candidates,), float32, higher is better; logits for an LLM, any scale otherwise.
        n_prompt_tokens: Shape (n_candidates,), tokens of each candidate's whole prompt; zeros without an LLM.
        n_cut_tokens: Tokens that each candidate's prompt lacks: of recent items and profile that did not fit
            the budget, and of fields longer than their cap. Shape (n_candidates,); zeros without an LLM.
    """

    example_id: str
    margins: npt.NDArray[np.float32]
    n_prompt_tokens: npt.NDArray[np.int32]
    n_cut_tokens: npt.NDArray[np.int32]


class Ranker(Protocol):
    """Scores candidates; `name` is its row in every table (in a run, the import path that names the class).

    A ranker of one's own is a class with these members, made with a `Dataset`: give an instance to
    `trsr.evaluate`, or name the class in a configuration (`rankers: [llm, mypackage.MyRanker]`). If it has a
    method `fit(split)`, that is called first with the `trsr.splitting.split.Split` of the examples;
    `split.training_events` and `split.train` are what it may learn from.
    """

    @property
    def name(self) -> str:
        """Short and unique within a run, for example `bm25`."""
        ...

    @property
    def probabilistic(self) -> bool:
        """Whether sigmoid(margin) is meant as a probability (logloss is reported only then)."""
        ...

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one `ExampleScores` per example, in any order."""
        ...


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A request to rank items for a user.

    Attributes:
        user_history: Item ids, oldest first; only the newest `prompt.n_recent` are shown.
        profile: The user's profile; may be empty.
        candidates: Item ids, at least one.
        notes: What the user wrote about themselves; may be empty.
    """

    user_history: Sequence[str]
    profile: str
    candidates: Sequence[str]
    notes: str = ""


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A request to rank texts, which need not be in the catalogue.

    Attributes:
        query: Shown where a profile is shown; no recent items are.
        documents: At least one; each becomes one line without markup, cut to `MAX_DOCUMENT_TOKENS` (see
            `recommender`).
        max_tokens: Cut them to so many tokens where that is less.
    """

    query: str
    documents: Sequence[str]
    max_tokens: int | None = None


ModelRequest = RankRequest | RerankRequest


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """The answer to one request, its candidates in the order given.

    Attributes:
        margins: Shape (n,), float32, logits.
        scores: Shape (n,), float64, in [0, 1], calibrated where the model folder says how.
        n_prompt_tokens: Shape (n,), int32, tokens of each candidate's whole prompt.
        n_cut_tokens: Tokens of notes, recent items and profile that did not fit the budget.
        n_read_tokens: Tokens the model really read: the prefix once, unless it was cached, and all suffixes.
        cached: Whether the prefix had been read for an earlier request.
    """

    margins: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    n_prompt_tokens: npt.NDArray[np.int32]
    n_cut_tokens: int
    n_read_tokens: int
    cached: bool


def without_llm(example: RankingExample, margins: npt.ArrayLike) -> ExampleScores:
    """Wrap the margins of a ranker that reads no prompt."""
    values = np.asarray(margins, dtype=np.float32)
    none = np.zeros(len(example.candidates), dtype=np.int32)
    return ExampleScores(example.example_id, values, none, none)


def sigmoid(margins: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-margin)), stable for large margins."""
    x = np.asarray(margins, dtype=np.float64)
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def best_first(
    candidates: Sequence[str],
    margins: npt.ArrayLike,
    scores: npt.ArrayLike | None = None,
    title: Callable[[str], str] = lambda _: "",
) -> list[RankedItem]:
    """Return candidates best first; among equal margins the given order stays.

    Without `scores`, which are in [0, 1], a candidate's is the sigmoid of its margin.
    """
    values = np.asarray(margins, dtype=np.float32)
    order = np.argsort(-values, kind="stable")
    probabilities = sigmoid(values) if scores is None else np.asarray(scores, dtype=np.float64)
    return [
        RankedItem(candidates[i], rank, float(values[i]), float(probabilities[i]), i, title(candidates[i]))
        for rank, i in enumerate(order.tolist(), start=1)
    ]


SCORES = {
    "example_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "label": pl.Int8,
    "ranker": pl.String,
    "margin": pl.Float32,
    "score": pl.Float64,
    "n_prompt_tokens": pl.Int32,
    "n_cut_tokens": pl.Int32,
}
"""Columns of a table of scores: one row per ranker, example and candidate."""


def score_table(ranker: Ranker, examples: Sequence[RankingExample], name: str | None = None) -> pl.DataFrame:
    """Return the scores of one or more examples, in the order of examples and candidates.

    The columns are `SCORES`; `score` is sigmoid(margin) for a probabilistic ranker, else null. `name` stands
    for the ranker's own.

    Raises:
        DataError: the ranker left an example out, or gave another number of margins than of candidates.
    """
    found = {answer.example_id: answer for answer in ranker.rank(examples)}
    for example in examples:
        n = len(found[example.example_id].margins) if example.example_id in found else 0
        if n != len(example.candidates):
            raise DataError(
                f"{name or ranker.name} gave {n} margins for the example {example.example_id!r}, expected "
                f"{len(example.candidates)}: yield one ExampleScores per example, one margin per candidate."
            )
    answers = [found[example.example_id] for example in examples]
    margins = np.concatenate([answer.margins for answer in answers])
    columns = {
        "example_id": [e.example_id for e in examples for _ in e.candidates],
        "user_id": [e.user_id for e in examples for _ in e.candidates],
        "item_id": [item for e in examples for item in e.candidates],
        "label": [label for e in examples for label in e.labels],
        "ranker": name or ranker.name,
        "margin": margins,
        "score": pl.Series(sigmoid(margins)).fill_nan(None) if ranker.probabilistic else None,
        "n_prompt_tokens": np.concatenate([answer.n_prompt_tokens for answer in answers]),
        "n_cut_tokens": np.concatenate([answer.n_cut_tokens for answer in answers]),
    }
    return pl.DataFrame(columns, schema_overrides=SCORES)
