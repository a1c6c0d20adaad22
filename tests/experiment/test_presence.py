"""A command waits until every worker of the one before has ended, however it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trsr.errors import OutputError
from trsr.experiment import ray_workers
from trsr.experiment.ray_workers import wait_for_workers

WORKER = """
import sys
from pathlib import Path
from trsr.experiment.ray_workers import stay
stay(Path(sys.argv[1]))
print("here", flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(output: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WORKER, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        try:
            yield process
        finally:
            process.kill()


def test_nobody_is_waited_for_where_nobody_is(tmp_path: Path) -> None:
    wait_for_workers(tmp_path / "new" / "profiles.parquet", lambda: pytest.fail("it waits"))


def test_all_workers_are_waited_for_and_a_killed_one_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "profiles.parquet"
    with worker(file) as one, worker(file) as other:
        alive = [one, other]
        looks: list[int] = []

        def kill_one() -> None:
            looks.append(len(alive))
            if alive:
                alive.pop().kill()

        wait_for_workers(file, kill_one)
        assert looks[:2] == [2, 1]
        assert not alive


def test_workers_of_another_output_are_not_waited_for(tmp_path: Path) -> None:
    with worker(tmp_path / "profiles.parquet"):
        wait_for_workers(tmp_path / "others.parquet", lambda: pytest.fail("it waits"))


def test_a_worker_that_stays_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "PATIENCE", 0.0)
    file = tmp_path / "profiles.parquet"
    with worker(file), pytest.raises(OutputError, match="are still writing what belongs to"):
        wait_for_workers(file)


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be locked"):
        wait_for_workers(tmp_path / "file" / "profiles.parquet")
