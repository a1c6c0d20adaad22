"""Settings come from flags and variables; what is open to strangers needs a key."""

from __future__ import annotations

import pytest

from trsr.errors import ConfigError
from trsr.serve.settings import key_hash, load_settings

HASH = key_hash("one")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    load_settings(host=host).check_closed(False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_to_listen_elsewhere_is_refused_without_a_key(host: str) -> None:
    settings = load_settings(host=host)
    settings.check_closed(True)
    with pytest.raises(ConfigError, match=r"can be reached from other machines.*`trsr keys add`"):
        settings.check_closed(False)


def test_keys_stand_in_a_variable_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRSR_API_KEYS", f" {HASH}, {key_hash('two')} ,")
    assert load_settings().api_keys == (HASH, key_hash("two"))


def test_a_flag_goes_before_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRSR_PORT", "9001")
    assert load_settings(port=None).port == 9001
    assert load_settings(port=9002).port == 9002


def test_a_plain_key_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"sha256sum.*trsr keys add") as caught:
        load_settings(api_keys="my-secret-key")
    assert "my-secret-key" not in str(caught.value)


def test_proxies_are_addresses_or_networks() -> None:
    for given in ("", "*", "10.0.0.0/8, ::1"):
        assert load_settings(forwarded_allow_ips=given).forwarded_allow_ips == given
    with pytest.raises(
        ConfigError, match="forwarded_allow_ips: 'proxy' does not appear to be an IPv4 or IPv6"
    ):
        load_settings(forwarded_allow_ips="10.0.0.1,proxy")


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(port=70_000, max_waiting=0)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["port", "max_waiting"]
