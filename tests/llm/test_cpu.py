"""Freed memory is kept in the process unless the user decided otherwise, and threads end with their work."""

from __future__ import annotations

import ctypes
import platform
import threading

import pytest

from trsr.llm import cpu


class Libc:
    """Stands for the C library."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.trims: list[int] = []

    def mallopt(self, name: int, value: int) -> int:
        self.settings[name] = value
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


def test_reuse_large_buffers_maps_nothing_apart_and_keeps_what_is_freed(libc: Libc) -> None:
    assert cpu.reuse_large_buffers()
    assert libc.settings[-4] == 0
    assert libc.settings[-1] > 2**30


def test_reuse_large_buffers_leaves_the_users_settings(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not cpu.reuse_large_buffers()
    assert libc.settings == {}


def test_other_c_libraries_are_left_alone(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.give_back()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    cpu.give_back()
    assert not cpu.reuse_large_buffers()
    assert (libc.settings, libc.trims) == ({}, [0])


def test_apart_returns_what_was_done_in_a_thread_that_has_ended() -> None:
    thread = cpu.run_in_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        cpu.run_in_thread(lambda: 1 / 0)
