"""Where a store is: what is a database, what is refused, and that no password is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.errors import ConfigError
from trsr.summarize.store_url import check_store_url, hide_password, is_database_url, resolve_store_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me:sec@ret@host/db", "postgresql://me@host/db"),
        ("postgresql://me:sec/r?t@host/db", "postgresql://me@host/db"),
        ("postgresql://:secret@host/db", "postgresql://@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
        ("--store=postgresql://me:secret@host/db", "--store=postgresql://me@host/db"),
        ("engine.base_url=http://me:secret@host/v1", "engine.base_url=http://me@host/v1"),
        ("runs/a:b@c.sqlite", "runs/a:b@c.sqlite"),
    ],
)
def test_redacted_removes_the_password_and_keeps_the_rest(url: str, shown: str) -> None:
    assert hide_password(url) == shown
    assert hide_password(shown) == shown


@given(st.text(st.characters(codec="utf-8", exclude_characters="@"), min_size=1).map("§{}§".format))
def test_redacted_shows_no_password_however_it_is_written(password: str) -> None:
    assert password not in hide_password(f"postgresql://me:{password}@host/db")


@pytest.mark.parametrize(
    "place", ["a.sqlite", "/x/y z.db", "postgres://me@h/d", "postgresql+psycopg:///d?host=/s"]
)
def test_checked_accepts_files_and_databases_unchanged(place: str) -> None:
    assert check_store_url(place) == place
    assert is_database_url(place) == ("://" in place)


@pytest.mark.parametrize(
    "place",
    [
        "",
        "mysql://me:secret@h/d",
        "postgresql://me:secret@h",
        "postgresql://me:secret@h/",
        "postgresql://me:sec@ret@h/d",
        "postgresql://me:sec/ret@h/d",
        "postgresql://me:secret@h:port/d",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(place: str) -> None:
    with pytest.raises(ValueError, match="a file or postgresql://USER:PASSWORD@HOST:PORT/DATABASE") as caught:
        check_store_url(place)
    with pytest.raises(ConfigError, match=r"^store: found '.*', expected a file or ") as again:
        resolve_store_url(place)
    assert "ret" not in f"{caught.value}{again.value}"


def test_resolved_fills_in_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRSR_TEST_PASSWORD", "p%40ss")
    expected = "postgresql://me:p%40ss@host/db"
    assert resolve_store_url("postgresql://me:$TRSR_TEST_PASSWORD@host/db") == expected
    assert resolve_store_url("postgresql://me:${TRSR_TEST_PASSWORD}@host/db") == expected
    with pytest.raises(ConfigError, match="names the environment variable TRSR_NO_SUCH, which is not set"):
        resolve_store_url("postgresql://me:$TRSR_NO_SUCH@host/db")
