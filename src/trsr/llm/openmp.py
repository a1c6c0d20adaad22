"""Keeps parallel loops quick in a process where several threads compute.

libgomp, with which torch runs its loops, keeps a team for every thread that has begun one, as long as that
thread lives. When all teams together have more threads than there are processors, none waits awake for its
next loop any more: each sleeps and has to be woken, thousands of times in a forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def apart(do: Callable[[], _T]) -> _T:
    """Return `do()`, called in a thread that has ended, its team with it, when this returns.

    Raises:
        Exception: what `do` raised.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="trsr-apart", daemon=True)  # a Ctrl-C need not wait for it
    thread.start()
    thread.join()
    return future.result()
