"""Gathers what the fusions learn from and join: margins of `llm` that are there, and other rankers.

`fusion` joins `llm` with counters and words; `fusion_all` joins it with every baseline of the run, and
`fusion_no_llm` is that without it, so that the two show what the language model adds to all the others.
They are fitted on the validation examples alone. The language model is not asked again: its margins come from
`valid_scores.parquet`, and for the test from what `llm` has already ranked in this run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.config import RankerName, joinable
from trsr.data.files import read_table
from trsr.data.fitting import fit_events
from trsr.errors import DataError
from trsr.pipeline.ranking import make_ranker
from trsr.pipeline.workbench import Workbench
from trsr.rank.base import ExampleScores, Ranker, without_llm
from trsr.rank.fusion import Fusion, fit_fusion
from trsr.types import RankingExample

Features = npt.NDArray[np.float64]


class FusionRanker:
    """Joins margins that are known with those of other rankers; `llm` is None where that is left out."""

    probabilistic = False

    def __init__(self, name: str, fusion: Fusion, llm: pl.DataFrame | None, others: Sequence[Ranker]) -> None:
        self.name = name
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


def make_fusion(bench: Workbench, name: RankerName = "fusion") -> FusionRanker:
    """Fit the weights on the validation examples, write them to `NAME.json`, and return the ranker.

    Raises:
        DataError: validation examples or margins of `llm` are missing, or too few users can be learned from.
    """
    examples = bench.splits.valid
    if not examples:
        raise DataError(
            f"There are no validation examples, from which {name} learns; set n_valid of the protocol, or"
            f" take {name} out of `rankers`."
        )
    learnt, asked = (None, None) if name == "fusion_no_llm" else _llm_margins(bench, name)
    others = [make_ranker(bench, other) for other in _joined(bench, name)]
    fusion = fit_fusion(
        _features(examples, learnt, others),
        [np.asarray(example.labels) for example in examples],
        [example.user_id for example in examples],
        [*(() if learnt is None else ("llm",)), *(ranker.name for ranker in others)],
        seed=bench.config.seed,
    )
    bench.folder.write_json(f"{name}.json", fusion.to_json())
    return FusionRanker(name, fusion, asked, others)


def _joined(bench: Workbench, name: RankerName) -> list[RankerName]:
    """Return the rankers that are joined, without `llm`."""
    if name != "fusion":
        return joinable(bench.config.rankers)
    timed = fit_events(bench.dataset, bench.splits)["timestamp"].is_not_null().any()
    names: list[RankerName] = ["popularity", "popularity_decayed", "recency", "bm25"]
    return [one for one in names if timed or one != "popularity_decayed"]


def _llm_margins(bench: Workbench, name: RankerName) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return what `llm` said of the validation and of the test candidates."""
    folder = bench.folder.path
    valid_file = folder / "valid_scores.parquet"
    if not valid_file.exists():
        raise DataError(
            f"{valid_file} is missing, from which {name} learns: it needs a trained model and validation"
            f" examples (n_valid of the protocol); run anew, or take {name} out of `rankers`."
        )
    parts = sorted((folder / "scores.parts").glob("llm-*.parquet"))
    if not parts:
        raise DataError(f"{folder} holds no scores of `llm` to join; rank again with `llm` in `rankers`.")
    return read_table(valid_file), pl.concat([read_table(part) for part in parts])


def _features(
    examples: Sequence[RankingExample], llm: pl.DataFrame | None, others: Sequence[Ranker]
) -> list[Features]:
    """Return the margins of all, `llm` first, for each example: shape (n_candidates, n_rankers)."""
    known = {} if llm is None else _by_item(llm)
    answers = [{answer.example_id: answer.margins for answer in r.rank(examples)} for r in others]
    table = []
    for example in examples:
        columns = [answer[example.example_id].tolist() for answer in answers]
        if llm is not None:
            found = known.get(example.example_id, {})
            if missing := [item for item in example.candidates if item not in found]:
                raise DataError(
                    f"`llm` has not ranked the item {missing[0]!r} of the example {example.example_id!r};"
                    " rank again in a new run folder."
                )
            columns.insert(0, [found[item] for item in example.candidates])
        table.append(np.asarray(columns, dtype=np.float64).T)
    return table


def _by_item(llm: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return margins by example and item."""
    return {
        str(example_id): dict(zip(items, margins, strict=True))
        for example_id, items, margins in llm.group_by("example_id")
        .agg("item_id", "margin")
        .select("example_id", "item_id", "margin")
        .iter_rows()
    }
