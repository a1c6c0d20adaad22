"""Keeps computing on a CPU quick and small: threads that end with their work, buffers that are used again.

libgomp, with which torch runs its loops, keeps a team for every thread that has begun one, as long as that
thread lives. When all teams together have more threads than there are processors, none waits awake for its
next loop any more: each sleeps and has to be woken, thousands of times in a forward pass.

glibc maps a large block afresh and unmaps it when it is freed, so each forward pass on a CPU pays for page
faults on all of its large temporaries.
"""

from __future__ import annotations

import ctypes
import os
import platform
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


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
_KEEP_BYTES = 2**31 - 1
_GROW_BYTES = 64 * 2**20


def reuse_large_buffers() -> bool:
    """Keep freed memory in the process, up to 2 GB, and serve large blocks from it.

    Nothing happens on other C libraries, or where the user has set glibc's `MALLOC_...` variables.

    Returns:
        Whether the allocator was changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all(mallopt(name, value) for name, value in settings)


def give_back() -> None:
    """Return freed memory to the system, after work that needed far more than what follows.

    Else what is allocated meanwhile and kept, as by a cache, lies between the freed blocks, and each time
    more is asked of the system.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
