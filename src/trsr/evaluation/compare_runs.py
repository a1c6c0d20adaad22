"""Compare the rankers of several runs, after checking that all got the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from trsr.errors import DataError
from trsr.evaluation.evaluate_scores import summarize
from trsr.evaluation.metrics import parse_metric
from trsr.evaluation.per_example import SCORE_COLUMNS, PerExampleMetrics, measure

NEEDED = ("user_id", "item_id", "label", "ranker", "margin")
DEFAULTS = {
    "example_id": pl.col("user_id"),
    "score": pl.lit(None),
    "n_prompt_tokens": pl.lit(0),
    "n_cut_tokens": pl.lit(0),
}
TYPES = pl.Schema(
    {
        **dict.fromkeys(SCORE_COLUMNS, pl.String),
        "label": pl.Int64,
        "margin": pl.Float64,
        "score": pl.Float64,
        "n_prompt_tokens": pl.Int64,
        "n_cut_tokens": pl.Int64,
    }
)


def compare_runs(
    paths: Sequence[Path],
    *,
    metrics: Sequence[str],
    rankers: Collection[str] = (),
    common: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare all rankers of the runs; the result has the form of `metrics.json`.

    Args:
        paths: See `align_runs`; `rankers` and `common` too.
        metrics: Names of the metrics; metrics of probabilities only for rankers with all scores.
        rankers: Only these; empty for all.
        common: Compare on the examples that all rankers share.
        seed: Of the resampling.

    Raises:
        ConfigError: a metric has an unknown name.
        DataError: see `align_runs`; or fewer than two rankers have a metric, or no example has a value.
    """
    wanted = [parse_metric(name) for name in metrics]
    scores, n_left_out = align_runs(paths, rankers=rankers, common=common)
    with_score = scores.group_by("ranker").agg(pl.col("score").is_not_null().all()).filter("score")
    measured = measure(scores, wanted, probabilistic=with_score["ranker"].to_list())
    _check_values(measured, metrics)
    protocol = {"runs": [path.as_posix() for path in paths], "examples_left_out": n_left_out}
    return summarize(measured, protocol=protocol, compared=metrics, seed=seed)


def _check_values(measured: PerExampleMetrics, metrics: Sequence[str]) -> None:
    tables = measured.values.values()
    for name in metrics:
        if sum(name in table for table in tables) < 2:
            if name == "ece":
                raise DataError("Rankers cannot be compared on ece, which no single user has; name brier.")
            raise DataError(f"Fewer than two rankers have {name}, which needs a score; name another metric.")
    if all(np.isnan(table[name]).all() for table in tables for name in metrics if name in table):
        raise DataError(
            f"No example has a value of {' or '.join(metrics)}, so nothing can be compared: expected "
            "labels with a 1 for each chosen candidate, and a 0 for the others."
        )


def align_runs(
    paths: Sequence[Path], *, rankers: Collection[str] = (), common: bool = False
) -> tuple[pl.DataFrame, int]:
    """Read the scores of several runs and give every ranker a unique name.

    A ranker name that occurs in several runs becomes `RUN/RANKER`, where RUN is the folder's name (the
    whole path where these are equal too).

    Args:
        paths: Run folders with `scores.parquet`, or such files from any program.
        rankers: Only these, by their own or their full name; empty for all.
        common: Keep the examples that all rankers share, instead of refusing runs that differ.

    Returns:
        Rows as `measure` takes them, and how many examples were left out because not all runs share them.

    Raises:
        DataError: a file cannot be used, fewer than two rankers remain, or the questions differ.
    """
    if twice := [path for path, n in Counter(paths).items() if n > 1]:
        raise DataError(f"{twice[0]} is named twice; name each run once.")
    runs = {name: _read(path) for name, path in zip(_run_names(paths), paths, strict=True)}
    scores = _select(_concat(runs), rankers)
    questions = {
        str(name): _fingerprints(rows)
        for (name,), rows in scores.partition_by("ranker", as_dict=True).items()
    }
    every = set().union(*questions.values())
    first, *others = questions.values()
    shared = {
        example for example, mark in first.items() if all(other.get(example) == mark for other in others)
    }
    if n_left_out := len(every) - len(shared):
        if not common or not shared:
            raise DataError(_difference(questions, every, shared))
        scores = scores.filter(pl.col("example_id").is_in(list(shared)))
    return scores.select(SCORE_COLUMNS), n_left_out


def _run_names(paths: Sequence[Path]) -> list[str]:
    """Name each run by its folder; by its path where folders have the same name."""
    folders = [path.resolve() for path in paths]
    names = [
        folder.parent.name if folder.name == "scores.parquet" else folder.name.removesuffix(".parquet")
        for folder in folders
    ]
    times = Counter(names)
    return [path.as_posix() if times[name] > 1 else name for path, name in zip(paths, names, strict=True)]


def _read(path: Path) -> pl.DataFrame:
    """Read one run's scores with the columns and types of `measure`."""
    file = path / "scores.parquet" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"There is no {file}; expected a run folder or a file of scores: rank first with `trsr run`."
        )
    try:
        found = pl.read_parquet(file, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}); write it again."
        ) from error
    if missing := [column for column in NEEDED if column not in found.columns]:
        raise DataError(
            f"{file} lacks the column {' and '.join(map(repr, missing))}; scores have "
            f"{', '.join(NEEDED)}, and example_id where a user has more than one example."
        )
    _check_labels(found["label"], file)
    absent = {name: default for name, default in DEFAULTS.items() if name not in found.columns}
    try:
        frame = found.with_columns(**absent).select(SCORE_COLUMNS).cast(TYPES)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{file} has a column of another type ({str(error).splitlines()[0]}); expected text ids and"
            " rankers, labels 0 or 1, and numbers as margins."
        ) from error
    _check_rows(frame, file)
    return frame


def _check_labels(labels: pl.Series, file: Path) -> None:
    """Refuse labels other than 0 and 1 before they are cast to whole numbers."""
    if labels.dtype.is_nested():
        return  # refused with the other types
    numbers = labels.cast(pl.Float64, strict=False)
    wrong = labels.filter(~numbers.is_in([0.0, 1.0]) & labels.is_not_null())
    if len(wrong):
        raise DataError(
            f"{file} has {len(wrong)} labels that are neither 0 nor 1 (the first is {wrong[0]!r}); "
            "graded labels cannot be compared: write 1 for a chosen candidate and 0 for any other."
        )


def _check_rows(frame: pl.DataFrame, file: Path) -> None:
    if frame.is_empty():
        raise DataError(f"{file} has no row; expected one per ranker, example and candidate: rank again.")
    required = frame.with_columns(pl.col("margin").fill_nan(None)).select(*NEEDED, "example_id")
    for column, n in required.null_count().row(0, named=True).items():
        if n:
            raise DataError(f"{file} has {n} rows without {column}; every candidate needs one: rank again.")
    twice = frame.filter(pl.struct("ranker", "example_id", "item_id").is_duplicated())
    if len(twice):
        row = twice.row(0, named=True)
        raise DataError(
            f"{file} lists the item {row['item_id']!r} twice for the ranker {row['ranker']!r} and the example"
            f" {row['example_id']!r}; expected each candidate once: a user with several examples needs an"
            " example_id for each."
        )


def _concat(runs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Concatenate the runs, with the ranker's name in its run as `own` and a unique one as `ranker`."""
    times = Counter(name for frame in runs.values() for name in frame["ranker"].unique())
    clash = pl.col("own").is_in([name for name, n in times.items() if n > 1])
    return pl.concat(
        frame.with_columns(own="ranker").with_columns(
            ranker=pl.when(clash).then(f"{run}/" + pl.col("own")).otherwise("own")
        )
        for run, frame in runs.items()
    )


def _select(scores: pl.DataFrame, rankers: Collection[str]) -> pl.DataFrame:
    known = scores.select("own", "ranker").unique().sort("ranker")
    names = {*known["own"], *known["ranker"]}
    if unknown := [name for name in rankers if name not in names]:
        raise DataError(
            f"There is no ranker {' and no '.join(map(repr, unknown))} in these runs; they have "
            f"{', '.join(known['ranker'])}."
        )
    if rankers:
        scores = scores.filter(pl.any_horizontal(pl.col("own", "ranker").is_in(list(rankers))))
    if scores["ranker"].n_unique() < 2:
        raise DataError(
            f"Only the ranker {scores['ranker'][0]!r} is left; a comparison needs two: name another run or"
            " more rankers."
        )
    return scores


def _fingerprints(rows: pl.DataFrame) -> dict[str, int]:
    """Return, by example, a hash of its user, candidates and labels, whatever their order."""
    hashes = (
        rows.sort("example_id", "item_id")
        .group_by("example_id")
        .agg(pl.struct("user_id", "item_id", "label").hash(seed=0).alias("candidates"))
        .select("example_id", pl.col("candidates").hash(seed=0))
    )
    return dict(hashes.iter_rows())


def _difference(questions: Mapping[str, Mapping[str, int]], every: set[str], shared: set[str]) -> str:
    """Describe in one sentence how many examples differ, and name one."""
    unlike = sorted(every - shared)
    n_missing = sum(any(example not in marks for marks in questions.values()) for example in unlike)
    n_other = len(unlike) - n_missing
    parts = [f"{n_missing} missing for some ranker"] if n_missing else []
    parts += [f"{n_other} with another user, other candidates or other labels"] if n_other else []
    advice = (
        f"add --common to compare on the {len(shared)} shared ones"
        if shared
        else "compare runs that share some"
    )
    return (
        f"{len(unlike)} of {len(every)} examples differ between the runs ({', '.join(parts)}; for example"
        f" {unlike[0]!r}), so their values cannot be compared; {advice}."
    )
