"""Options that name a runner, the pieces that its workers get, and the commands of docs/how-to/ray.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Answer

from trsr.cli import app
from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import ConfigError
from trsr.experiment.dataset_profiles import dataset_slices, histories_with_text
from trsr.experiment.ray import RayRunner, choose_runner

Trsr = Callable[..., Answer]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    settings = SyntheticConfig(n_users=24, n_items=200, min_history=9, max_history=29, mean_history=18)
    generate(settings, folder)
    return folder


@pytest.mark.parametrize(
    ("options", "runner"),
    [
        (("local", None, None), None),
        (("ray", None, None), RayRunner(1, 0.0)),
        (("ray", 8, 0.5), RayRunner(8, 0.5)),
    ],
)
def test_options_name_a_runner(options: Any, runner: RayRunner | None) -> None:
    assert choose_runner(*options) == runner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("spark", None, None), "'spark', expected local or ray"),
        (("local", 2, None), "add it, or leave them out"),
        (("local", None, 1.0), "add it, or leave them out"),
        (("ray", 0, None), "found 0, expected a whole number of at least 1"),
        (("ray", 1, -1.0), "found -1.0, expected a number of at least 0"),
    ],
)
def test_wrong_runner_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_runner(*options)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("summarize", ".", "--runner", "spark"), "runner: found 'spark'"),
        (("rank", ".", "--out", "no-run", "--runner", "spark"), "runner: found 'spark'"),
        (("summarize", ".", "--runner", "ray", "--show", "u1", "--engine", "fake"), "leave --runner ray out"),
    ],
)
def test_commands_refuse_runners_they_cannot_use(trsr: Trsr, command: Any, message: str) -> None:
    answer = trsr(*command)
    assert answer.code == 2
    assert message in answer.err


@pytest.mark.parametrize(("limit", "n_users"), [(None, 24), (7, 7), (6, 6), (99, 24)])
def test_dataset_slices_hold_whole_users(data: Path, limit: int | None, n_users: int) -> None:
    dataset = Dataset.open(data)
    slices, found = dataset_slices(dataset, 5, limit)
    pieces = [list(histories_with_text(dataset, start=start, stop=stop)) for start, stop in slices]
    assert found == n_users
    assert [len(piece) for piece in pieces] == [5] * (n_users // 5) + [n_users % 5] * (n_users % 5 > 0)
    assert [h for piece in pieces for h in piece] == list(histories_with_text(dataset))[:n_users]


def test_each_worker_gets_several_pieces_unless_they_are_large() -> None:
    assert RayRunner(2).users_per_piece(200) == 25
    assert RayRunner(8).users_per_piece(1) == 1
    assert RayRunner(2).users_per_piece(10**6) == 1000


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
