"""Killed at any moment, the same command completes the run with the metrics of an unbroken one."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import open_experiment, tiny_run
from helpers import full_disk

from trsr.errors import OutputError
from trsr.experiment.stages import run_stages

pytestmark = pytest.mark.slow

KILLED = Path(__file__).with_name("killed_run.py")


def known_calls(run: Path) -> dict[str, float]:
    """Return the keys of the finished calls in a run's store, with the time each was committed at."""
    store = run / "summaries.sqlite"
    if not store.exists():
        return {}
    try:
        with sqlite3.connect(store) as db:
            return dict(db.execute("SELECT key, created_at FROM summaries WHERE text IS NOT NULL").fetchall())
    except sqlite3.OperationalError:  # the table is not made yet
        return {}


def start(config: Path, run: Path, *program: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, *(program or ("-m", "trsr")), "run", config, "--out", run, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(moment: str, value: object, config: Path, run: Path) -> None:
    """Run the command until it kills itself at that moment, see `killed_run`."""
    process = start(config, run, KILLED, moment, str(value))
    said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def complete_run(config: Path, run: Path) -> dict[str, object]:
    """Run the command to its end and return its output."""
    process = start(config, run)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def all_facts(run: Path) -> dict[str, dict[str, float]]:
    return dict(json.loads((run / "stages.json").read_text()))


@pytest.fixture(scope="module")
def config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the other runs, but the tiny model writes the summaries, one call at a time."""
    file = tmp_path_factory.mktemp("config") / "slow.yaml"
    engine = {"kind": "transformers", "model": str(tiny_model), "device": "cpu", "max_batch_tokens": 1}
    file.write_text(yaml.safe_dump(tiny_run(tiny_model, engine=engine)))
    return file


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    run_stages(open_experiment(config, out))
    return out


@pytest.mark.timeout(600)
def test_a_run_killed_in_every_stage_ends_as_an_unbroken_one(
    config: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kill("calls", 17, config, run)
    before = known_calls(run)
    assert 17 <= len(before) < len(known_calls(unbroken))
    kill("file", run / "checkpoints" / "checkpoint-5" / "adapter_model.safetensors", config, run)
    after = known_calls(run)
    assert after.items() >= before.items(), "a finished call was lost or made again"
    # The process that finished the stage made just the calls that were missing when it began.
    assert all_facts(run)["summarize"]["calls_made"] == len(after) - len(before)
    kill("file", run / "scores.parts" / "llm_zero_shot-000000.parquet", config, run)
    metrics = complete_run(config, run)
    assert (run / "metrics.json").read_bytes() == (unbroken / "metrics.json").read_bytes()
    assert metrics == json.loads((unbroken / "metrics.json").read_text())
    assert known_calls(run) == after
    assert known_calls(run).keys() == known_calls(unbroken).keys()
    for name in ("training.json", "model/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    left = [path.name for path in run.rglob("*") if "partial" in path.name or "checkpoint" in path.name]
    assert not left


@pytest.mark.timeout(600)
def test_a_kill_at_a_moment_of_chance_changes_nothing(config: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(config, run)
    while not (run / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    moment = random.uniform(0, sum(stage["seconds"] for stage in all_facts(unbroken).values()))
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = list(all_facts(run)) if (run / "stages.json").exists() else []
    print(f"killed {moment:.2f} s after the first stage began, when {done} were finished")
    complete_run(config, run)
    assert (run / "metrics.json").read_bytes() == (unbroken / "metrics.json").read_bytes()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_from_there(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    run, reached = tmp_path / "run", []
    for space in (0, 300, 2_000, 6_000, 15_000, 30_000):
        with full_disk(space), pytest.raises(OutputError) as caught:
            run_stages(open_experiment(config_file, run))
        assert "\n" not in str(caught.value)
        assert "None" not in str(caught.value)
        reached.append(len(all_facts(run)) if (run / "stages.json").exists() else 0)
    assert reached == sorted(reached)
    assert reached[-1] >= 2
    run_stages(open_experiment(config_file, run))
    assert (run / "metrics.json").read_bytes() == (finished_run / "metrics.json").read_bytes()
