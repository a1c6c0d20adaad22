"""On Ray workers everything is as on one machine, and no finished call is lost when something is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Answer
from ray_cluster import running_cluster

from trsr.data.synthetic import SyntheticConfig, generate

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
pytest.importorskip("ray.data", exc_type=ImportError)

Trsr = Callable[..., Answer]
N_KILLS = 3
DELAY = 0.05
"""Seconds of a call, in tests that kill."""
COLUMNS = "key, text, error, model, template_hash, item_ids, n_prompt_tokens, n_generated_tokens"
# The call of `trsr summarize --runner ray`, with a slow engine that records its prompts.
DRIVER = """
import sys
from pathlib import Path
from trsr.experiment.ray import RayRunner
from trsr.llm.engines import FakeEngine
from trsr.experiment.dataset_profiles import ProfileSettings, summarize_dataset_on_ray
from trsr.summarize.plan import SummaryConfig
data, store, log, delay = sys.argv[1:]
chosen = ProfileSettings(summary=SummaryConfig(), engine=FakeEngine(delay=float(delay), log=log))
summarize_dataset_on_ray(Path(data), chosen, store, None, RayRunner(concurrency=2))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    settings = SyntheticConfig(n_users=24, n_items=200, min_history=9, max_history=29, mean_history=18)
    generate(settings, folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with running_cluster() as environment:
        yield environment


def rows(store: Path, columns: str = COLUMNS) -> list[tuple[Any, ...]]:
    """Return a store's rows in the order of their keys; none while it is being made."""
    if not store.exists():
        return []
    db = sqlite3.connect(store)
    try:
        return db.execute(f"SELECT {columns} FROM summaries ORDER BY key").fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        db.close()


def call(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `trsr` in a process of its own."""
    command = [sys.executable, "-m", "trsr", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_store_and_profiles_equal_those_of_the_local_runner(
    cluster: dict[str, str], trsr: Trsr, data: Path, tmp_path: Path
) -> None:
    options = ("summarize", data, "--engine", "fake", "--limit", "21", "--method", "hierarchical", "--json")
    (tmp_path / "ray").mkdir()
    here = json.loads(trsr(*options, "--store", tmp_path / "s.sqlite").out)
    ray = ("--store", tmp_path / "ray" / "s.sqlite", "--runner", "ray", "--concurrency", "2")
    there = json.loads(call(cluster, *options, *ray).stdout)
    same = ("profiles", "calls", "calls_made", "calls_from_store", "prompt_tokens", "generated_tokens")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert rows(tmp_path / "ray" / "s.sqlite") == rows(tmp_path / "s.sqlite")
    local, remote = tmp_path / "profiles.parquet", tmp_path / "ray" / "profiles.parquet"
    assert remote.read_bytes() == local.read_bytes()


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the local runner makes."""
    store = tmp_path_factory.mktemp("local") / "s.sqlite"
    done = call(dict(os.environ), "summarize", data, "--engine", "fake", "--store", store)
    assert done.returncode == 0, done.stderr
    return store


class Job:
    """A driver on the cluster that can be started again, and the calls that its workers have begun."""

    def __init__(self, cluster: dict[str, str], data: Path, folder: Path) -> None:
        self.cluster, self.data = cluster, data
        self.store, self.log = folder / "s.sqlite", folder / "calls.jsonl"

    def start(self) -> subprocess.Popen[str]:
        arguments = [str(value) for value in (self.data, self.store, self.log, DELAY)]
        command = [sys.executable, "-c", DRIVER, *arguments]
        self.process = subprocess.Popen(command, env=self.cluster, stderr=subprocess.PIPE, text=True)
        return self.process

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def wait_for_calls(self, number: int) -> list[dict[str, Any]]:
        while len(calls := self.calls()) < number:
            assert self.process.poll() is None, f"it ended before call {number}, after {len(calls)}"
            time.sleep(0.005)
        return calls

    def check(self, local: Path, n_in_flight: int) -> None:
        """See that the store is the local runner's, and that only calls in flight were made again."""
        assert self.process.wait() == 0, self.process.stderr and self.process.stderr.read()
        assert rows(self.store) == rows(local)
        assert len(self.calls()) - len(rows(local)) <= n_in_flight


@pytest.fixture
def job(cluster: dict[str, str], data: Path, tmp_path: Path) -> Iterator[Job]:
    made = Job(cluster, data, tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def moments(local: Path) -> list[int]:
    """Return how many calls are begun when something is killed, for each time."""
    return sorted(random.sample(range(2, len(rows(local)) // 2), N_KILLS))


def test_killed_workers_lose_no_finished_call(job: Job, local: Path) -> None:
    job.start()
    killed: set[int] = set()
    for moment in moments(local):
        calls = job.wait_for_calls(moment)
        while calls[-1]["process"] in killed:
            calls = job.wait_for_calls(len(calls) + 1)
        before = rows(job.store, "key, text, created_at")
        os.kill(calls[-1]["process"], signal.SIGKILL)
        killed.add(calls[-1]["process"])
        assert set(before) <= set(rows(job.store, "key, text, created_at"))
    job.check(local, n_in_flight=N_KILLS)


def test_killed_drivers_lose_no_finished_call(job: Job, local: Path) -> None:
    known: set[tuple[object, ...]] = set()
    for moment in moments(local):
        process = job.start()
        job.wait_for_calls(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = set(rows(job.store, "key, text"))
        assert known <= now
        known = now
    job.start()
    job.check(local, n_in_flight=2 * N_KILLS + N_KILLS)  # and those that its workers begin before they end
    assert known <= set(rows(job.store, "key, text"))


def test_ranking_gives_the_scores_of_the_local_runner(
    cluster: dict[str, str], config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)  # its model is fine-tuned already
    for made in ("profiles.parquet", "summaries.sqlite", "scores.parquet"):
        (run / made).unlink()
    stages = json.loads((run / "stages.json").read_text())
    left = {name: facts for name, facts in stages.items() if name not in {"summarize", "rank", "evaluate"}}
    (run / "stages.json").write_text(json.dumps(left))
    done = call(cluster, "rank", config_file, "--out", run, "--runner", "ray", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(run / "scores.parquet").equals(pl.read_parquet(finished_run / "scores.parquet"))
    assert (run / "profiles.parquet").read_bytes() == (finished_run / "profiles.parquet").read_bytes()
    assert rows(run / "summaries.sqlite") == rows(finished_run / "summaries.sqlite")


def test_errors_of_workers_are_one_sentence(cluster: dict[str, str], data: Path, tmp_path: Path) -> None:
    options = ("--model", "./no/such/model", "--runner", "ray", "--store", tmp_path / "s.sqlite")
    done = call(cluster, "summarize", data, "--engine", "llamacpp", *options)
    assert done.returncode == 2
    assert "./no/such/model" in done.stderr
    assert "Traceback" not in done.stderr
