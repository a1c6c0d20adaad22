from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from trsr.cli.data import import_app, validate
from trsr.data.dataset import Dataset
from trsr.errors import DataError

app = typer.Typer()
app.add_typer(import_app)
app.command()(validate)


def trsr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def shop(tmp_path: Path) -> list[object]:
    (tmp_path / "items.csv").write_text("item_id,title,kind\na,Lamp,x\nb,Rug,y\n")
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,a\nu,b\nv,z\n")
    return ["import", "table", "--items", tmp_path / "items.csv", "--events", tmp_path / "events.csv"]


def test_import_prints_counts_and_rejects_by_reason(tmp_path: Path, shop: list[object]) -> None:
    result = trsr(*shop, "--out", tmp_path / "d", "--text-fields", "title, kind", "--category-fields", "kind")
    assert result.exit_code == 0
    assert "items: 2\n" in result.stdout
    assert "rejects: 1\n    events.csv: unknown item: 1\n" in result.stdout
    assert Dataset.open(tmp_path / "d").info.category_fields == ["kind"]


def test_import_prints_one_json_object(tmp_path: Path, shop: list[object]) -> None:
    report = json.loads(trsr(*shop, "--out", tmp_path / "d", "--name", "shop", "--json").stdout)
    assert report["name"] == "shop"
    assert report["counts"]["events"] == 2
    assert report["rejects"] == {"events.csv: unknown item": 1}


def test_import_takes_headerless_files(tmp_path: Path) -> None:
    (tmp_path / "i.tsv").write_text("a\tLamp\n")
    (tmp_path / "e.csv").write_text("u,a\n")
    options = ["--items-columns", "id,title", "--events-columns", "who,what", "--user-id", "who"]
    files = ["--items", tmp_path / "i.tsv", "--events", tmp_path / "e.csv", "--out", tmp_path / "d"]
    result = trsr("import", "table", *files, *options, "--event-item-id", "what")
    assert result.exit_code == 0, result.exception
    assert [h.item_ids for h in Dataset.open(tmp_path / "d").histories()] == [("a",)]


def test_a_second_import_needs_overwrite(tmp_path: Path, shop: list[object]) -> None:
    assert trsr(*shop, "--out", tmp_path / "d").exit_code == 0
    refused = trsr(*shop, "--out", tmp_path / "d")
    assert isinstance(refused.exception, DataError)
    assert refused.exception.exit_code == 2
    assert trsr(*shop, "--out", tmp_path / "d", "--overwrite").exit_code == 0


@pytest.mark.parametrize("kind", ["mind", "amazon-m2", "amazon-reviews", "movielens"])
def test_every_kind_says_what_is_missing(tmp_path: Path, kind: str) -> None:
    result = trsr("import", kind, tmp_path / "nowhere", "--out", tmp_path / "d")
    assert isinstance(result.exception, DataError)
    assert "nowhere" in str(result.exception)


def test_an_unknown_kind_is_a_usage_error() -> None:
    assert trsr("import", "netflix", ".", "--out", "d").exit_code == 2


def test_validate_says_nothing_is_wrong_or_exits_with_2(tmp_path: Path, shop: list[object]) -> None:
    trsr(*shop, "--out", tmp_path / "d")
    good = trsr("validate", tmp_path / "d")
    assert good.exit_code == 0
    assert "events.csv: 0.0% of the rows unreadable, 33.3% of the entries to unknown items\n" in good.stdout
    assert good.stdout.endswith(f"{tmp_path / 'd'}: no problem found in the files, but 2 warnings.\n")
    report = json.loads(trsr("validate", tmp_path / "d", "--json").stdout)
    assert report["valid"] is True
    assert report["files"]["events.csv"]["reference_share"] == pytest.approx(1 / 3)
    assert len(report["warnings"]) == 2
    (tmp_path / "d" / "items.parquet").unlink()
    bad = trsr("validate", tmp_path / "d")
    assert bad.exit_code == 2
    assert "items.parquet: cannot be used: the file is missing\n" in bad.stdout
    as_json = trsr("validate", tmp_path / "d", "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["problems"][0]["file"] == "items.parquet"


@pytest.mark.parametrize("kind", ["movielens", "amazon-reviews"])
@pytest.mark.parametrize("rating", ["nan", "inf"])
def test_a_threshold_that_is_no_number_is_refused(tmp_path: Path, kind: str, rating: str) -> None:
    result = trsr("import", kind, tmp_path, "--out", tmp_path / "d", "--min-rating", rating)
    assert isinstance(result.exception, DataError)
    assert f"Found min_rating = {rating}; input should be a finite number." in str(result.exception)
