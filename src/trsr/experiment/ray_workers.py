"""Lets a command wait for the workers of one that was killed: what they still ask would be asked twice.

Every worker holds a lock on a file beside the command's output until its process has ended, in whatever way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from trsr.errors import OutputError

PATIENCE = 60.0
"""Seconds after which workers cannot be those of a killed command, which Ray ends in one or two."""
PAUSE = 0.1
"""Seconds between two looks."""


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.workers")


def stay(output: Path) -> int:
    """Be known as a worker at `output` until this process ends; return the lock's file number.

    Raises:
        OutputError: the file system has no locks.
    """
    import fcntl

    return _locked(_lock_of(output), fcntl.LOCK_SH)


def wait_for_workers(output: Path, say: Callable[[], None] = lambda: None) -> None:
    """Return when no worker is at `output`.

    Args:
        output: What the command makes, in a folder that all workers share.
        say: Called while there are some.

    Raises:
        OutputError: some are there for longer than `PATIENCE`, the folder cannot be written, or its file
            system has no locks.
    """
    import fcntl

    started = time.monotonic()
    while True:
        try:
            os.close(_locked(_lock_of(output), fcntl.LOCK_EX | fcntl.LOCK_NB))
            return
        except BlockingIOError as error:
            if time.monotonic() - started > PATIENCE:
                raise OutputError(
                    f"Workers of another command are still writing what belongs to {output}; let them end, "
                    "or stop their cluster, then run the same command again."
                ) from error
            say()
            time.sleep(PAUSE)


def _locked(file: Path, how: int) -> int:
    """Return the number of the file, made if needed, whose lock is held until it is closed."""
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, how)
        except BaseException:
            os.close(number)
            raise
    except BlockingIOError:
        raise
    except OSError as error:
        raise OutputError(
            f"{file} cannot be locked ({error.strerror}); choose a folder that can be written, "
            "on a file system that has locks."
        ) from error
    return number
