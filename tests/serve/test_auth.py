"""Keys are random, kept as hashes, and nothing but a whole key opens; sessions end with their key."""

from __future__ import annotations

import re
import time

import pytest

from trsr.serve.settings import SESSION_SECONDS, Key, Keys, key_hash, new_key


def test_new_keys_are_long_and_all_different() -> None:
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert min(map(len, keys)) >= 43


def test_a_hash_does_not_show_its_key() -> None:
    key = new_key()
    assert re.fullmatch("[0-9a-f]{64}", key_hash(key))
    assert key[5:] not in key_hash(key)


def test_a_caller_is_known_by_the_hash_of_their_key() -> None:
    first, second = new_key(), new_key()
    keys = Keys([key_hash(first), key_hash(second)])
    for header, key in ((f"Bearer {first}", first), (f"bearer  {second} ", second)):
        found = keys.bearer(header)
        assert found is not None
        assert (found.name, found.missing(["rank", "admin"])) == (f"key-{key_hash(key)[:8]}", [])


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {hash}"],
)
def test_nothing_else_opens(header: str) -> None:
    key = new_key()
    keys = Keys([key_hash(key)])
    assert keys.bearer(header.format(key=key, hash=key_hash(key))) is None


def test_without_keys_nobody_is_known() -> None:
    assert not Keys([])
    assert Keys([]).bearer("Bearer ") is None


class Clock:
    """Monotonic seconds that stand still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_changes_of_kept_keys_are_seen_after_a_second_and_the_last_key_stays_needed() -> None:
    kept: list[Key] = []
    clock = Clock()
    keys = Keys([], lambda: kept, clock)
    assert not keys
    kept.append(Key("shop", key_hash("one"), frozenset({"rank"})))
    assert keys.find("one") is None
    clock.now += 1
    assert keys.find("one") == kept[0]
    kept.clear()
    clock.now += 1
    assert keys.find("one") is None
    assert keys


def test_a_session_ends_in_time_or_by_logging_out_or_with_its_key() -> None:
    kept = [Key("shop", key_hash("one"), frozenset({"rank"}))]
    clock = Clock()
    keys = Keys([], lambda: kept, clock)
    first, second = keys.log_in(kept[0]), keys.log_in(kept[0])
    assert keys.session("one") is None
    assert keys.session(first) == keys.session(second) == kept[0]
    keys.log_out(first)
    assert (keys.session(first), keys.session(second)) == (None, kept[0])
    clock.now += SESSION_SECONDS
    assert keys.session(second) is None
    third = keys.log_in(kept[0])
    kept.clear()
    clock.now += 1
    assert keys.session(third) is None


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trsr.serve.settings._MAX_SESSIONS", 2)
    keys = Keys([key_hash("one")])
    key = keys.find("one")
    assert key is not None
    tokens = [keys.log_in(key) for _ in range(3)]
    assert [keys.session(token) for token in tokens] == [None, key, key]


def test_a_key_expires() -> None:
    assert Key("shop", "", frozenset(), expires=time.time() - 1).expired
    assert not Key("shop", "", frozenset(), expires=time.time() + 60).expired
    assert Key("shop", "", frozenset(), expires=86_400.0).expiry == "1970-01-02 00:00 UTC"
