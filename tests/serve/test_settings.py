"""Settings come from flags and variables; keys are kept as hashes; sessions and rates are bounded."""

from __future__ import annotations

import re
import time

import pytest

from trsr.errors import ConfigError
from trsr.serve.middleware import RateLimit
from trsr.serve.settings import SESSION_SECONDS, Key, Keys, key_hash, load_settings, new_key


class Clock:
    """Monotonic seconds that stand still until they are moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    load_settings(host=host).check_closed(False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_listening_elsewhere_is_refused_without_a_key(host: str) -> None:
    settings = load_settings(host=host)
    settings.check_closed(True)
    with pytest.raises(ConfigError, match=r"can be reached from other machines.*`trsr keys add`"):
        settings.check_closed(False)


def test_flags_come_before_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = (key_hash("one"), key_hash("two"))
    monkeypatch.setenv("TRSR_API_KEYS", f" {hashes[0]}, {hashes[1]} ,")
    monkeypatch.setenv("TRSR_PORT", "9001")
    assert load_settings().api_keys == hashes
    assert load_settings(port=None).port == 9001
    assert load_settings(port=9002).port == 9002


def test_wrong_settings_are_all_named_and_no_key_is_repeated() -> None:
    with pytest.raises(ConfigError, match=r"sha256sum.*trsr keys add") as caught:
        load_settings(api_keys="my-secret-key", port=70_000, max_waiting=0)
    assert "my-secret-key" not in str(caught.value)
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {
        "api_keys",
        "port",
        "max_waiting",
    }


def test_proxies_are_addresses_or_networks() -> None:
    for given in ("", "*", "10.0.0.0/8, ::1"):
        assert load_settings(forwarded_allow_ips=given).forwarded_allow_ips == given
    with pytest.raises(
        ConfigError, match="forwarded_allow_ips: 'proxy' does not appear to be an IPv4 or IPv6"
    ):
        load_settings(forwarded_allow_ips="10.0.0.1,proxy")


def test_keys_are_long_random_and_known_by_their_hash() -> None:
    first, second = made = [new_key() for _ in range(2)]
    assert len(set(made)) == 2
    assert min(map(len, made)) >= 43
    assert re.fullmatch("[0-9a-f]{64}", key_hash(first))
    assert first[5:] not in key_hash(first)
    keys = Keys([key_hash(first), key_hash(second)])
    for header, key in ((f"Bearer {first}", first), (f"bearer  {second} ", second)):
        found = keys.bearer(header)
        assert found is not None
        assert (found.name, found.missing(["rank", "admin"])) == (f"key-{key_hash(key)[:8]}", [])
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        f"Basic {first}",
        first,
        f"Bearer {first}x",
        key_hash(first),
    ):
        assert keys.bearer(wrong) is None
    assert not Keys([])
    assert Keys([]).bearer("Bearer ") is None


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


def test_ten_seconds_worth_of_requests_may_come_at_once_and_then_one_at_a_time() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    assert [limit.seconds_to_wait("a") for _ in range(10)] == [0.0] * 10
    assert limit.seconds_to_wait("a") == pytest.approx(1.0)
    assert limit.seconds_to_wait("b") == 0.0, "callers do not take from each other"
    clock.now += 0.6
    assert limit.seconds_to_wait("a") == pytest.approx(0.4)
    clock.now += 0.4
    assert limit.seconds_to_wait("a") == 0.0
    clock.now += 3600
    assert sum(limit.seconds_to_wait("a") == 0.0 for _ in range(50)) == 10, "silence is not saved up"


def test_the_rate_limit_forgets_those_who_were_silent_longest() -> None:
    limit = RateLimit(6, Clock())
    for number in range(12_000):
        limit.seconds_to_wait(str(number))
    assert len(limit._buckets) == 10_000
    assert limit.seconds_to_wait("11999") > 0
