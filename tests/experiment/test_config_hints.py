from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import ConfigError
from trsr.experiment.config import RunConfig, line_of, load_config, nearest_setting, repeated_keys

TEXT = """name: a
data: {kind: folder, path: d}
summary:
  method: none
  # a comment
  max_new_token: 3
rankers:
  - random
sumary: {}
"""


@pytest.mark.parametrize(
    ("place", "near"),
    [
        (("sumary",), "summary"),
        (("data", "folder", "pth"), "path"),
        (("data", "table", "user_ids"), "user_id"),
        (("summary", "max_new_token"), "max_new_tokens"),
        (("train", "learning_rat"), "learning_rate"),
        (("train", "profiles", "counte"), "counted"),
        (("qqqqqq",), None),
        (("no", "such", "group"), None),
    ],
)
def test_the_nearest_setting_is_that_of_the_same_group(place: tuple[str, ...], near: str | None) -> None:
    assert nearest_setting(RunConfig, place) == near


def test_lines_are_those_of_the_file() -> None:
    assert line_of(TEXT, ("sumary",)) == 9
    assert line_of(TEXT, ("summary", "max_new_token")) == 6
    assert line_of(TEXT, ("data", "folder", "path")) == 2
    assert line_of(TEXT, ("rankers", 0)) == 8
    assert line_of(TEXT, ("set", "by", "override")) is None


def test_an_unknown_key_has_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(TEXT)
    with pytest.raises(ConfigError) as error:
        load_config(file, ["train.epoch=1"])
    assert error.value.problems == [
        "summary.max_new_token (line 6): there is no such setting; the nearest is max_new_tokens.",
        "train.epoch: there is no such setting; the nearest is epochs.",
        "sumary (line 9): there is no such setting; the nearest is summary.",
    ]


def test_a_key_that_stands_twice_is_a_problem(tmp_path: Path) -> None:
    text = "name: a\ndata:\n  kind: folder\n  path: d\n  path: e\nname: b\n"
    assert sorted(repeated_keys(text)) == [("name", 1, 6), ("path", 4, 5)]
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(
        ConfigError, match=r"path: stands twice in the same group \(lines 4 and 5\); keep one"
    ):
        load_config(file)


@pytest.mark.parametrize(
    "text", ["a: &x {b: 1}\nc: *x\nd: {<<: *x}\n", "&a [*a]", "? [1, 2]\n: 3\n", "", "1: a\n"]
)
def test_aliases_and_odd_keys_are_no_repeats(text: str) -> None:
    assert list(repeated_keys(text)) == []
