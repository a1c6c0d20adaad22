"""Runs side by side: names, questions that differ, files that others wrote or broke."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluate.compare_runs import side_by_side
from trsr.evaluate.metrics import Metric
from trsr.evaluate.per_example import measure

SCORES = make_scores(n_examples=6, n_candidates=4, per_user=1)


def save(path: Path, scores: pl.DataFrame) -> Path:
    """Write a run folder that holds scores and nothing else."""
    path.mkdir(parents=True)
    scores.write_parquet(path / "scores.parquet")
    return path


def only(*names: str) -> pl.DataFrame:
    return SCORES.filter(pl.col("ranker").is_in(names))


def names_of(scores: pl.DataFrame) -> list[str]:
    return sorted(scores["ranker"].unique().to_list())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "one", SCORES)


def test_names_that_clash_get_the_name_of_their_run(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", only("good").vstack(only("noise").with_columns(ranker=pl.lit("mine"))))
    found = side_by_side([run, other])
    assert names_of(found.scores) == ["constant", "mine", "noise", "one/good", "two/good"]
    assert (found.n_examples, found.n_left_out) == (6, 0)
    measure(found.scores, [Metric("auc")])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [save(tmp_path / name / "run", only("good")) for name in "ab"]
    assert names_of(side_by_side(runs).scores) == [f"{run.as_posix()}/good" for run in runs]


def test_a_file_serves_as_well_as_its_folder(run: Path, tmp_path: Path) -> None:
    only("good").write_parquet(tmp_path / "other.parquet")
    found = side_by_side([run / "scores.parquet", tmp_path / "other.parquet"])
    assert names_of(found.scores) == ["constant", "noise", "one/good", "other/good"]


def test_rankers_are_chosen_by_their_own_or_their_full_name(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", SCORES)
    assert names_of(side_by_side([run, other], rankers=["good"]).scores) == ["one/good", "two/good"]
    chosen = side_by_side([run, other], rankers=["two/good", "one/noise"]).scores
    assert names_of(chosen) == ["one/noise", "two/good"]
    with pytest.raises(DataError, match=r"no ranker 'llm'.*one/constant, one/good"):
        side_by_side([run, other], rankers=["good", "llm"])


def test_what_only_trsr_writes_is_not_needed(run: Path, tmp_path: Path) -> None:
    foreign = only("good").select(
        pl.col("user_id").cast(pl.Categorical),
        "item_id",
        pl.col("label").cast(pl.Boolean),
        ranker=pl.lit("theirs"),
        margin=pl.col("margin").cast(pl.Float64) * 2,
    )
    mine = run / "scores.parquet"
    pl.read_parquet(mine).with_columns(example_id=pl.col("user_id")).write_parquet(mine)
    found = side_by_side([run, save(tmp_path / "two", foreign)], rankers=["good", "theirs"])
    values = measure(found.scores, [Metric("auc")]).values
    assert (values["theirs"]["auc"] == values["good"]["auc"]).all()


def test_neither_the_order_of_rows_nor_that_of_runs_matters(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", SCORES.sample(fraction=1, shuffle=True, seed=1))
    forth, back = side_by_side([run, other]), side_by_side([other, run])
    keys = ["ranker", "example_id", "item_id"]
    assert forth.scores.sort(keys).equals(back.scores.sort(keys))
    assert forth.n_left_out == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.col("example_id") != "e1", "1 of 6 examples differ between the runs (1 missing for some ranker"),
        (
            (pl.col("example_id") != "e2") | (pl.col("item_id") != "i3"),
            "(1 with another user, other candidates",
        ),
    ],
)
def test_questions_that_differ_are_counted_in_one_sentence(
    run: Path, tmp_path: Path, change: pl.Expr, words: str
) -> None:
    other = save(tmp_path / "two", SCORES.filter(change))
    with pytest.raises(DataError) as error:
        side_by_side([run, other])
    assert words in str(error.value)
    assert "--common to compare on the 5 shared ones" in str(error.value)
    found = side_by_side([run, other], common=True)
    assert (found.n_examples, found.n_left_out) == (5, 1)
    assert found.scores["example_id"].n_unique() == 5


@pytest.mark.parametrize(
    "column", [pl.lit("x").alias("user_id"), (1 - pl.col("label")).alias("label")], ids=["user", "label"]
)
def test_another_user_or_label_is_another_question(run: Path, tmp_path: Path, column: pl.Expr) -> None:
    other = save(tmp_path / "two", only("good").with_columns(column))
    with pytest.raises(DataError, match=r"6 of 6 examples differ .* compare runs that share some"):
        side_by_side([run, other], common=True)


def test_one_run_compares_its_own_rankers_but_one_ranker_is_not_enough(run: Path) -> None:
    assert names_of(side_by_side([run]).scores) == ["constant", "good", "noise"]
    with pytest.raises(DataError, match="Only the ranker 'good' is left"):
        side_by_side([run], rankers=["good"])
    with pytest.raises(DataError, match="named twice"):
        side_by_side([run, run])


# --- broken input ---------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no .*nowhere"):
        side_by_side([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"There is no .*scores\.parquet"):
        side_by_side([tmp_path])
    (tmp_path / "scores.parquet").write_text("user_id,item_id\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        side_by_side([tmp_path])


@pytest.mark.parametrize("column", ["user_id", "item_id", "label", "ranker", "margin"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(DataError, match=f"lacks the column '{column}'"):
        side_by_side([save(tmp_path / "r", SCORES.drop(column))])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (SCORES.clear(), "has no row"),
        (SCORES.with_columns(margin=pl.lit("high")), "column of another type"),
        (SCORES.with_columns(margin=pl.lit(float("nan"))), "72 rows without margin"),
        (SCORES.with_columns(label=pl.lit(None)), "72 rows without label"),
        (SCORES.vstack(SCORES.head(1)), "lists the item 'i0' twice for the ranker 'good'"),
        (make_scores(6, 4, 2).drop("example_id"), "needs an example_id"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(tmp_path: Path, broken: pl.DataFrame, words: str) -> None:
    with pytest.raises(DataError) as error:
        side_by_side([save(tmp_path / "r", broken)])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
