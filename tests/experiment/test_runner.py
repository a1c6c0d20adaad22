"""Which options name which runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from trsr.errors import ConfigError
from trsr.experiment.experiment import RayRunner, choose_runner

Trsr = Callable[..., Answer]


def test_the_local_runner_is_none_and_ray_takes_its_numbers() -> None:
    assert choose_runner("local", None, None) is None
    assert choose_runner("ray", None, None) == RayRunner(1, 0.0)
    assert choose_runner("ray", 8, 0.5) == RayRunner(8, 0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("spark", None, None), "'spark', expected local or ray"),
        (("local", 2, None), "add it, or leave them out"),
        (("local", None, 1.0), "add it, or leave them out"),
        (("ray", 0, None), "found 0, expected a whole number of at least 1"),
        (("ray", 1, -1.0), "found -1.0, expected a number of at least 0"),
    ],
)
def test_a_wrong_option_says_what_was_expected(
    options: tuple[str, int | None, float | None], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_runner(*options)


@pytest.mark.parametrize("command", ["summarize", "rank"])
def test_commands_refuse_an_unknown_runner(trsr: Trsr, command: str, tmp_path: Path) -> None:
    place = () if command == "summarize" else ("--out", tmp_path / "run")
    answer = trsr(command, tmp_path, *place, "--runner", "spark")
    assert (answer.code, answer.err) == (2, "Error: runner: found 'spark', expected local or ray.\n")


def test_one_user_is_not_shown_by_a_cluster(trsr: Trsr, tmp_path: Path) -> None:
    answer = trsr("summarize", tmp_path, "--runner", "ray", "--show", "u1", "--engine", "fake")
    assert answer.code == 2
    assert "leave --runner ray out" in answer.err
