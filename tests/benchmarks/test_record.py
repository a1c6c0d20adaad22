"""A record of a run has its commands and versions."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "record.py"


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = runpy.run_path(str(SCRIPT))["record"](run, "a laptop", "a note")
    return content


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_record_has_command_commit_and_minutes(run: Path) -> None:
    content = record(run)
    (sitting,) = json.loads((run / "env.json").read_text())
    assert {key: content[key] for key in ("name", "seed", "machine", "note", "command", "commit")} == {
        "name": "tiny",
        "seed": 7,
        "machine": "a laptop",
        "note": "a note",
        "command": sitting["command"],
        "commit": sitting["commit"],
    }
    assert content["versions"]["python"] == sitting["python"]
    assert content["minutes"].keys() >= {"summarize", "train", "rank", "total"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["profiles"].pop("worst")  # holds words of users, which are not recorded
    assert content["metrics"] == metrics
    assert "later_sittings" not in content


def test_record_has_later_sessions(run: Path) -> None:
    (first,) = json.loads((run / "env.json").read_text())
    other = first | {"command": "trsr run again", "commit": "0123456789ab"}
    (run / "env.json").write_text(json.dumps([first, other]))
    content = record(run)
    assert (content["command"], content["commit"]) == (first["command"], first["commit"])
    (later,) = content["later_sittings"]
    assert (later["command"], later["commit"]) == ("trsr run again", "0123456789ab")
    assert later["versions"] == first["versions"]


def test_record_has_no_local_paths(run: Path) -> None:
    (sitting,) = json.loads((run / "env.json").read_text())
    first = sitting | {"command": "trsr run tiny.yaml --out /home/ann/runs/tiny --set seed=1"}
    second = sitting | {"command": "trsr rank tiny.yaml --out=/runs/tiny"}
    (run / "env.json").write_text(json.dumps([first, second]))
    content = record(run)
    assert content["command"] == "trsr run tiny.yaml --out out/tiny --set seed=1"
    assert content["later_sittings"][0]["command"] == "trsr rank tiny.yaml --out out/tiny"


def test_record_reads_older_env_files(run: Path) -> None:
    (sitting,) = json.loads((run / "env.json").read_text())
    del sitting["started"]
    (run / "env.json").write_text(json.dumps(sitting))
    assert record(run)["command"] == sitting["command"]


def test_record_joins_several_seeds(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "seeds"
    for seed in (9, 10):  # ten comes after nine, and before it in the alphabet
        folder = Path(shutil.copytree(run, whole / f"seed{seed}"))
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 7", f"seed: {seed}"))
        stages = {"rank": {"seconds": 60.0 * seed}, "evaluate": {"seconds": 1.0}}
        (folder / "stages.json").write_text(json.dumps(stages))
    shutil.copy(run / "metrics.json", whole)
    content = record(whole)
    assert content["seed"] == [9, 10]
    assert content["minutes"] == {"rank": 19.0, "evaluate": 0.0, "total": 19.0}
    assert len(content["later_sittings"]) == 1
    assert (content["name"], content["command"]) == ("tiny", record(run)["command"])
