"""Puts the scores of several runs side by side, after checking that all were asked the same.

A run is a folder with `scores.parquet`, or such a file by whatever program it was written. Comparing rankers
that saw other users, candidates or labels says nothing about the rankers, so it is refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trsr.errors import DataError
from trsr.evaluate.per_example import SCORE_COLUMNS

NEEDED = {
    "user_id": pl.String,
    "item_id": pl.String,
    "label": pl.Int64,
    "ranker": pl.String,
    "margin": pl.Float64,
}
OPTIONAL = {
    "example_id": pl.String,
    "score": pl.Float64,
    "n_prompt_tokens": pl.Int64,
    "n_cut_tokens": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class SideBySide:
    """The scores of all rankers of all runs, on the same questions.

    Attributes:
        scores: Rows as `measure` takes them.
        n_examples: Examples in it.
        n_left_out: Examples that not all runs share; 0 unless only the common ones were asked for.
    """

    scores: pl.DataFrame
    n_examples: int
    n_left_out: int


def side_by_side(paths: Sequence[Path], *, rankers: Collection[str] = (), common: bool = False) -> SideBySide:
    """Read the scores of several runs and give every ranker a name of its own.

    A ranker's name that occurs in more than one run becomes `RUN/RANKER`, where RUN is the folder's name (the
    whole path where these are equal too).

    Args:
        paths: Run folders or score files.
        rankers: Only these, by their own or their full name; empty for all.
        common: Keep the examples that all rankers share, instead of refusing runs that differ.

    Raises:
        DataError: a file cannot be used, fewer than two rankers remain, or the questions differ.
    """
    if len(set(paths)) < len(paths):
        twice = next(path for path, n in Counter(paths).items() if n > 1)
        raise DataError(f"{twice} is named twice; name each run once.")
    runs = {name: _read(path) for name, path in zip(_run_names(paths), paths, strict=True)}
    scores = _chosen(_named(runs), rankers)
    questions = {str(name): _questions(rows) for (name,), rows in _by_ranker(scores).items()}
    every = set().union(*questions.values())
    first = next(iter(questions.values()))
    shared = {
        example
        for example in first
        if all(asked.get(example) == first[example] for asked in questions.values())
    }
    if n_left_out := len(every) - len(shared):
        if not common or not shared:
            raise DataError(_difference(questions, every, shared))
        scores = scores.filter(pl.col("example_id").is_in(list(shared)))
    return SideBySide(scores.select(SCORE_COLUMNS), len(shared), n_left_out)


def _run_names(paths: Sequence[Path]) -> list[str]:
    """Name each run by its folder; by its path where folders are called alike."""
    folders = [path.resolve() for path in paths]
    names = [
        folder.parent.name if folder.name == "scores.parquet" else folder.name.removesuffix(".parquet")
        for folder in folders
    ]
    clash = {name for name, n in Counter(names).items() if n > 1}
    return [path.as_posix() if name in clash else name for path, name in zip(paths, names, strict=True)]


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
            f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}); write it anew."
        ) from error
    if missing := [column for column in NEEDED if column not in found.columns]:
        raise DataError(
            f"{file} lacks the column {' and '.join(map(repr, missing))}; scores have "
            f"{', '.join(NEEDED)}, and example_id where a user has more than one example."
        )
    _check_labels(found["label"], file)
    absent = {
        "example_id": pl.col("user_id"),
        "score": pl.lit(None),
        "n_prompt_tokens": pl.lit(0),
        "n_cut_tokens": pl.lit(0),
    }
    try:
        frame = found.with_columns(
            absent[name].alias(name) for name in OPTIONAL if name not in found.columns
        ).select(pl.col(name).cast(dtype) for name, dtype in (NEEDED | OPTIONAL).items())
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{file} has a column of another type ({str(error).splitlines()[0]}); expected text ids and"
            " rankers, labels 0 or 1, and numbers as margins."
        ) from error
    _check_rows(frame, file)
    return frame


def _check_labels(labels: pl.Series, file: Path) -> None:
    """Refuse labels that are no 0 or 1 before they are made whole numbers."""
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
        raise DataError(f"{file} has no row; expected one a ranker, example and candidate: rank again.")
    required = [*NEEDED, "example_id"]
    for column in required:
        if n := int(
            (frame[column].is_null() | (frame[column].is_nan() if column == "margin" else False)).sum()
        ):
            raise DataError(f"{file} has {n} rows without {column}; every candidate needs one: rank again.")
    twice = frame.select("ranker", "example_id", "item_id").is_duplicated()
    if twice.any():
        row = frame.filter(twice).row(0, named=True)
        raise DataError(
            f"{file} lists the item {row['item_id']!r} twice for the ranker {row['ranker']!r} and the example"
            f" {row['example_id']!r}; each candidate stands once, and a user with several examples needs an"
            " example_id for each."
        )


def _named(runs: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Put the runs below one another, rankers under names that no two share."""
    times = Counter(name for frame in runs.values() for name in frame["ranker"].unique().to_list())
    clash = [name for name, n in times.items() if n > 1]
    return pl.concat(
        frame.with_columns(
            own=pl.col("ranker"),
            ranker=pl.when(pl.col("ranker").is_in(clash))
            .then(pl.lit(f"{run}/") + pl.col("ranker"))
            .otherwise(pl.col("ranker")),
        )
        for run, frame in runs.items()
    )


def _chosen(scores: pl.DataFrame, rankers: Collection[str]) -> pl.DataFrame:
    """Keep the rankers asked for."""
    known = scores.select("own", "ranker").unique().sort("ranker")
    names = set(known["own"]) | set(known["ranker"])
    if unknown := [name for name in rankers if name not in names]:
        raise DataError(
            f"There is no ranker {' and no '.join(map(repr, unknown))} in these runs; they have "
            f"{', '.join(known['ranker'])}."
        )
    if rankers:
        wanted = list(rankers)
        scores = scores.filter(pl.col("own").is_in(wanted) | pl.col("ranker").is_in(wanted))
    if scores["ranker"].n_unique() < 2:
        raise DataError(
            f"Only the ranker {scores['ranker'][0]!r} is left; a comparison needs two: name another run or"
            " more rankers."
        )
    return scores


def _by_ranker(scores: pl.DataFrame) -> dict[tuple[object, ...], pl.DataFrame]:
    return scores.partition_by("ranker", as_dict=True)


def _questions(rows: pl.DataFrame) -> dict[str, int]:
    """Return, by example, a fingerprint of its user, candidates and labels, whatever their order."""
    asked = (
        rows.sort("example_id", "item_id")
        .group_by("example_id")
        .agg(pl.struct("user_id", "item_id", "label").hash(seed=0).alias("candidates"))
        .select("example_id", pl.col("candidates").hash(seed=0))
    )
    return dict(asked.iter_rows())


def _difference(questions: Mapping[str, Mapping[str, int]], every: set[str], shared: set[str]) -> str:
    """Say in one sentence how many examples differ, and name one."""
    unlike = sorted(every - shared)
    missing = [example for example in unlike if any(example not in asked for asked in questions.values())]
    other = len(unlike) - len(missing)
    parts = [f"{len(missing)} missing for some ranker"] if missing else []
    parts += [f"{other} with another user, other candidates or other labels"] if other else []
    advice = (
        f"add --common to compare on the {len(shared)} shared ones"
        if shared
        else "compare runs that share some"
    )
    return (
        f"{len(unlike)} of {len(every)} examples differ between the runs ({', '.join(parts)}; for example"
        f" {unlike[0]!r}), so their values cannot be compared; {advice}."
    )
