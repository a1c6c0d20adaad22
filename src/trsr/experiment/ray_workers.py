"""Lets a command wait for the workers of one that was killed: what they still ask would be asked twice.

Every worker holds a lock on a file beside the command's output until its process has ended, in whatever way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trsr.errors import OutputError

CLAIM_PATIENCE = 900.0
"""Seconds of silence after which a piece's claims no longer count: nobody may ever do it again."""


class ClaimTable:
    """The claims of all pieces, by key.

    Args:
        patience: Seconds for which the claims of a piece hold after it was heard.
        clock: Tells the time in seconds.
    """

    def __init__(self, patience: float = CLAIM_PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._owners: dict[str, str] = {}
        self._keys: dict[str, set[str]] = {}
        self._heard: dict[str, float] = {}

    def claim(self, owner: str, keys: Sequence[str]) -> list[str]:
        """Give keys to `owner`, and return those that another one has, which stay its own."""
        now = self._heard[owner] = self._clock()
        left = []
        for key in keys:
            other = self._owners.get(key, owner)
            if other != owner and now - self._heard[other] < self._patience:
                left.append(key)
                continue
            self._keys.get(other, set()).discard(key)
            self._keys.setdefault(owner, set()).add(key)
            self._owners[key] = owner
        return left

    def release(self, owner: str, keys: Sequence[str] | None = None) -> None:
        """Free some claims of an owner, or all when it has asked all it will."""
        held = self._keys.get(owner, set())
        for key in held.copy() if keys is None else held.intersection(keys):
            held.discard(key)
            del self._owners[key]


class RemoteClaims:
    """The claims of one piece in a `ClaimTable` that is a Ray actor; see `summarize.claims`."""

    def __init__(self, table: Any, owner: str) -> None:
        self._table = table
        self._owner = owner
        self._told = time.monotonic()

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Take these calls; return those that are left to another piece."""
        import ray

        if not keys:
            return set()
        self._told = time.monotonic()
        return set(ray.get(self._table.claim.remote(self._owner, list(keys))))

    def keep(self) -> None:
        """Tell now and then that the piece is being worked on, so that its claims hold."""
        if time.monotonic() - self._told > CLAIM_PATIENCE / 10:
            self._told = time.monotonic()
            self._table.claim.remote(self._owner, [])

    def release(self, keys: Sequence[str] | None = None) -> None:
        """Give claims back: those of calls that failed, or all."""
        import ray

        ray.get(self._table.release.remote(self._owner, keys))


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
