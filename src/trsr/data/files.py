"""Writes a file or a folder in one move: under its name stands the old or the whole new one, never a part.

What is read again here is of our own making, so that what cannot be read is damaged.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from trsr.errors import DataError, OutputError


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


def read_json(file: Path) -> Any:
    """Return what a JSON file of ours holds.

    Raises:
        DataError: it is damaged.
    """
    with _damage(file):
        return json.loads(file.read_text(encoding="utf-8"))


def read_table(file: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Return a Parquet file of ours, or some of its columns.

    Raises:
        DataError: it is damaged.
    """
    with _damage(file):
        return pl.read_parquet(file, columns=columns, glob=False)


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"{file} is damaged ({said}); remove it, then run the same command again: it is made anew."
        ) from error


def replace_folder(path: Path, new: Path, old: Path, *, made: Collection[str]) -> None:
    """Put the folder `new` in the place of `path`, with all that is in `path` and not in `made`.

    Where the system can exchange two names, `path` is at every moment the old folder or the new one; else it
    it is missing for a moment, and a process killed then has left the old one under the name `old`.

    Raises:
        OSError: something could not be linked, copied or moved.
    """
    _carry_over(path, new, made)
    if _exchange(new, path):
        new.rename(old)
    else:
        path.rename(old)
        new.rename(path)
    _carry_over(old, path, made)  # what others wrote there in the meantime
    remove_folder(old)


def left_by_the_dead(path: Path, what: str) -> list[Path]:
    """Return the folders `.NAME.WHAT-PID-...` beside `path` whose process is gone."""
    found = []
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{what}-*-*"):
        try:
            os.kill(int(folder.name.rsplit("-", 2)[1]), 0)
        except ProcessLookupError:
            found.append(folder)
        except (ValueError, OSError):
            continue  # another user's process, or another kind of folder
    return found


def remove_folder(path: Path) -> None:
    """Remove a folder, or the link that stands for it, as far as that is allowed."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _carry_over(source: Path, target: Path, made: Collection[str]) -> None:
    """Link or copy the entries of a folder that are not `made` and that the other one does not have."""
    for entry in source.iterdir():
        to = target / entry.name
        if entry.name in made or os.path.lexists(to):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, to, symlinks=True, copy_function=_link)
        else:
            _link(str(entry), str(to))


def _link(source: str, target: str) -> None:
    """Give a file a second name; copy it where that cannot be. An open database goes on under both names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux: renameat2); False where this system or disk cannot."""
    at_cwd, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)
