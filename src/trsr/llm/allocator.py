"""Lets large buffers be used again instead of being given back to the system after every layer.

glibc maps a large block afresh and unmaps it when it is freed, so each forward pass on a CPU pays for page
faults on all of its large temporaries.
"""

from __future__ import annotations

import ctypes
import os
import platform

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
