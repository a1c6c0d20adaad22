"""Processes that train one model together, as `accelerate launch` or `torchrun` start them.

Says which of them this one is, and lets them wait for each other and agree; training itself talks through
torch. Everything here is trivial where there is one process. Light to import.
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
    """Another of the processes ended, and says why."""


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def index() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_index() -> int:
    """Return which of its machine's processes this one is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes folders, prints and logs."""
    return index() == 0


def speaks(error: Exception) -> bool:
    """Whether this process should print an error: one it met alone, or else the main process for all."""
    met = _group.cache_info().currsize > 0  # before they meet, all of them read the same and find the same
    return is_main() or (met and not isinstance(error, ProcessEndedError))


def is_sharded() -> bool:
    """Whether accelerate's configuration asks for FSDP."""
    return "RANK" in os.environ and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join(cpu: bool) -> None:
    """Meet the other processes; at its end, also by an error, this process leaves them.

    Args:
        cpu: Whether the training runs on CPUs.
    """
    from accelerate import PartialState

    PartialState(cpu=cpu)
    _group()
    atexit.register(leave)


@cache
def _group() -> Any:
    """Return the group in which they wait and agree: over sockets, and more patient than the training's."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT)


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order; all of them must ask.

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
            "Another of the processes that train together ended; "
            "see its error, then run the same command again."
        ) from error
    return cast("list[T]", found)


def agree(value: T) -> T:
    """Return the main process's value in every process; all of them must ask."""
    return gather(value if is_main() else cast("T", None))[0]


def wait() -> None:
    """Wait until every process is here."""
    gather(None)


def leave() -> None:
    """End the connection and its threads, after which this process is alone.

    Only the destructor of a gloo group ends the group's threads. One that still frees the tensors of the last
    collective while the interpreter ends aborts the process, so nothing may keep a group until then. Nor may
    a `DistributedDataParallel` be the last to keep it: it waits for the threads with Python's lock, which
    they may need. So it goes before the group is destroyed.
    """
    if count() > 1:
        from torch import distributed

        if distributed.is_initialized():
            _group.cache_clear()
            traceback.clear_frames(getattr(sys, "last_traceback", None))  # of an error that ends the process
            gc.collect()  # a Trainer refers to itself, and to the training's group
            distributed.destroy_process_group()
