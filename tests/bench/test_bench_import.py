"""`trsr bench import` reads files like MIND's in two ways that find the same events."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from trsr.bench.data import write_mind_files
from trsr.data.dataset import Dataset
from trsr.data.mind import MindImport


def test_the_files_it_writes_are_those_of_mind(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    rows = write_mind_files(tmp_path / "raw", 5_000)
    assert 5_000 <= rows < 5_063
    data = Dataset.open(MindImport(source=tmp_path / "raw").run(tmp_path / "out"))
    counts = data.info.counts
    assert counts["history_positions"] == rows
    assert counts["other_histories"] == 0
    assert counts["repeated_histories"] > counts["users"]
    assert set(data.rejects_by_reason()) == {"behaviors.tsv: history entry without a news row"}


@pytest.mark.slow
def test_importing_is_measured_against_a_script(trsr: Callable[..., Answer]) -> None:
    answer = trsr("bench", "import", "--rows", "2000")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["rows"] >= 2000
    assert report["events"] == report["naive"]["events"]
    for measured in (report, report["naive"]):
        assert measured["seconds"] > 0
        assert measured["rows_per_s"] > 0
        assert measured["peak_memory_mb"] > 10
