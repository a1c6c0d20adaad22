"""`trsr models` lists models and resolves names."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trsr.cli.models import models_app
from trsr.errors import ModelError
from trsr.llm import models

runner = CliRunner()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRSR_CACHE", str(tmp_path))
    return tmp_path


def test_list_names_the_embedded_model_the_cache_and_the_engines(cache: Path) -> None:
    (cache / "models" / "mine-123").mkdir(parents=True)
    (cache / "models" / "mine-123" / "model.safetensors").write_bytes(b"1234")
    (cache / "models" / ".mine-456-unfinished").mkdir()
    found = json.loads(runner.invoke(models_app, ["list", "--json"]).output)
    assert found["embedded"] == {"smollm2-135m": "gguf"}
    assert [(Path(entry["path"]).name, entry["bytes"]) for entry in found["cached"]] == [("mine-123", 4)]
    assert found["engines"]["fake"] is True
    assert set(found["engines"]) == {"fake", "llamacpp", "openai", "transformers"}


def test_list_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    output = runner.invoke(models_app, ["list"]).output
    assert "on the Hugging Face hub" in output
    assert "pip install 'trsr[llamacpp]'" in output


def test_resolve_prints_id_revision_and_files() -> None:
    found = json.loads(runner.invoke(models_app, ["resolve", "smollm2-135m", "--json"]).output)
    assert found["model_id"] == f"smollm2-135m@{found['revision']}"
    assert found["files"] == [str(models.gguf_file("smollm2-135m"))]


def test_resolve_of_an_unknown_name_is_an_error() -> None:
    assert isinstance(runner.invoke(models_app, ["resolve", "smollm3"]).exception, ModelError)


def test_cache_prints_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = runner.invoke(models_app, ["cache", str(tmp_path)])
    assert result.exit_code == 0
    assert str(tmp_path) in result.output.splitlines()[-1]
