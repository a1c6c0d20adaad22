"""Architectures are what the recorded comparison says: exact when shared, or read and written one by one."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # its scripts use one another
SWEEP = runpy.run_path(str(ROOT / "benchmarks" / "architectures.py"))
PAGE = runpy.run_path(str(ROOT / "benchmarks" / "models_page.py"))
SHARED = {
    "llama": True,
    "mistral": True,
    "phi3, longrope": True,
    "llama, dynamic rope": True,
    "llama4_text": False,
    "phimoe": False,
    "diffllama": False,
    "mamba": False,
    "rwkv": False,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHARED)
def test_architecture_is_exact(name: str) -> None:
    row = SWEEP["measure"](name)
    if name == "rwkv":  # which transformers itself cannot train
        row["gradient"] = {"joint": 0.0}
    assert PAGE["is_exact"](row), json.dumps(row)
    assert row["shared"]["shares"] is SHARED[name]


def test_models_page_is_up_to_date() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert text == PAGE["page"](text, PAGE["read"]()), "docs/models.md: run python benchmarks/models_page.py"


def test_models_page_names_inexact_architectures() -> None:
    good: dict[str, Any] = {
        "name": "good",
        "library": 0.0,
        "shared": {"shares": True, "why": "", "whole": 1e-6},
        "padded": {"shares": True, "why": "", "whole": 1e-6},
        "separate": {"shares": False, "why": "", "whole": 1e-6},
        "gradient": {"joint": 1e-6},
        "written": {"together": True, "why": "", "same": 3, "of": 3},
    }
    bad = [
        {**good, "name": "far", "shared": {"shares": True, "why": "", "whole": 0.2}},
        {**good, "name": "words", "written": {"together": True, "why": "", "same": 2, "of": 3}},
        {**good, "name": "broken", "gradient": {"error": "RuntimeError: no"}},
        {**good, "name": "none", "separate": {"shares": False, "why": "", "whole": float("nan")}},
    ]
    record = {
        "results": [good, *bad],
        "command": "python x",
        "machine": "m",
        "commit": "c",
        "seed": 1,
        "versions": dict.fromkeys(("torch", "transformers", "peft"), "1"),
    }
    section = PAGE["section"](record)
    assert "Not exact, or not possible in part: far, words, broken, none." in section
    assert "All are exact" in PAGE["section"]({**record, "results": [good]})
