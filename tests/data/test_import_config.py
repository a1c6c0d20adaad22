from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from trsr.data.amazon import AmazonM2Import, AmazonReviewsImport, import_amazon_m2, import_amazon_reviews
from trsr.data.importers import ImportConfig, run_import
from trsr.data.mind import MindImport, import_mind
from trsr.data.movielens import MovieLensImport, import_movielens
from trsr.data.table import TableImport, import_table
from trsr.errors import DataError

CONFIG: TypeAdapter[ImportConfig] = TypeAdapter(ImportConfig)
PAIRS = [
    (MindImport, import_mind),
    (AmazonM2Import, import_amazon_m2),
    (AmazonReviewsImport, import_amazon_reviews),
    (MovieLensImport, import_movielens),
    (TableImport, import_table),
]


@pytest.mark.parametrize(("model", "function"), PAIRS)
def test_a_configuration_has_the_options_and_defaults_of_its_importer(
    model: type[BaseModel], function: object
) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    options = {name: field for name, field in model.model_fields.items() if name != "kind"}
    assert set(options) == set(parameters) - {"out", "overwrite"}
    for name, field in options.items():
        if not field.is_required():
            assert field.default == parameters[name].default


@pytest.mark.parametrize("kind", ["mind", "amazon-m2", "amazon-reviews", "movielens"])
def test_each_kind_leads_to_its_importer(tmp_path: Path, kind: str) -> None:
    config = CONFIG.validate_python({"kind": kind, "source": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere"):
        run_import(config, tmp_path / "out")


def test_a_table_is_imported_from_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("item_id,title\na,Lamp\n")
    (tmp_path / "e.csv").write_text("user_id,item_id\nu,a\n")
    config = CONFIG.validate_python(
        {"kind": "table", "items": str(tmp_path / "i.csv"), "events": str(tmp_path / "e.csv"), "name": "mine"}
    )
    assert run_import(config, tmp_path / "out").info.name == "mine"


@pytest.mark.parametrize(
    "config", [{"kind": "nothing"}, {"kind": "mind"}, {"kind": "mind", "source": ".", "newz": 1}]
)
def test_a_wrong_configuration_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CONFIG.validate_python(config)
