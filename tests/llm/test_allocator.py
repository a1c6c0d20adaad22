"""The allocator is asked to keep large buffers, unless the user decided otherwise."""

from __future__ import annotations

import ctypes
import platform

import pytest

from trsr.llm import cpu


class Libc:
    """Stands for the C library."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.trims: list[int] = []

    def mallopt(self, name: int, value: int) -> int:
        self.calls.append((name, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims.append(pad)
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return fake


def test_large_blocks_come_from_memory_that_is_kept(libc: Libc) -> None:
    assert cpu.reuse_large_buffers()
    assert dict(libc.calls)[-4] == 0  # nothing is mapped for itself
    assert dict(libc.calls)[-1] > 2**30  # and little is given back


def test_the_users_own_settings_stay(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not cpu.reuse_large_buffers()
    assert libc.calls == []


def test_other_c_libraries_are_left_alone(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not cpu.reuse_large_buffers()
    assert libc.calls == []


def test_free_memory_is_given_back_where_the_library_can(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.give_back()
    assert libc.trims == [0]
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    cpu.give_back()
    assert libc.trims == [0]
