from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trsr.cli.bench import app, write_mind_files
from trsr.data.mind import MindImport


def test_the_files_it_writes_are_those_of_mind(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    rows = write_mind_files(tmp_path / "raw", 5_000)
    assert 5_000 <= rows < 5_063
    data = MindImport(source=tmp_path / "raw").run(tmp_path / "out")
    counts = data.info.counts
    assert counts["history_positions"] == rows
    assert counts["other_histories"] == 0
    assert counts["repeated_histories"] > counts["users"]
    assert set(data.rejects_by_reason()) == {"behaviors.tsv: history entry without a news row"}


@pytest.mark.slow
def test_bench_import_prints_one_json_object() -> None:
    command = typer.Typer()
    command.add_typer(app)
    result = CliRunner().invoke(command, ["bench", "import", "--rows", "2000"])
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report["rows"] >= 2000
    assert report["events"] == report["naive"]["events"]
    for measured in (report, report["naive"]):
        assert measured["seconds"] > 0
        assert measured["rows_per_s"] > 0
        assert measured["peak_memory_mb"] > 10
