"""What several tests share: a catalogue, a summarizer, places that cannot be written, a launcher."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trsr.llm.base import TextGenerator
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import summarize
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.prompts import load_summary_template
from trsr.summarize.store import Store, StoredCall
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan
from trsr.templating import Template
from trsr.types import History, Item

ROOT = Path(__file__).parents[1]
NOBODY = 65534


def word(number: int) -> str:
    """Return a word of five letters, another for every number below 26 ** 5."""
    letters = ""
    for _ in range(5):
        number, letter = divmod(number, 26)
        letters += chr(ord("a") + letter)
    return letters


def item(number: int) -> Item:
    """Return the item `iNUMBER`, whose title no other item has."""
    return Item(
        f"i{number}", {"category": f"kind{number % 3}", "title": f"{word(number)} {word(7 * number)}"}
    )


ITEMS = {f"i{number}": item(number) for number in range(200)}


def item_ids(start: int, stop: int) -> tuple[str, ...]:
    """Return `istart` to `istop`, the last one left out."""
    return tuple(f"i{number}" for number in range(start, stop))


def item_text(item_id: str) -> str:
    """Return the text of an item by its id."""
    return f"Title: {ITEMS[item_id].fields['title']}"


def bind_summarizer(
    method: str = "recurrent", *, template: Template | None = None, block_size: int = 3, **settings: Any
) -> BoundSummarizer:
    """Return a summarizer of two hundred items."""
    segmentation = {"kind": "count", "block_size": block_size}
    return BoundSummarizer(
        config=SummaryConfig.model_validate({"method": method, "segmentation": segmentation, **settings}),
        template=template or load_summary_template("generic", "any"),
        items=ITEMS,
        item_text=item_text,
        category_fields=("category",),
        title_field="title",
    )


def summarize_all(
    histories: Sequence[Sequence[str]],
    summarizer: BoundSummarizer,
    store: Store,
    engine: TextGenerator | None = None,
) -> list[SummaryPlan]:
    """Summarize histories of the users `u0`, `u1`, ..."""
    users = [History(f"u{number}", tuple(items)) for number, items in enumerate(histories)]
    return summarize(users, summarizer, engine or FakeGenerator(), store)


def n_calls(histories: Sequence[Sequence[str]], summarizer: BoundSummarizer, store: Store) -> int:
    """Return how many calls the engine gets when these histories are summarized."""
    engine = FakeGenerator()
    summarize_all(histories, summarizer, store, engine)
    return engine.n_calls


def totals(store: Store) -> dict[str, int]:
    """Return counts over a whole store: calls, failed ones, attempts, tokens written."""
    parts = store.stats()
    return {
        "calls": sum(part.n_texts + part.n_failed for part in parts),
        "failed": sum(part.n_failed for part in parts),
        "attempts": sum(part.n_attempts for part in parts),
        "generated_tokens": sum(part.n_generated_tokens for part in parts),
    }


def stored_call(key: str, text: str | None = "Likes lamps.", **changes: Any) -> StoredCall:
    """Return a finished call, or without a text a failed one."""
    error = None if text is not None else "timed out"
    ids = ("i1", "i 2", "ü")
    call = StoredCall(key, text, error, "fake@1", "hash", ids, 10, 5, 0.25, 1, 1_700_000_000.5)
    return call._replace(**changes)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the processor's time of a call in this thread, which other programs hardly lengthen."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that every user may pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from a folder, and its power from root, whom rights do not stop."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


@contextmanager
def full_disk(n_bytes: int = 0) -> Iterator[None]:
    """Let no file of this process grow beyond `n_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def launched_twice(*script: str | Path) -> tuple[list[str | Path], dict[str, str]]:
    """Return the command that starts a script in two processes on CPUs, and the environment it needs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    paths = [ROOT / "src", ROOT / "tests", ROOT / "tests" / "train"]
    environment = os.environ | {
        "PYTHONPATH": ":".join(map(str, paths)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where accelerate is
    }
    return [*launcher, "--config_file", ROOT / "configs" / "accelerate" / "cpu.yaml", *script], environment
