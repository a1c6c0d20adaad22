"""A finished run becomes a service: its users are there, and what happens is kept in the database."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from trsr.data.dataset import Dataset
from trsr.errors import InputError, RunMismatchError
from trsr.serve.app import create_app
from trsr.serve.loading import open_for_serving, open_service
from trsr.serve.settings import Settings
from trsr.serve.store import ServeStore
from trsr.splitting.examples import read_splits
from trsr.types import History


def test_the_users_of_a_run_are_served_and_imported_once(finished_run: Path, tmp_path: Path) -> None:
    settings = Settings(api_keys=())
    database = tmp_path / "kept" / "serve.sqlite"
    history, other = list(Dataset.open(finished_run / "data").histories())[:2]
    said: list[str] = []
    service = open_service(finished_run, None, database, settings, said.append)
    client = TestClient(create_app(service, settings), base_url="http://localhost")
    try:
        assert any("events of the data set" in line for line in said)
        user = client.get(f"/v1/users/{history.user_id}").json()
        assert tuple(event["item_id"] for event in user["history"]) == history.item_ids
        found = client.post("/v1/recommend", json={"user_id": history.user_id, "top_n": 5, "explain": True})
        assert found.status_code == 200, found.text
        results = found.json()["results"]
        assert len(results) == 5
        assert not {result["item_id"] for result in results} & set(history.item_ids)
        assert len(results[0]["explanation"]["without_item"]) == 2  # as many as the prompt shows
        assert client.delete(f"/v1/users/{other.user_id}").status_code == 204
    finally:
        service.close()
    said.clear()
    service = open_service(finished_run, None, database, settings, said.append)
    try:
        assert not any("events of the data set" in line for line in said)
        assert not service.store.history(other.user_id)  # who was deleted does not come back
        assert service.store.history(history.user_id)
    finally:
        service.close()


def test_the_threads_that_load_and_write_end(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else OpenMP keeps a team for each, and the thread that ranks waits longer for its own."""
    computing: list[threading.Thread] = []

    def noting(do: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            computing.append(threading.current_thread())
            return do(*arguments)

        return noted

    monkeypatch.setattr("trsr.serve.loading.open_for_serving", noting(open_for_serving))
    service = open_service(finished_run, None, tmp_path / "serve.sqlite", Settings(api_keys=()))
    try:
        engine = service.updater.engine
        assert engine is not None
        monkeypatch.setattr(engine, "generate", noting(engine.generate))
        service.store.request_update(read_splits(finished_run / "examples").test[0].user_id)
        assert service.updater.step() == 1
    finally:
        service.close()
    assert len(computing) > 1
    assert not any(thread.is_alive() for thread in computing)


def test_what_the_run_wrote_is_not_written_again(finished_run: Path, tmp_path: Path) -> None:
    """The complete blocks of its test users stay as they are."""
    users = {example.user_id for example in read_splits(finished_run / "examples").test}
    service = open_service(finished_run, None, tmp_path / "serve.sqlite", Settings(api_keys=()))
    try:
        for user in users:
            service.store.request_update(user)
        while service.updater.step():
            pass
        totals = service.updater.totals
        assert service.updater.n_updates == len(users)
        assert totals.n_calls_known > 0
        assert all(service.store.user_summaries(user) for user in users)
    finally:
        service.close()


def test_without_the_runs_summaries_all_are_written(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "summaries.sqlite").write_text("This is no database.")
    said: list[str] = []
    user = read_splits(run / "examples").test[0].user_id
    service = open_service(run, None, tmp_path / "serve.sqlite", Settings(api_keys=()), said.append)
    try:
        assert "written again" in said[0]
        service.store.request_update(user)
        assert service.updater.step() == 1
        assert service.updater.totals.n_calls_made > 0
    finally:
        service.close()


def test_a_database_of_another_data_set_is_refused(finished_run: Path, tmp_path: Path) -> None:
    database = tmp_path / "serve.sqlite"
    with closing(ServeStore(database)) as store:
        store.import_histories([History("ann", ("i1",))], source="before it changed")
    with pytest.raises(RunMismatchError, match=r"holds the histories of another data set.*--db"):
        open_service(finished_run, None, database, Settings(api_keys=()))
    with closing(ServeStore(database)) as store:
        assert store.users() == ["ann"]


def test_a_folder_that_is_no_run_leaves_no_database(tmp_path: Path) -> None:
    database = tmp_path / "serve.sqlite"
    with pytest.raises(InputError):
        open_service(tmp_path, None, database, Settings(api_keys=()))
    assert not database.exists()
