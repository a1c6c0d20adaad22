"""`trsr serve` refuses unsafe or unknown options in one line."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from conftest import Answer

from trsr.data.dataset import Dataset
from trsr.serve.store import ServeStore

Trsr = Callable[..., Answer]


def test_to_listen_to_others_without_a_key_is_refused(
    trsr: Trsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRSR_API_KEYS", raising=False)
    answer = trsr("serve", tmp_path, "--host", "0.0.0.0")
    assert answer.code == 2
    assert "can be reached from other machines and there is no key" in answer.err


def test_nothing_to_serve_is_a_wrong_use(trsr: Trsr) -> None:
    answer = trsr("serve")
    assert (answer.code, answer.out) == (2, "")
    assert "give a run folder or a model folder" in answer.err


def test_a_taken_port_is_said_before_anything_is_loaded(trsr: Trsr, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = trsr("serve", tmp_path / "nothing", "--port", str(taken.getsockname()[1]))
    assert answer.code == 2
    assert "choose another with --host and --port" in answer.err


def test_a_folder_that_is_no_run_is_one_line(trsr: Trsr, tmp_path: Path) -> None:
    answer = trsr("serve", tmp_path, "--port", "0")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_served_run_keeps_events_and_ends_in_order(finished_run: Path, tmp_path: Path) -> None:
    database = tmp_path / "serve.sqlite"
    command = [sys.executable, "-m", "trsr", "serve", str(finished_run), "--port", "0"]
    command += ["--db", str(database)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("Serving"):
                break
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+", said[-1])
        item = next(iter(Dataset.open(finished_run / "data").catalogue()))
        body = {"events": [{"event_id": "1", "item_id": item}]}
        posted = httpx2.post(f"{address}/v1/users/ann/events", json=body, timeout=60)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert posted.status_code == 202, rest
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in rest
    assert '"route": "/v1/users/{user_id}/events"' in rest
    assert "ann" not in rest
    store = ServeStore(database)
    assert [event.item_id for event in store.events("ann")] == [item]
    store.close()
