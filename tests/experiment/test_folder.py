"""A run folder belongs to one configuration, and its files are complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import full_disk

from trsr.errors import OutputError, RunInUseError, RunMismatchError
from trsr.experiment.config import RunConfig
from trsr.experiment.run_folder import RunFolder, environment


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "test", "data": {"kind": "synthetic"}, **settings})


def open_run(path: Path, **settings: Any) -> RunFolder:
    return RunFolder(path, config(**settings), "trsr run test.yaml")


def test_a_new_folder_gets_the_whole_configuration(tmp_path: Path) -> None:
    open_run(tmp_path / "deep" / "run", seed=7)
    text = (tmp_path / "deep" / "run" / "config.yaml").read_text(encoding="utf-8")
    assert RunConfig.model_validate(yaml.safe_load(text)) == config(seed=7)


def test_every_process_that_works_on_a_run_is_kept_the_first_one_first(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, config(), "trsr train test.yaml")
    assert first.sessions() == []
    for _ in range(2):
        with first.working():
            pass
    later = RunFolder(tmp_path, config(), "trsr run test.yaml")
    assert [session["command"] for session in later.sessions()] == ["trsr train test.yaml"]
    with later.working():
        pass
    sessions = json.loads((tmp_path / "env.json").read_text(encoding="utf-8"))
    assert [session["command"] for session in sessions] == ["trsr train test.yaml", "trsr run test.yaml"]
    for session in sessions:
        assert datetime.fromisoformat(session["started"]).tzinfo is not None
        assert session["versions"]["polars"]
        assert set(environment()) <= set(session)


WORK = """
import sys, time
from pathlib import Path
from trsr.experiment.config import RunConfig
from trsr.experiment.run_folder import RunFolder

settings = {"name": "test", "data": {"kind": "synthetic"}}
with RunFolder(Path(sys.argv[1]), RunConfig.model_validate(settings), "trsr run first.yaml").working():
    print("at work", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "at work\n"
        folder = open_run(tmp_path)
        with pytest.raises(RunInUseError) as caught, folder.working():
            raise AssertionError("two at once")
        first.kill()
    assert f"is in use by process {first.pid} (`trsr run first.yaml`, since 20" in str(caught.value)
    assert str(caught.value).endswith("wait until it ends, or name another folder with --out.")
    assert len(folder.sessions()) == 1, "the one refused has not worked"
    with folder.working():
        assert [session["process"] for session in folder.sessions()] == [first.pid, os.getpid()]


def test_work_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(tmp_path).working():
        raise ZeroDivisionError
    with open_run(tmp_path).working():
        pass


def test_a_setting_that_did_not_exist_when_the_run_began_takes_its_default(tmp_path: Path) -> None:
    open_run(tmp_path / "run").finish("data", {})
    file = tmp_path / "run" / "config.yaml"
    older = yaml.safe_load(file.read_text(encoding="utf-8"))
    del older["recommender"]["max_batch_tokens"]
    file.write_text(yaml.safe_dump(older), encoding="utf-8")
    assert open_run(tmp_path / "run").stages() == {"data": {}}
    with pytest.raises(RunMismatchError, match="max_batch_tokens: 4096 -> 100"):
        open_run(tmp_path / "run", recommender={"max_batch_tokens": 100})


def test_a_folder_of_another_configuration_is_refused_with_the_differences(tmp_path: Path) -> None:
    open_run(tmp_path / "run").finish("data", {})
    with pytest.raises(RunMismatchError) as caught:
        open_run(tmp_path / "run", seed=3, prompt={"n_recent": 2})
    assert str(caught.value).endswith(
        "holds a run of another configuration (prompt.n_recent: 5 -> 2; seed: 0 -> 3); "
        "name another folder with --out, or undo the changes."
    )
    assert open_run(tmp_path / "run").stages() == {"data": {}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.txt", "x", "is not empty and holds no run; name another folder with --out"),
        ("config.yaml", "", "is not the configuration of a run"),
        ("config.yaml", "- a list\n", "is not the configuration of a run"),
        ("config.yaml", "[broken", "is not the configuration of a run"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunMismatchError, match=message):
        open_run(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, content)]


def test_a_run_killed_while_it_wrote_its_configuration_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("name: te")
    assert open_run(tmp_path).stages() == {}
    assert (tmp_path / "config.yaml").is_file()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be used as a folder \(Not a directory\)"):
        open_run(tmp_path / "run")


def test_a_full_disk_leaves_the_finished_stages_as_they_were(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "run")
    folder.finish("data", {"seconds": 1.0})
    with full_disk(0), pytest.raises(OutputError, match=r"stages\.json cannot be written .*free space"):
        folder.finish("examples", {"seconds": 2.0})
    with full_disk(0), pytest.raises(OutputError, match=r"log\.jsonl cannot be written"):
        folder.log("examples", "start")
    assert folder.stages() == {"data": {"seconds": 1.0}}
    assert list(open_run(tmp_path / "run").stages()) == ["data"]


def test_stages_are_remembered_in_their_order_and_logged(tmp_path: Path) -> None:
    folder = open_run(tmp_path)
    folder.log("data", "start")
    folder.finish("data", {"seconds": 1.0})
    folder.finish("examples", {"train": 3, "dataset": "é"})
    assert list(folder.stages()) == ["data", "examples"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["stage"], line["event"]) for line in lines] == [
        ("data", "start"),
        ("data", "done"),
        ("examples", "done"),
    ]
    assert lines[-1]["dataset"] == "é"


def test_the_environment_says_nothing_about_where_the_machine_keeps_things() -> None:
    env = environment()
    assert env["python"].startswith("3.")
    assert env["cpus"] >= 1
    assert "/" not in env["executable"]
    assert str(Path.home()) not in json.dumps(env)


@pytest.mark.parametrize(
    ("answer", "named"), [("echo A GPU; echo A GPU", ["A GPU", "A GPU"]), ("exit 9", [])]
)
def test_the_environment_names_the_gpus(
    answer: str, named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert environment()["gpus"] == named
