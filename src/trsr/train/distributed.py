"""The processes that train one model together, as `accelerate launch` or `torchrun` start them.

Training itself communicates through torch; here processes only wait for each other and share values. Light
to import.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

from trsr.errors import EngineError

T = TypeVar("T")

# The others wait while the main process imports data and writes summaries, which may take days.
_LONGEST_WAIT = timedelta(days=30)


class ProcessEndedError(EngineError):
    """Another of the processes ended, and printed why."""


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def index() -> int:
    """Return the index of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Return whether this process writes folders, prints and logs."""
    return index() == 0


def prints_error(error: Exception) -> bool:
    """Return whether this process prints an error: its own, or as the main process for all."""
    joined = _group.cache_info().currsize > 0  # before that, all of them find the same
    return is_main() or (joined and not isinstance(error, ProcessEndedError))


def is_sharded() -> bool:
    """Return whether accelerate's configuration requests FSDP."""
    return "RANK" in os.environ and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join(cpu: bool) -> None:
    """Connect to the other processes until this one ends; with `cpu` the training runs on CPUs."""
    from accelerate import PartialState

    PartialState(cpu=cpu)
    _group()
    atexit.register(leave)


@cache
def _group() -> Any:
    """Return a process group over sockets: waiting in it occupies no GPU."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order; all of them must call this.

    Raises:
        ProcessEndedError: another process ended.
    """
    if count() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count()
    try:
        distributed.all_gather_object(found, value, group=_group())
    except RuntimeError as error:
        raise ProcessEndedError(
            "Another process of this training ended; see its error, then run the same command again."
        ) from error
    return cast("list[T]", found)


def agree(value: T) -> T:
    """Return the main process's value in every process; all of them must call this."""
    return gather(value if is_main() else cast("T", None))[0]


def wait() -> None:
    """Wait until every process is here."""
    gather(None)


def leave() -> None:
    """End the connection and its threads, after which this process is alone.

    Only the destructor of a gloo group ends the group's threads. A thread that still frees tensors while the
    interpreter ends aborts the process, so nothing may keep a group until then. A `DistributedDataParallel`
    must go before its group: if it is the last to keep it, it waits for the threads with Python's lock, which
    they may need.
    """
    if count() > 1:
        from torch import distributed

        if distributed.is_initialized():
            _group.cache_clear()
            traceback.clear_frames(getattr(sys, "last_traceback", None))  # of an error that ends the process
            gc.collect()  # a Trainer refers to itself, and to the training's group
            distributed.destroy_process_group()
