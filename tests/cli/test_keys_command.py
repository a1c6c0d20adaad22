"""`trsr keys`: a key is made before the first start, printed once, listed without its secret, and removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from trsr.serve.database import read_keys
from trsr.serve.settings import key_hash

Trsr = Callable[..., Answer]


def test_a_key_is_printed_once_and_kept_as_its_hash(trsr: Trsr, tmp_path: Path) -> None:
    file = tmp_path / "serve.sqlite"
    made = trsr("keys", "add", tmp_path, "--name", "shop", "--scope", "rank, events", "--expires", "90d")
    assert (made.code, made.out.count("\n")) == (0, 1)
    (key,) = read_keys(file)
    assert key.hash == key_hash(made.out.strip())
    assert (key.name, key.scopes, key.user_prefix) == ("shop", frozenset({"rank", "events"}), "")
    more = ("--name", "a", "--scope", "rank", "--user-prefix", "team-a/", "--db", file)
    assert trsr("keys", "add", *more).out != made.out
    assert made.out.strip().encode() not in file.read_bytes()
    listed = trsr("keys", "list", "--db", file).out
    assert listed == (
        f"a: rank; users team-a/*; expires never\nshop: events,rank; all users; expires {key.expiry}\n"
    )
    assert trsr("keys", "remove", "shop", tmp_path).code == 0
    assert [key.name for key in read_keys(file)] == ["a"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--name": "a b"}, "Found the name 'a b'; use up to 64 letters"),
        ({"--name": "old"}, "The key 'old' exists already; choose another name"),
        ({"--scope": "rank,write"}, "Found the scope 'write'; expected some of rank, events, admin."),
        ({"--scope": ""}, "Found the scope ''; expected some of"),
        ({"--scope": "admin", "--user-prefix": "a"}, "Found --user-prefix with the scope admin"),
        ({"--expires": "0d"}, "Found --expires '0d'; expected days or hours"),
        ({"--expires": "tomorrow"}, "Found --expires 'tomorrow'"),
    ],
)
def test_a_wrong_key_is_one_sentence_and_not_made(
    trsr: Trsr, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    assert trsr("keys", "add", tmp_path, "--name", "old", "--scope", "rank").code == 0
    options = {"--name": "new", "--scope": "rank", **changes}
    answer = trsr("keys", "add", tmp_path, *(part for option in options.items() for part in option))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"Error: {said}")
    assert [key.name for key in read_keys(tmp_path / "serve.sqlite")] == ["old"]


def test_what_does_not_exist_is_said(trsr: Trsr, tmp_path: Path) -> None:
    assert "give the served run or model folder" in trsr("keys", "list").err
    assert "no folder" in trsr("keys", "add", tmp_path / "no", "--name", "a", "--scope", "rank").err
    assert "There is no database" in trsr("keys", "list", tmp_path).err
    assert not list(tmp_path.iterdir())
    trsr("keys", "add", tmp_path, "--name", "a", "--scope", "rank")
    assert "has no key 'b'" in trsr("keys", "remove", "b", tmp_path).err
