"""The exception tree equals its drawing, and each error has its exit code and advice."""

from __future__ import annotations

import re

import pytest

from trsr import errors
from trsr.errors import ConfigError, InputError, MissingExtraError, TrsrError, first_line

CLASSES = {name: value for name, value in vars(errors).items() if name.endswith("Error")}


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str | None] = {}
    branch: list[str] = []
    for lines, name in re.findall(r"^    ((?:[│ ]   )*(?:[├└]── )?)(\w+Error)\b", errors.__doc__ or "", re.M):
        branch[len(lines) // 4 :] = [name]
        drawn[name] = branch[-2] if len(branch) > 1 else None
    real = {name: None if value is TrsrError else value.__base__.__name__ for name, value in CLASSES.items()}
    assert drawn == real
    assert len(real) > 10


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_only_bad_input_exits_with_two(name: str) -> None:
    error = CLASSES[name]
    assert error.exit_code == (2 if issubclass(error, InputError) else 1)
    assert error.__doc__


def test_a_config_error_keeps_each_problem_on_its_line() -> None:
    error = ConfigError(["a is wrong.", "b is missing."])
    assert error.problems == str(error).split("\n") == ["a is wrong.", "b is missing."]
    assert ConfigError("only one.").problems == ["only one."]


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    assert "pip install 'trsr[llamacpp]'" in str(MissingExtraError("xllamacpp", "llamacpp"))


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (OSError("No such file.\nMore"), "No such file"),
        (OSError("\n  Wrong settings:\n  5 heads.\nMore"), "Wrong settings: 5 heads"),
        (OSError(""), "OSError"),
        (KeyError("rope"), "unknown key 'rope'"),
    ],
)
def test_the_first_line_of_a_librarys_error_is_taken(error: Exception, first: str) -> None:
    assert first_line(error) == first
