"""The examples, and the code of the page on Python, run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from helpers import ROOT

from trsr.data.synthetic import SyntheticConfig, generate

EXAMPLES = ROOT / "examples"


def test_quickstart_runs_on_its_own_tables(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--model", str(tiny_model)]
    env = {**os.environ, "TRSR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "60 profiles; u00000000: " in done.stdout
    assert "my-model" in done.stdout
    assert (tmp_path / "my-model" / "trsr.json").is_file()


def test_the_page_on_python_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = generate(SyntheticConfig(n_users=30, n_items=200, n_impression_candidates=0), tmp_path / "shop")
    items, events = shop.items().collect(), shop.events().drop("position").collect()
    ids = {item_id: f"i{number}" for number, item_id in enumerate(items["item_id"])}
    for name, table in (("items", items), ("events", events)):
        table.with_columns(pl.col("item_id").replace_strict(ids)).write_csv(tmp_path / f"{name}.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRSR_CACHE", str(tmp_path / "cache"))
    text = (ROOT / "docs" / "python.md").read_text("utf-8").replace("smollm2-135m", str(tiny_model))
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    code = "trsr.evaluate([Shortest(data)], split.test).to_frame()"
    assert eval(code, names)["ranker"].to_list() == ["shortest"]


@pytest.mark.slow
@pytest.mark.model
def test_notebook_runs_with_the_embedded_model() -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    frame = names["found"].to_frame()  # type: ignore[attr-defined]
    assert frame["ranker"].to_list() == ["my-model", "popularity", "bm25"]
