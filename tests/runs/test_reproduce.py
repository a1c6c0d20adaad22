"""The experiments in runs/ go from data to a record in one command; here on a few synthetic users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT = {"MORE", "FULL"}
CONFIGS = {"mind": "mind_recurrent", "amazon": "amazon_office_hierarchical"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mind", "amazon"])
def test_an_experiment_ends_with_a_record(name: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {
        "SMOKE": "1",
        "OUT": str(tmp_path / "run"),
        "RESULTS": str(tmp_path),
        "PYTHON": sys.executable,
        "MACHINE": "a laptop",
        "MODEL": str(tiny_model),
        "PYTHONPATH": str(ROOT / "src"),
    }
    done = subprocess.run(
        ["sh", ROOT / "runs" / f"reproduce_{name}.sh"],
        env={key: value for key, value in os.environ.items() if key not in LEFT} | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / f"{CONFIGS[name]}-smoke.json").read_text(encoding="utf-8"))
    assert record["machine"] == "a laptop"
    assert record["metrics"]["leakage"]["found"] == 0
    assert {"popularity", "bm25", "llm_zero_shot", "llm", "llm_no_profile", "llm_counted"} <= set(
        record["metrics"]["rankers"]
    )
    assert f"configs/{CONFIGS[name]}.yaml" in record["command"]
    assert (tmp_path / "run" / "report.html").exists()
