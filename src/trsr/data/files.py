"""Writes a file in one move: under its name stands the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from trsr.errors import OutputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there; folders are made as needed.

    Raises:
        OutputError: the folder is read-only, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:  # polars wraps a full disk in an error of its own
        said = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be written ({said}); free space or choose another folder, "
            "then run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
