"""The exception tree is as it is drawn, and each error says what the command line needs."""

from __future__ import annotations

import re

import pytest

from trsr import errors
from trsr.errors import ConfigError, EngineError, InputError, MissingExtraError, TrsrError, first_line


def classes() -> dict[str, type[TrsrError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }


def drawn_tree() -> dict[str, str | None]:
    """Return each class drawn in the module docstring with the one it hangs from."""
    found: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for match in re.finditer(r"^[ │├└─]*?(\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        column = match.start(1) - match.start()
        above = [(place, name) for place, name in above if place < column]
        found[match[1]] = above[-1][1] if above else None
        above.append((column, match[1]))
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    real: dict[str, str | None] = {
        name: None if value is TrsrError else str(value.__base__.__name__)  # type: ignore[union-attr]
        for name, value in classes().items()
    }
    assert drawn_tree() == real
    assert len(real) > 10


@pytest.mark.parametrize("name", sorted(classes()))
def test_only_bad_input_exits_with_two(name: str) -> None:
    error = classes()[name]
    assert issubclass(error, TrsrError)
    assert error.exit_code == (2 if issubclass(error, InputError) else 1)
    assert error.__doc__


def test_a_config_error_keeps_each_problem_on_its_line() -> None:
    error = ConfigError(["a is wrong.", "b is missing."])
    assert error.problems == ["a is wrong.", "b is missing."]
    assert str(error) == "a is wrong.\nb is missing."
    assert ConfigError("only one.").problems == ["only one."]


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    assert "pip install 'trsr[llamacpp]'" in str(MissingExtraError("xllamacpp", "llamacpp"))


def test_an_engine_error_says_whether_to_try_again() -> None:
    assert EngineError("busy", retryable=True).retryable
    assert not EngineError("gone").retryable


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("No such file.\nMore", "No such file"),
        ("\n  Wrong settings:\n  5 heads.\nMore", "Wrong settings: 5 heads"),
        ("", "OSError"),
    ],
)
def test_of_a_librarys_error_the_first_line_is_said(said: str, first: str) -> None:
    assert first_line(OSError(said)) == first


def test_a_missing_key_is_called_one() -> None:
    assert first_line(KeyError("rope")) == "unknown key 'rope'"
