"""Work done apart leaves no thread behind, and with it no team of OpenMP's."""

from __future__ import annotations

import threading

import pytest

from trsr.errors import EngineError
from trsr.llm.cpu import apart


def test_what_is_done_apart_is_returned_when_its_thread_has_ended() -> None:
    thread = apart(threading.current_thread)
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_errors_come_out() -> None:
    def fail() -> None:
        raise EngineError("mine")

    with pytest.raises(EngineError, match="mine"):
        apart(fail)
