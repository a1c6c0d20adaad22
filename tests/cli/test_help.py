"""The command line explains itself, quickly, and answers mistakes in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from conftest import Answer

from trsr.cli import app
from trsr.errors import InputError, TrsrError

Trsr = Callable[..., Answer]
NAMES = {
    *(
        "import",
        "validate",
        "summarize",
        "train",
        "rank",
        "evaluate",
        "run",
        "compare",
        "serve",
        "demo",
        "bench",
        "models",
        "store",
        "plan",
        "env",
    ),
}
# What only commands at work may import; each costs a tenth of a second or more.
HEAVY = (
    *("torch", "transformers", "polars", "matplotlib", "pydantic", "numpy", "peft", "jinja2", "openai"),
    *("fastapi", "uvicorn"),
)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with the words that call it."""
    if not hasattr(group, "commands"):
        yield path, group
        return
    for name, command in group.commands.items():
        yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


def test_every_command_of_the_design_is_there() -> None:
    assert {path[0] for path, _ in COMMANDS} >= NAMES


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_has_help_with_an_example(trsr: Trsr, path: tuple[str, ...], command: Any) -> None:
    answer = trsr(*path, "--help")
    assert answer.code == 0
    assert f"Example: trsr {' '.join(path)}" in " ".join(answer.out.split())
    assert command.help is not None
    assert command.help.splitlines()[0].endswith(".")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['trsr', '--help']\n"
        "from trsr.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert "HEAVY []" in done.stdout


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trsr", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_nothing_at_all_shows_the_help(trsr: Trsr) -> None:
    answer = trsr()
    assert "Usage" in answer.out + answer.err


@pytest.mark.parametrize("arguments", [["run"], ["run", "c.yaml"], ["run", "--nonsense"], ["evaluate"]])
def test_a_wrong_use_is_exit_code_two(trsr: Trsr, arguments: list[str]) -> None:
    assert trsr(*arguments).code == 2


@pytest.mark.parametrize(("error", "code"), [(InputError("Two."), 2), (TrsrError("One."), 1)])
def test_an_error_on_purpose_is_one_line_and_its_exit_code(
    trsr: Trsr, monkeypatch: pytest.MonkeyPatch, error: TrsrError, code: int
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("trsr.experiment.run_folder.environment", fail)
    assert trsr("env") == Answer(code, "", f"Error: {error}\n")
    with pytest.raises(type(error)):
        trsr("env", "--debug")
    with pytest.raises(type(error)):
        trsr("--debug", "env")


def test_a_stop_from_the_keyboard_says_how_to_go_on(trsr: Trsr, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trsr.experiment.run_folder.environment", stop)
    answer = trsr("env")
    assert answer == Answer(
        130, "", "Stopped. What was finished is kept; run the same command again to go on.\n"
    )


def test_a_stop_that_comes_while_an_object_is_deleted_is_not_lost(
    trsr: Trsr, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work() -> None:
        Old()
        threading.Event().wait(20)

    monkeypatch.setattr("trsr.experiment.run_folder.environment", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert trsr("env").code == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
)
def test_a_full_disk_is_one_sentence_whatever_library_meets_it(
    trsr: Trsr, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("trsr.experiment.run_folder.environment", fail)
    answer = trsr("env")
    assert answer.code == 2
    assert answer.err == "Error: The disk is full; free space, then run the same command again to go on.\n"
    with pytest.raises(type(error)):
        trsr("env", "--debug")


def test_the_environment_is_printed_for_people_and_machines(trsr: Trsr) -> None:
    assert "python" in trsr("env").out
    facts = json.loads(trsr("env", "--json").out)
    assert facts["versions"]["trsr"]
