from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from trsr.data.importers import ImportConfig
from trsr.errors import DataError

CONFIG: TypeAdapter[ImportConfig] = TypeAdapter(ImportConfig)


@pytest.mark.parametrize("kind", ["mind", "amazon-m2", "amazon-reviews", "movielens"])
def test_each_kind_leads_to_its_importer(tmp_path: Path, kind: str) -> None:
    config = CONFIG.validate_python({"kind": kind, "source": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere"):
        config.run(tmp_path / "out")


def test_a_table_is_imported_from_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("item_id,title\na,Lamp\n")
    (tmp_path / "e.csv").write_text("user_id,item_id\nu,a\n")
    config = CONFIG.validate_python(
        {"kind": "table", "items": str(tmp_path / "i.csv"), "events": str(tmp_path / "e.csv"), "name": "mine"}
    )
    assert config.run(tmp_path / "out").info.name == "mine"


@pytest.mark.parametrize(
    "config", [{"kind": "nothing"}, {"kind": "mind"}, {"kind": "mind", "source": ".", "newz": 1}]
)
def test_a_wrong_configuration_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CONFIG.validate_python(config)
