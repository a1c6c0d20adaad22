"""The commands of docs/how-to/ray.md are such that they can be given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from trsr.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "ray.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("export")
]


def test_the_page_has_commands_of_both_programs() -> None:
    assert {shlex.split(command)[0] for command in COMMANDS} == {"trsr", "ray"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("trsr")])
def test_trsr_takes_every_option_of_the_page(command: str) -> None:
    name, *arguments = shlex.split(command)[1:]
    known = typer.main.get_command(app)
    found = known.get_command(None, name)  # type: ignore[attr-defined]
    with found.make_context(name, arguments) as context:
        assert context.params["runner"] == "ray"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("ray")])
def test_ray_takes_every_option_of_the_page(command: str) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", exc_type=ImportError)
    name, *arguments = shlex.split(command)[1:]
    with scripts.cli.get_command(None, name).make_context(name, arguments) as context:
        assert context.params["head"] or context.params["address"] == "FIRST_MACHINE:6379"
