"""Keys are random, kept as hashes, and nothing but a whole key opens."""

from __future__ import annotations

import pytest

from trsr.serve.auth import Keys, is_hash, key_hash, new_key


def test_new_keys_are_long_and_all_different() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert min(map(len, keys)) >= 43


def test_a_hash_does_not_show_its_key() -> None:
    key = new_key()
    assert is_hash(key_hash(key))
    assert not is_hash(key)
    assert key[5:] not in key_hash(key)


def test_a_caller_is_known_by_the_hash_of_their_key() -> None:
    first, second = new_key(), new_key()
    keys = Keys([key_hash(first), key_hash(second)])
    assert keys.caller(f"Bearer {first}") == f"key-{key_hash(first)[:8]}"
    assert keys.caller(f"bearer  {second} ") == f"key-{key_hash(second)[:8]}"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {hash}"],
)
def test_nothing_else_opens(header: str) -> None:
    key = new_key()
    keys = Keys([key_hash(key)])
    assert keys.caller(header.format(key=key, hash=key_hash(key))) is None


def test_without_keys_nobody_is_known() -> None:
    assert not Keys([])
    assert Keys([]).caller("Bearer ") is None
