"""`trsr`, killed by itself with SIGKILL at a given moment: `python killed_run.py MOMENT VALUE ARGUMENT...`.

The moment is `calls N`, when N calls are in the summary store, or `file PATH`, when that file is there. One
who watched from another process would come too late on a busy machine.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trsr.cli import main
from trsr.summarize.store import SqliteStore, StoredCall


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_calls(n_calls: int) -> None:
    n_kept = 0

    def counting(put: Callable[..., None]) -> Callable[..., None]:
        def counted(store: SqliteStore, calls: Any) -> None:
            nonlocal n_kept
            put(store, calls)
            n_kept += 1 if isinstance(calls, StoredCall) else len(calls)
            if n_kept >= n_calls:
                die()

        return counted

    SqliteStore.put = counting(SqliteStore.put)  # type: ignore[method-assign]
    SqliteStore.put_all = counting(SqliteStore.put_all)  # type: ignore[method-assign]


def die_when_there(file: Path) -> None:
    """Die at the first file that Python opens or renames when this one is there."""
    sys.addaudithook(lambda event, _: die() if event in ("open", "os.rename") and file.exists() else None)


if __name__ == "__main__":
    moment, value = sys.argv.pop(1), sys.argv.pop(1)
    if moment == "calls":
        die_after_calls(int(value))
    else:
        die_when_there(Path(value))
    main()
