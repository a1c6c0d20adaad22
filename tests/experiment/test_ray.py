"""On Ray workers everything is as on one machine, and no finished call is lost or made again."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
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
N_KILLS = 5
DELAY = 0.05
"""Seconds of a call, in tests that kill."""
COLUMNS = "key, text, error, model, template_hash, item_ids, n_prompt_tokens, n_generated_tokens, n_attempts"
# What `trsr summarize --runner ray` calls, with an engine that takes its time and notes what it is asked.
DRIVER = """
import sys
from pathlib import Path
from trsr.experiment.experiment import RayRunner
from trsr.llm.engines import FakeEngine
from trsr.experiment.dataset_profiles import ProfileSettings, summarize_dataset_on_ray
from trsr.summarize.plan import SummaryConfig
data, store, log, delay = sys.argv[1:]
chosen = ProfileSettings(summary=SummaryConfig(), engine=FakeEngine(delay=float(delay), log=log))
summarize_dataset_on_ray(Path(data), chosen, store, None, RayRunner(concurrency=2))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with running_cluster() as environment:
        yield environment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop in which every four users are followed by four like them: two workers meet the same calls."""
    folder = tmp_path_factory.mktemp("data") / "shop"
    settings = SyntheticConfig(n_users=16, n_items=200, min_history=11, max_history=29, mean_history=20)
    generate(settings, folder)
    events = pl.read_parquet(folder / "events.parquet")
    users = events["user_id"].unique(maintain_order=True)
    twins = [
        events.with_columns(
            user_id=pl.col("user_id").replace_strict(
                {user: f"{number // 4}{copy}{number % 4}" for number, user in enumerate(users)}
            )
        )
        for copy in "ab"
    ]
    pl.concat(twins).sort("user_id", "position").write_parquet(folder / "events.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    info["counts"]["users"] *= 2
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


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


def call(cluster: dict[str, str], *arguments: str | Path) -> str:
    """Run `trsr` on the cluster and return what it printed."""
    command = [sys.executable, "-m", "trsr", *map(str, arguments)]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the local runner makes."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "trsr", "summarize", str(data), "--engine", "fake"]
    subprocess.run([*command, "--store", str(folder / "s.sqlite")], check=True, capture_output=True)
    return folder


def test_store_and_profiles_equal_those_of_the_local_runner(
    cluster: dict[str, str], trsr: Trsr, data: Path, tmp_path: Path
) -> None:
    options = ("summarize", data, "--engine", "fake", "--limit", "21", "--method", "hierarchical", "--json")
    (tmp_path / "ray").mkdir()
    here = json.loads(trsr(*options, "--store", tmp_path / "s.sqlite").out)
    ray = ("--store", tmp_path / "ray" / "s.sqlite", "--runner", "ray", "--concurrency", "2")
    there = json.loads(call(cluster, *options, *ray))
    same = ("profiles", "calls", "calls_made", "calls_from_store", "prompt_tokens", "generated_tokens")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert rows(tmp_path / "ray" / "s.sqlite") == rows(tmp_path / "s.sqlite")
    assert (tmp_path / "ray" / "profiles.parquet").read_bytes() == (
        tmp_path / "profiles.parquet"
    ).read_bytes()


@pytest.mark.real_data
@pytest.mark.skipif("TRSR_REAL_DATA" not in os.environ, reason="TRSR_REAL_DATA does not name the real data")
def test_two_hundred_readers_of_mind_have_the_texts_of_the_local_runner(
    cluster: dict[str, str], trsr: Trsr, tmp_path: Path
) -> None:
    source = Path(os.environ["TRSR_REAL_DATA"]) / "mind_small"
    assert trsr("import", "mind", source, "--out", tmp_path / "mind").code == 0
    options = ("summarize", tmp_path / "mind", "--engine", "fake", "--limit", "200", "--store")
    assert trsr(*options, tmp_path / "s.sqlite").code == 0
    call(cluster, *options, tmp_path / "ray.sqlite", "--runner", "ray", "--concurrency", "2")
    assert rows(tmp_path / "ray.sqlite") == rows(tmp_path / "s.sqlite") != []


class Job:
    """A driver on the cluster that can be started again, and the calls that its workers have begun."""

    def __init__(self, cluster: dict[str, str], data: Path, folder: Path) -> None:
        self.cluster, self.data, self.store = cluster, data, folder / "s.sqlite"
        self.logs: list[Path] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        self.logs.append(self.store.with_name(f"calls-{len(self.logs)}.jsonl"))
        arguments = [str(value) for value in (self.data, self.store, self.logs[-1], DELAY)]
        command = [sys.executable, "-c", DRIVER, *arguments]
        self.process = subprocess.Popen(command, env=self.cluster, stderr=subprocess.PIPE, text=True)
        return self.process

    def end(self) -> None:
        assert self.process is not None
        assert self.process.wait() == 0, self.process.stderr and self.process.stderr.read()

    def calls_of(self, log: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def calls(self) -> list[dict[str, Any]]:
        return [call for log in self.logs for call in self.calls_of(log)]

    def wait_for_calls(self, number: int) -> list[dict[str, Any]]:
        assert self.process is not None
        while len(calls := self.calls()) < number:
            assert self.process.poll() is None, f"it ended before call {number}, after {len(calls)}"
            time.sleep(0.005)
        return calls

    def check(self, local: Path, n_in_flight: int) -> None:
        """See that the store is the local runner's, and that only calls in flight were made again."""
        assert rows(self.store) == rows(local / "s.sqlite")
        calls = self.calls()
        committed: dict[str, float] = dict(rows(self.store, "key, created_at"))
        repeated = [c for c in calls if c["time"] > committed[c["key"]]]
        assert not repeated, "a finished call was made again"
        counts = Counter(c["key"] for c in calls)
        assert counts.keys() == committed.keys()
        assert len(calls) - len(committed) <= n_in_flight
        begun = [[c["time"] for c in self.calls_of(log)] for log in self.logs]
        for before, after in itertools.pairwise(times for times in begun if times):
            assert max(before) < min(after), "workers of two drivers asked at once"


@pytest.fixture
def job(cluster: dict[str, str], data: Path, tmp_path: Path) -> Iterator[Job]:
    made = Job(cluster, data, tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.communicate()


def moments(n_calls: int) -> list[int]:
    """Return how many calls are begun when something is killed, for each time."""
    return sorted(random.sample(range(2, n_calls // 2), N_KILLS))


def test_workers_killed_at_moments_of_chance_lose_and_repeat_nothing(job: Job, local: Path) -> None:
    job.start()
    killed: set[int] = set()
    for moment in moments(len(rows(local / "s.sqlite"))):
        calls = job.wait_for_calls(moment)
        while calls[-1]["process"] in killed:
            calls = job.wait_for_calls(len(calls) + 1)
        before = rows(job.store, "key, text, created_at")
        os.kill(calls[-1]["process"], signal.SIGKILL)
        killed.add(calls[-1]["process"])
        assert set(before) <= set(rows(job.store, "key, text, created_at"))
    job.end()
    assert len(killed) == N_KILLS
    job.check(local, n_in_flight=N_KILLS)


def test_drivers_killed_at_moments_of_chance_lose_and_repeat_nothing(job: Job, local: Path) -> None:
    known: set[tuple[object, ...]] = set()
    for moment in moments(len(rows(local / "s.sqlite"))):
        process = job.start()
        job.wait_for_calls(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = set(rows(job.store, "key, text, created_at"))
        assert known <= now
        known = now
    job.start()
    job.end()
    assert known <= set(rows(job.store, "key, text, created_at"))
    job.check(local, n_in_flight=2 * N_KILLS)


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
    call(cluster, "rank", config_file, "--out", run, "--runner", "ray", "--concurrency", "2")
    assert pl.read_parquet(run / "scores.parquet").equals(pl.read_parquet(finished_run / "scores.parquet"))
    assert (run / "profiles.parquet").read_bytes() == (finished_run / "profiles.parquet").read_bytes()
    assert rows(run / "summaries.sqlite") == rows(finished_run / "summaries.sqlite")


@pytest.mark.model
def test_llama_cpp_writes_the_same_on_workers(
    cluster: dict[str, str], trsr: Trsr, data: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(data, short)
    events = pl.read_parquet(data / "events.parquet")
    events.filter(pl.col("position") < 6).write_parquet(short / "events.parquet")
    # One prompt at a time: read together, prompts of other lengths change each other's last digits.
    options = ("summarize", short, "--engine", "llamacpp", "--in-flight", "1", "--limit", "2", "--store")
    assert trsr(*options, tmp_path / "s.sqlite").code == 0
    call(cluster, *options, tmp_path / "ray.sqlite", "--runner", "ray", "--concurrency", "2")
    assert len(rows(tmp_path / "s.sqlite")) == 4
    assert rows(tmp_path / "ray.sqlite") == rows(tmp_path / "s.sqlite")


def test_what_a_worker_finds_wrong_is_one_sentence(
    cluster: dict[str, str], data: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "trsr", "summarize", str(data), "--engine", "llamacpp"]
    options = ["--model", "./no/such/model", "--runner", "ray", "--store", str(tmp_path / "s.sqlite")]
    done = subprocess.run([*command, *options], env=cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "./no/such/model" in done.stderr
    assert "Traceback" not in done.stderr
