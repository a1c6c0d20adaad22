"""Programs of the system that some tests need: where one is missing they skip, and fail where CI is set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

PACKAGES = {"chromium": "chromium", "curl": "curl", "npm": "npm", "postgres": "postgresql"}
"""By program, what `apt-get` installs it from."""


def find_program(name: str) -> Path | None:
    """Return where a program is, the newest PostgreSQL where there are several; None where it is missing."""
    if name == "postgres":  # Debian keeps it away from PATH; `initdb` stands beside it
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if found := shutil.which("initdb"):
            folders.insert(0, Path(found).resolve().parent)
        return next((path / name for path in reversed(folders) if (path / name).exists()), None)
    found = shutil.which(name)
    return Path(found) if found else None


def need_program(name: str) -> Path:
    """Return where a program is; without it, skip the test, or fail it on the build machine."""
    if path := find_program(name):
        return path
    skip_or_fail(f"{name} is not installed; run `apt-get install {PACKAGES[name]}`.")


def skip_or_fail(missing: str) -> NoReturn:
    """Skip a test for what is missing, or fail it on the build machine."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
