"""Every command on the pages runs, in its own folder, and prints the output shown.

A tiny random model replaces the embedded one, so texts and scores differ from the pages.
"""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import MakeOnce
from page_runner import ROOT, Runner
from programs import need_program

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
MODEL = "smollm2-135m"


def free_ports(n: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def make_runner(folder: Path, model: Path) -> Runner:
    """Return a runner that uses a tiny model, and ports that are free."""
    first, second = free_ports(2)
    replace = {
        f"model: {MODEL}": f"model: {model}",
        "--grounded --show": f"--grounded --model {model} --show",
        "--limit": f"--model {model} --limit",
        "127.0.0.1:8000": f"127.0.0.1:{first}",
        "127.0.0.1:8001": f"127.0.0.1:{second}",
        "--port 8001": f"--port {second}",
    }
    return Runner(folder, replace=replace, env={"TRSR_PORT": str(first)})


@pytest.fixture(scope="session")
def tutorial(tiny_model: Path, make_once: MakeOnce) -> Path:
    """The folder of a finished tutorial; tests only copy it."""
    need_program("curl")

    def do(root: Path) -> None:
        make_runner(root / "reader", tiny_model).run(DOCS / "tutorial.md")

    return make_once("tutorial", do) / "reader"


@pytest.fixture
def after_tutorial(tutorial: Path, tiny_model: Path, tmp_path: Path) -> Runner:
    """A runner in a copy of the finished tutorial."""
    shutil.copytree(tutorial, tmp_path / "shop")
    return make_runner(tmp_path / "shop", tiny_model)


def test_tutorial_page_runs(after_tutorial: Runner) -> None:
    run = after_tutorial.folder / "out" / "shop"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["counts"]["users"] == 16
    assert metrics["rankers"]["llm"]["mrr@5"]["value"] > 0
    assert (run / "model" / "adapter_model.safetensors").exists()
    with closing(sqlite3.connect(run / "serve.sqlite")) as db:
        (n_events,) = db.execute("SELECT count(*) FROM events WHERE event_id = 'order-1'").fetchone()
    assert n_events == 1
    assert "customer03" in (after_tutorial.folder / "page.html").read_text()


def test_serving_page_runs(after_tutorial: Runner) -> None:
    after_tutorial.run(DOCS / "serving.md")
    folder = after_tutorial.folder
    assert json.loads((folder / "answer.json").read_text())["type"] == "urn:trsr:problem:unauthorized"
    for file in folder.glob("users.sqlite*"):
        assert b"I camp in winter" not in file.read_bytes()


def test_concepts_page_runs(after_tutorial: Runner) -> None:
    after_tutorial.run(DOCS / "concepts.md")
    assert pl.read_parquet(after_tutorial.folder / "same_category.parquet")["margin"].n_unique() == 2


def test_postgres_page_runs(after_tutorial: Runner, postgres_url: str) -> None:
    after_tutorial.env["SHOP_STORE"] = postgres_url
    after_tutorial.run(DOCS / "how-to" / "postgres.md")


def test_readme_runs(after_tutorial: Runner, tiny_model: Path, tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "reader", tiny_model)
    for name in ("items.csv", "events.csv"):
        shutil.copy(after_tutorial.folder / name, runner.folder)
    settings = yaml.safe_load((after_tutorial.folder / "shop.yaml").read_text())
    settings |= {"train": None, "engine": {"kind": "fake"}, "rankers": ["random", "recency"]}
    (runner.folder / "my.yaml").write_text(yaml.safe_dump(settings))
    # No model is loaded but the served one: the tutorial has shown that models write.
    fakes = {"--grounded --show": "--grounded --engine fake --show", "--limit": "--engine fake --limit"}
    runner.replace |= {"USER_ID": "customer03", **fakes}
    runner.run(ROOT / "README.md")
    assert (runner.folder / "out" / "shop" / "serve.sqlite").exists()
