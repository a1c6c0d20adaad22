"""A process that stores events and updates profiles on commands from a pipe, with light imports only."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal, NamedTuple

from stores import event, summarizer_of_many

from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.store import ServeStore

# The server imports once; its children begin in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["updater_process"])


class Message(NamedTuple):
    """Something to be kept; its number comes back when it is.

    `text` is an item's id for an event, and what is written for notes. `delete` deletes the user; `idle` is
    acknowledged when no update is pending.
    """

    number: int
    kind: Literal["event", "notes", "delete", "idle"]
    user_id: str = ""
    text: str = ""


def keep(store: ServeStore, message: Message) -> None:
    """Do what a message says."""
    if message.kind == "event":
        store.add_events(message.user_id, [event(f"event-{message.number}", message.text)])
    elif message.kind == "notes":
        assert store.put_notes(message.user_id, message.text) is not None
    elif message.kind == "delete":
        assert store.delete_user(message.user_id)
    else:
        while store.facts()["pending"]:
            time.sleep(0.002)


class StoppingGenerator(FakeGenerator):
    """Writes some texts and then none: a process that waits for the next one can be killed at leisure."""

    def __init__(self, n_texts: int | None) -> None:
        super().__init__(delay=0.004)
        self.n_texts = n_texts

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for result in super().generate(prompts, params):
            if self.n_texts is not None and self.n_calls > self.n_texts:
                threading.Event().wait()
            yield result


def serve(file: str, method: str, n_texts: int | None, pipe: Connection) -> None:
    """Acknowledge messages after they are kept, until the pipe is closed; write no more than `n_texts`."""
    store = ServeStore(file)
    stop = threading.Event()
    summarizer = summarizer_of_many(method, block_size=3, fan_in=2)
    updater = ProfileUpdater(store, summarizer, StoppingGenerator(n_texts))
    thread = threading.Thread(target=updater.run, args=(stop,), daemon=True)
    thread.start()
    try:
        while True:
            message = Message(*pipe.recv())
            keep(store, message)
            pipe.send(message.number)
    except EOFError:
        stop.set()
        store.wake()
        thread.join()
        store.close()


def start(file: Path, method: str, n_texts: int | None = None) -> tuple[ForkServerProcess, Connection]:
    """Start a process; return it with this side of its pipe."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=serve, args=(str(file), method, n_texts, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def acknowledged(pipe: Connection, at_least: int) -> list[int]:
    """Wait for some acknowledgements; with 0, take those that are there, up to the end of the pipe."""
    numbers: list[int] = []
    try:
        while len(numbers) < at_least or (not at_least and pipe.poll()):
            numbers.append(pipe.recv())
    except (EOFError, ConnectionResetError):
        pass
    return numbers
