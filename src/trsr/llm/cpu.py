"""Keep computing on a CPU quick and small: threads that end with their work, buffers that are used again."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def run_in_thread(do: Callable[[], _T]) -> _T:
    """Return `do()`, called in a thread that has ended when this returns.

    libgomp keeps a team of threads for every thread that has begun a loop of torch, as long as that thread
    lives. With more of them than processors, each has to be woken thousands of times in a forward pass.

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

    Else glibc maps every large temporary of a forward pass afresh, at the cost of its page faults. Nothing
    happens on other C libraries, or where the user has set glibc's `MALLOC_...` variables.

    Returns:
        Whether the allocator was changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all(mallopt(name, value) for name, value in settings)


def give_back() -> None:
    """Return freed memory to the system, after work that needed far more than what follows."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
