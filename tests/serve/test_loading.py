"""A finished run opens as a service that scores as it did; its users are there, and what happens is kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from serve_parts import Recording, fake_recommender
from starlette.testclient import TestClient

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError, EngineError, InputError, RunMismatchError
from trsr.experiment.config import load_config
from trsr.experiment.experiment import Experiment
from trsr.experiment.run_folder import RunFolder
from trsr.llm.engines import DEFAULT_ENGINE, FakeEngine
from trsr.llm.models import model_id
from trsr.recommend.model_folder import Origin, read_adapter_info, write_adapter_info
from trsr.recommend.ranker import RankRequest
from trsr.serve.app import create_app
from trsr.serve.loading import MAX_RANKED, MIN_RANKED, Speed, measure, open_for_serving, open_service
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.store import ServeStore
from trsr.splitting.split import read_examples
from trsr.summarize.summarizer import Summarizer
from trsr.summarize.user_plan import bind_summarizer
from trsr.types import History, Item


def test_a_run_serves_the_scores_that_it_recorded(finished_run: Path) -> None:
    def files() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in finished_run.rglob("*") if file.is_file()}

    before = files()
    serving = open_for_serving(finished_run)
    profiles = dict(
        pl.read_parquet(finished_run / "profiles.parquet", columns=["example_id", "text"]).iter_rows()
    )
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    examples = read_examples(finished_run / "examples" / "test.parquet")
    asks = [RankRequest(e.history, profiles[e.example_id], e.candidates) for e in examples]
    for example, answer in zip(examples, serving.recommender.score(asks), strict=True):
        rows = scores.filter(pl.col("example_id") == example.example_id)
        assert rows["item_id"].to_list() == list(example.candidates)
        np.testing.assert_allclose(answer.margins, rows["margin"].to_numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(answer.scores, rows["score"].to_numpy(), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(answer.n_prompt_tokens, rows["n_prompt_tokens"].to_numpy())
    assert isinstance(serving.engine, FakeEngine)
    assert serving.recommender.name == finished_run.name
    own = bind_summarizer(serving.dataset, serving.summarizer.config)
    items = serving.recommender.catalogue.items
    assert all(serving.summarizer.item_text(i) == own.item_text(i) for i in items)
    assert files() == before


@pytest.mark.parametrize("notes", ["", "No wool.", "Never wool, never lamps. " * 90])
def test_prompts_are_the_runs_own_token_for_token_with_notes_and_without(
    finished_run: Path, notes: str
) -> None:
    recommender = open_for_serving(finished_run).recommender
    run = Experiment(RunFolder(finished_run, load_config(finished_run / "config.yaml"), "trsr rank"))
    for example in run.splits.test:
        question = example.history, "Buys garden tools.", example.candidates
        served = recommender.prompt(RankRequest(*question, notes))
        assert served == run.builder.build(*question, notes=notes, room=recommender._item_room)
        assert (served.n_tokens_cut > 0) == (len(notes) > 100)


def test_a_model_folder_serves_a_dataset_that_is_named(finished_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    shutil.copytree(finished_run / "model", model)
    serving = open_for_serving(model, finished_run / "data")
    whole = open_for_serving(finished_run)
    user = next(iter(whole.dataset.histories()))
    ask = RankRequest(user.item_ids, "Buys garden tools.", list(whole.recommender.catalogue.items)[:4])
    ours, theirs = serving.recommender.score([ask])[0], whole.recommender.score([ask])[0]
    np.testing.assert_allclose(ours.margins, theirs.margins, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)
    assert serving.engine == DEFAULT_ENGINE
    assert serving.recommender.name == "my-model"
    with pytest.raises(DataError, match="--data"):
        open_for_serving(model)


def test_model_folder_of_fine_tune_serves_its_own_data_and_profiles(
    finished_run: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(finished_run / "model", tmp_path / "model"))
    writer = Summarizer("hierarchical", engine="fake", store=tmp_path / "texts.sqlite", block_size=3)
    origin = Origin(data=str(finished_run / "data"), summarizer=writer.arguments())
    info = read_adapter_info(model).model_copy(update={"origin": origin})
    write_adapter_info(model, info)
    serving = open_for_serving(model)
    assert serving.dataset.path == finished_run / "data"
    assert (serving.summarizer.config, serving.engine) == (writer.config, writer.engine)
    assert serving.store == str(writer.store)
    long = info.model_copy(update={"prompt": {**info.prompt, "max_tokens": 10**6}})
    write_adapter_info(model, long)
    with pytest.raises(ConfigError, match=r"found 1000000, but the model .* reads at most"):
        open_for_serving(model)


def test_an_item_put_later_is_known_to_every_part(finished_run: Path) -> None:
    serving = open_for_serving(finished_run)
    title = str(serving.summarizer.title_field)
    retriever = serving.recommender.retriever
    retriever.put_items([Item("new", {title: "xylophone"})])
    assert retriever.top("xylophone", (), 1) == ["new"]
    assert ": xyl" in serving.recommender.builder.item_text("new")  # few tokens of a field are kept
    assert len(serving.recommender.score([RankRequest(("new",), "", ("new",))])) == 1
    assert "xylophone" in serving.summarizer.item_text("new")
    (block,) = serving.summarizer.blocks(["new"])
    assert block.item_ids == ("new",)
    assert serving.summarizer.profile_without_llm(History("u", ("new",))).n_items == 1


def test_a_model_that_gives_no_finite_margin_is_not_served(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    info = read_adapter_info(run / "model")
    (base := tmp_path / "base").mkdir()
    for file in Path(info.base_model).iterdir():
        shutil.copy(file, base)
    weights = load_file(base / "model.safetensors")
    norm = next(name for name in weights if "norm" in name)
    save_file(weights | {norm: weights[norm] * np.nan}, base / "model.safetensors", {"format": "pt"})
    changed = {"base_model": str(base), "base_model_id": model_id(str(base))}
    write_adapter_info(run / "model", info.model_copy(update=changed))
    with pytest.raises(EngineError, match="NaN or infinite"):
        open_for_serving(run / "model", run / "data")


def test_folders_of_something_else_and_unfinished_runs_are_refused(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunMismatchError, match="neither a run folder nor a model folder"):
        open_for_serving(tmp_path)
    with pytest.raises(InputError):
        open_service(tmp_path, None, tmp_path / "serve.sqlite", Settings(api_keys=()))
    assert not (tmp_path / "serve.sqlite").exists()
    shutil.copy(finished_run / "config.yaml", tmp_path)
    with pytest.raises(RunMismatchError, match=r"model holds no readable trsr\.json"):
        open_for_serving(tmp_path, finished_run / "data")


@contextmanager
def opened(run: Path, database: Path, log: Callable[[str], None] = lambda _: None) -> Iterator[Service]:
    service = open_service(run, None, database, Settings(api_keys=()), log)
    try:
        yield service
    finally:
        service.close()


def test_the_users_of_a_run_are_served_and_imported_once(finished_run: Path, tmp_path: Path) -> None:
    database = tmp_path / "kept" / "serve.sqlite"
    history, other = list(Dataset.open(finished_run / "data").histories())[:2]
    log: list[str] = []
    with opened(finished_run, database, log.append) as service:
        client = TestClient(create_app(service, Settings(api_keys=())), base_url="http://localhost")
        assert any("events of the dataset" in line for line in log)
        user = client.get(f"/v1/users/{history.user_id}").json()
        assert tuple(event["item_id"] for event in user["history"]) == history.item_ids
        body = {"user_id": history.user_id, "top_n": 5, "explain": True}
        results = client.post("/v1/recommend", json=body).json()["results"]
        assert len(results) == 5
        assert not {result["item_id"] for result in results} & set(history.item_ids)
        assert len(results[0]["explanation"]["without_item"]) == 2  # as many as the prompt shows
        assert client.delete(f"/v1/users/{other.user_id}").status_code == 204
    log.clear()
    with opened(finished_run, database, log.append) as service:
        assert not any("events of the dataset" in line for line in log)
        assert not service.store.history(other.user_id)  # a deleted user does not come back
        assert service.store.history(history.user_id)


def test_a_database_of_another_data_set_is_refused(finished_run: Path, tmp_path: Path) -> None:
    database = tmp_path / "serve.sqlite"
    with closing(ServeStore(database)) as store:
        store.import_histories([History("ann", ("i1",))], source="before it changed")
    with pytest.raises(RunMismatchError, match=r"has the histories of another dataset.*--db"):
        open_service(finished_run, None, database, Settings(api_keys=()))
    with closing(ServeStore(database)) as store:
        assert store.users() == ["ann"]


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
    with opened(finished_run, tmp_path / "serve.sqlite") as service:
        engine = service.updater.engine
        assert engine is not None
        monkeypatch.setattr(engine, "generate", noting(engine.generate))
        service.store.request_update(read_examples(finished_run / "examples" / "test.parquet")[0].user_id)
        assert service.updater.step() == 1
    assert len(computing) > 1
    assert not any(thread.is_alive() for thread in computing)


@pytest.mark.parametrize("readable", [True, False])
def test_what_the_run_wrote_is_not_written_again_where_it_can_be_read(
    finished_run: Path, tmp_path: Path, readable: bool
) -> None:
    """The complete blocks of its test users stay as they are."""
    run = finished_run
    if not readable:
        run = Path(shutil.copytree(finished_run, tmp_path / "run"))
        (run / "summaries.sqlite").write_text("This is no database.")
    users = {example.user_id for example in read_examples(run / "examples" / "test.parquet")}
    log: list[str] = []
    with opened(run, tmp_path / "serve.sqlite", log.append) as service:
        assert ("generated again" in log[0]) == (not readable)
        for user in users:
            service.store.request_update(user)
        while service.store.facts()["pending"]:
            service.updater.step()
        assert service.updater.n_updates == len(users)
        assert service.updater.totals.n_calls_known > 0 or not readable
        assert all(service.store.user_summaries(user) for user in users)


# The speed of the machine


def test_the_slower_the_machine_the_fewer_are_ranked() -> None:
    assert Speed(rate=1000, n_prefix=500, n_candidate=60).n_ranked == 25
    assert Speed(rate=100, n_prefix=500, n_candidate=60).n_ranked == MIN_RANKED
    assert Speed(rate=1e6, n_prefix=500, n_candidate=60).n_ranked == MAX_RANKED
    assert Speed(rate=8000, n_prefix=500, n_candidate=60).pass_tokens == 400


def test_the_quickest_reading_counts_and_none_knows_a_prefix() -> None:
    scorer = Recording()
    ticks = count()
    speed = measure(fake_recommender(scorer), clock=lambda: float(next(ticks)))
    assert speed is not None
    groups = [group for call in scorer.calls for group in call]
    assert len({group.prefix for group in groups}) == len(groups) > 1
    assert speed.rate == max(len(g.prefix) + sum(map(len, g.suffixes)) for g in groups)  # each took a second


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_small_catalogue_is_enough(n: int) -> None:
    recommender = fake_recommender()
    for name in list(recommender.catalogue.items)[n:]:
        del recommender.catalogue.items[name]
    speed = measure(recommender)
    assert (speed is None) == (n == 0)
    assert speed is None or speed.n_ranked == MAX_RANKED
