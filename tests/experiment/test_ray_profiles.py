"""What goes to a worker, and that nobody else writes while it lives."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import item_ids, make_summariser

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import OutputError
from trsr.experiment import ray_workers
from trsr.experiment.dataset_profiles import ProfileSettings, histories_with_text, summarize_dataset_on_ray
from trsr.experiment.experiment import RayRunner
from trsr.experiment.ray import ProfileWorker, Source, dataset_slices, users_a_piece
from trsr.experiment.ray_workers import ClaimTable, wait_for_workers
from trsr.llm.engines import FakeEngine
from trsr.summarize.plan import SummaryConfig
from trsr.types import History


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generate(
        SyntheticConfig(n_users=10, n_items=200, min_history=9, max_history=12, mean_history=10),
        tmp_path / "shop",
    )
    return tmp_path / "shop"


@pytest.mark.parametrize(("limit", "n_users"), [(None, 10), (7, 7), (6, 6), (99, 10)])
def test_slices_are_of_whole_users_and_of_all(data: Path, limit: int | None, n_users: int) -> None:
    dataset = Dataset.open(data)
    slices, found = dataset_slices(dataset, 3, limit)
    pieces = [list(histories_with_text(dataset, start=start, stop=stop)) for start, stop in slices]
    assert found == n_users
    assert [len(piece) for piece in pieces] == [3] * (n_users // 3) + [n_users % 3] * (n_users % 3 > 0)
    assert [h for piece in pieces for h in piece] == list(histories_with_text(dataset))[:n_users]


def test_every_worker_gets_several_pieces_unless_they_are_large() -> None:
    assert users_a_piece(200, RayRunner(2)) == 25
    assert users_a_piece(1, RayRunner(8)) == 1
    assert users_a_piece(10**6, RayRunner(2)) == 1000


def test_a_worker_is_waited_for_before_a_cluster_is_started(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data", exc_type=ImportError)
    monkeypatch.setattr(ray_workers, "PATIENCE", 0.0)
    source = Source(make_summariser(), lambda _start, _stop: [("u", History("u", item_ids(0, 9)))])
    store = tmp_path / "s.sqlite"
    monkeypatch.setattr("trsr.experiment.ray_cluster.start", lambda _: pytest.fail("a cluster is started"))
    output = tmp_path / "profiles.parquet"
    worker = ProfileWorker(lambda: source, FakeEngine(), str(store), ClaimTable(), output)
    chosen = ProfileSettings(summary=SummaryConfig(), engine=FakeEngine())
    try:
        with pytest.raises(OutputError, match="are still writing"):
            summarize_dataset_on_ray(data, chosen, store, None, RayRunner())
    finally:
        worker.close()
    wait_for_workers(output)
