"""Gathers what the ranker `fusion` learns from and joins: margins of `llm` that are there, and cheap rankers.

It is fitted on the validation examples alone. The language model is not asked again: its margins come from
`valid_scores.parquet`, and for the test from what `llm` has already ranked in this run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.data.fitting import fit_events
from trsr.errors import DataError
from trsr.pipeline.ranking import make_ranker
from trsr.pipeline.workbench import Workbench
from trsr.rank.base import ExampleScores, Ranker, without_llm
from trsr.rank.fusion import Fusion, fit_fusion
from trsr.types import RankingExample

Features = npt.NDArray[np.float64]


class FusionRanker:
    """Joins margins that are known with those of other rankers."""

    name = "fusion"
    probabilistic = False

    def __init__(self, fusion: Fusion, llm: pl.DataFrame, others: Sequence[Ranker]) -> None:
        self._fusion = fusion
        self._llm = llm
        self._others = others

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer an example.

        Raises:
            DataError: `llm` has not ranked one of them.
        """
        for example, features in zip(examples, _features(examples, self._llm, self._others), strict=True):
            yield without_llm(example, self._fusion.margins(features))


def make_fusion(bench: Workbench) -> FusionRanker:
    """Fit the weights on the validation examples, write them to `fusion.json`, and return the ranker.

    Raises:
        DataError: the fine-tuned model's margins of validation or test examples are missing, or too few users
            can be learned from.
    """
    folder, examples = bench.folder.path, bench.splits.valid
    valid_file = folder / "valid_scores.parquet"
    if not valid_file.exists():
        raise DataError(
            f"{valid_file} is missing, from which fusion learns: it needs a trained model and validation"
            " examples (n_valid of the protocol); run anew, or take fusion out of `rankers`."
        )
    others = [make_ranker(bench, "popularity"), make_ranker(bench, "recency"), make_ranker(bench, "bm25")]
    if fit_events(bench.dataset, bench.splits)["timestamp"].is_not_null().any():
        others.insert(1, make_ranker(bench, "popularity_decayed"))
    fusion = fit_fusion(
        _features(examples, pl.read_parquet(valid_file), others),
        [np.asarray(example.labels) for example in examples],
        [example.user_id for example in examples],
        ["llm", *(ranker.name for ranker in others)],
        seed=bench.config.seed,
    )
    bench.folder.write_json("fusion.json", fusion.to_json())
    parts = sorted((folder / "scores.parts").glob("llm-*.parquet"))
    if not parts:
        raise DataError(f"{folder} holds no scores of `llm` to join; rank again with `llm` in `rankers`.")
    return FusionRanker(fusion, pl.concat([pl.read_parquet(part) for part in parts]), others)


def _features(
    examples: Sequence[RankingExample], llm: pl.DataFrame, others: Sequence[Ranker]
) -> list[Features]:
    """Return the margins of all, `llm` first, for each example: shape (n_candidates, n_rankers)."""
    known = {
        str(example_id): dict(zip(items, margins, strict=True))
        for example_id, items, margins in llm.group_by("example_id")
        .agg("item_id", "margin")
        .select("example_id", "item_id", "margin")
        .iter_rows()
    }
    answers = [{answer.example_id: answer.margins for answer in r.rank(examples)} for r in others]
    table = []
    for example in examples:
        found = known.get(example.example_id, {})
        if missing := [item for item in example.candidates if item not in found]:
            raise DataError(
                f"`llm` has not ranked the item {missing[0]!r} of the example {example.example_id!r}; rank"
                " again in a new run folder."
            )
        columns = [[found[item] for item in example.candidates]]
        columns += [answer[example.example_id].tolist() for answer in answers]
        table.append(np.asarray(columns, dtype=np.float64).T)
    return table
