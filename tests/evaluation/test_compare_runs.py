"""Comparing runs: unique names, questions that differ, files of other programs, broken files."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluation.compare_runs import align_runs, compare_runs
from trsr.evaluation.metrics import Metric
from trsr.evaluation.per_example import measure

SCORES = make_scores(n_examples=6, n_candidates=4, per_user=1)


def save(path: Path, scores: pl.DataFrame = SCORES) -> Path:
    """Write a run folder that holds scores and nothing else."""
    path.mkdir(parents=True)
    scores.write_parquet(path / "scores.parquet")
    return path


def only(*names: str) -> pl.DataFrame:
    return SCORES.filter(pl.col("ranker").is_in(names))


def rankers(*paths: Path, **options: list[str]) -> list[str]:
    return sorted(align_runs(paths, **options)[0]["ranker"].unique().to_list())  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "one")


def test_clashing_names_get_the_name_of_their_run(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", only("good").vstack(only("noise").with_columns(ranker=pl.lit("mine"))))
    assert rankers(run, other) == ["constant", "mine", "noise", "one/good", "two/good"]
    scores, n_left_out = align_runs([run, other])
    assert (scores["example_id"].n_unique(), n_left_out) == (6, 0)
    measure(scores, [Metric("auc")])
    same = [save(tmp_path / name / "run", only("good")) for name in "ab"]
    assert rankers(*same) == [f"{path.as_posix()}/good" for path in same]
    only("good").write_parquet(tmp_path / "other.parquet")
    files = run / "scores.parquet", tmp_path / "other.parquet"
    assert rankers(*files) == ["constant", "noise", "one/good", "other/good"]


def test_rankers_are_chosen_by_their_own_or_their_full_name(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two")
    assert rankers(run, other, rankers=["good"]) == ["one/good", "two/good"]
    assert rankers(run, other, rankers=["two/good", "one/noise"]) == ["one/noise", "two/good"]
    assert rankers(run) == ["constant", "good", "noise"]
    with pytest.raises(DataError, match=r"no ranker 'llm'.*one/constant, one/good"):
        align_runs([run, other], rankers=["good", "llm"])
    with pytest.raises(DataError, match="Only the ranker 'good' is left"):
        align_runs([run], rankers=["good"])
    with pytest.raises(DataError, match="named twice"):
        align_runs([run, run])


def test_columns_that_only_trsr_writes_are_optional(run: Path, tmp_path: Path) -> None:
    foreign = only("good").select(
        pl.col("user_id").cast(pl.Categorical),
        "item_id",
        pl.col("label").cast(pl.Boolean),
        ranker=pl.lit("theirs"),
        margin=pl.col("margin").cast(pl.Float64) * 2,
    )
    mine = run / "scores.parquet"
    pl.read_parquet(mine).with_columns(example_id=pl.col("user_id")).write_parquet(mine)
    scores, _ = align_runs([run, save(tmp_path / "two", foreign)], rankers=["good", "theirs"])
    values = measure(scores, [Metric("auc")]).values
    assert (values["theirs"]["auc"] == values["good"]["auc"]).all()


def test_the_order_of_rows_and_runs_does_not_matter(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", SCORES.sample(fraction=1, shuffle=True, seed=1))
    forth, back = (
        align_runs(paths)[0].sort("ranker", "example_id", "item_id") for paths in ([run, other], [other, run])
    )
    assert forth.equals(back)


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
def test_differing_questions_are_refused_or_left_out(
    run: Path, tmp_path: Path, change: pl.Expr, words: str
) -> None:
    other = save(tmp_path / "two", SCORES.filter(change))
    with pytest.raises(DataError) as error:
        align_runs([run, other])
    assert words in str(error.value)
    assert "--common to compare on the 5 shared ones" in str(error.value)
    scores, n_left_out = align_runs([run, other], common=True)
    assert (scores["example_id"].n_unique(), n_left_out) == (5, 1)


@pytest.mark.parametrize("column", [pl.lit("x").alias("user_id"), (1 - pl.col("label")).alias("label")])
def test_another_user_or_label_is_another_question(run: Path, tmp_path: Path, column: pl.Expr) -> None:
    other = save(tmp_path / "two", only("good").with_columns(column))
    with pytest.raises(DataError, match=r"6 of 6 examples differ .* compare runs that share some"):
        align_runs([run, other], common=True)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no .*nowhere"):
        align_runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"There is no .*scores\.parquet"):
        align_runs([tmp_path])
    (tmp_path / "scores.parquet").write_text("user_id,item_id\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        align_runs([tmp_path])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        *(
            (SCORES.drop(column), f"lacks the column '{column}'")
            for column in ("user_id", "item_id", "label", "ranker", "margin")
        ),
        (SCORES.clear(), "has no row"),
        (SCORES.with_columns(margin=pl.lit("high")), "column of another type"),
        (SCORES.with_columns(margin=pl.lit(float("nan"))), "72 rows without margin"),
        (SCORES.with_columns(label=pl.lit(None)), "72 rows without label"),
        *(
            (
                SCORES.with_columns(label=pl.when(pl.col("label") == 1).then(grade).otherwise(0.0)),
                f"18 labels that are neither 0 nor 1 (the first is {grade})",
            )
            for grade in (0.7, 1.9, 2.0, -1.0, float("nan"))
        ),
        (SCORES.drop("item_id", "ranker", "margin"), "lacks the column 'item_id' and 'ranker' and 'margin'"),
        (SCORES.vstack(SCORES.head(1)), "lists the item 'i0' twice for the ranker 'good'"),
        (make_scores(6, 4, 2).drop("example_id"), "needs an example_id"),
    ],
)
def test_unusable_rows_are_refused_in_one_line(tmp_path: Path, broken: pl.DataFrame, words: str) -> None:
    with pytest.raises(DataError) as error:
        align_runs([save(tmp_path / "r", broken)])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Boolean, pl.Int8, pl.String])
def test_labels_of_another_type_that_say_0_or_1_are_read(
    run: Path, tmp_path: Path, dtype: type[pl.DataType]
) -> None:
    other = save(tmp_path / "two", SCORES.with_columns(pl.col("label").cast(dtype)))
    assert align_runs([run, other])[1] == 0


def test_compare_runs_gives_values_and_pairs_on_the_named_metrics(run: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "two", SCORES.with_columns(score=pl.lit(None, pl.Float64)))
    found = compare_runs([run, other], metrics=["auc", "logloss"], rankers=["good", "noise"])
    assert found["protocol"]["runs"] == [run.as_posix(), other.as_posix()]
    pairs = [{pair["a"], pair["b"]} for pair in found["comparisons"] if pair["metric"] == "logloss"]
    assert pairs == [{"one/good", "one/noise"}], "only rankers with scores have a logloss"
    assert len(found["comparisons"]) == 6 + 1


@pytest.mark.parametrize(
    ("scores", "metric", "words"),
    [
        (
            SCORES.with_columns(score=pl.lit(None, pl.Float64)),
            "logloss",
            "Fewer than two rankers have logloss",
        ),
        (SCORES, "ece", "cannot be compared on ece"),
        (SCORES.with_columns(score=pl.lit(float("nan"))), "logloss", "NaN or missing; logloss expects"),
        (SCORES.with_columns(label=pl.lit(0)), "auc", "No example has a value of auc, so nothing can be"),
    ],
)
def test_compare_runs_refuses_metrics_without_values(
    tmp_path: Path, scores: pl.DataFrame, metric: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        compare_runs([save(tmp_path / "r", scores)], metrics=[metric])
