"""A finished run opens as a service that scores as it did, over one catalogue that all parts share."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from trsr.errors import DataError, EngineError, RunMismatchError
from trsr.experiment.config import load_config
from trsr.experiment.experiment import Workbench
from trsr.experiment.run_folder import RunFolder
from trsr.llm.engines import DEFAULT_ENGINE, FakeEngine
from trsr.llm.models import model_id
from trsr.recommend.model_folder import read_adapter_info, write_adapter_info
from trsr.recommend.questions import Ask
from trsr.serve.loading import open_for_serving
from trsr.splitting.examples import read_splits
from trsr.types import History, Item


def files(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_run_serves_the_scores_that_it_recorded(finished_run: Path) -> None:
    before = files(finished_run)
    serving = open_for_serving(finished_run)
    profiles = dict(
        pl.read_parquet(finished_run / "profiles.parquet", columns=["example_id", "text"]).iter_rows()
    )
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    examples = read_splits(finished_run / "examples").test
    answers = serving.recommender.score(
        [Ask(e.history, profiles[e.example_id], e.candidates) for e in examples]
    )
    for example, answer in zip(examples, answers, strict=True):
        rows = scores.filter(pl.col("example_id") == example.example_id)
        assert rows["item_id"].to_list() == list(example.candidates)
        np.testing.assert_allclose(answer.margins, rows["margin"].to_numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(answer.scores, rows["score"].to_numpy(), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(answer.n_prompt_tokens, rows["n_prompt_tokens"].to_numpy())
    assert isinstance(serving.engine, FakeEngine)
    assert serving.recommender.name == finished_run.name
    assert files(finished_run) == before


@pytest.mark.parametrize("notes", ["", "No wool.", "Never wool, never lamps. " * 90])
def test_prompts_are_the_runs_own_token_for_token_with_notes_and_without(
    finished_run: Path, notes: str
) -> None:
    recommender = open_for_serving(finished_run).recommender
    run = Workbench(RunFolder(finished_run, load_config(finished_run / "config.yaml"), "trsr rank"))
    for example in run.splits.test:
        asked = example.history, "Buys garden tools.", example.candidates
        served = recommender.prompt(Ask(*asked, notes))
        assert served == run.builder.build(*asked, notes=notes, room=recommender._item_room)
        assert (served.fitted.n_tokens_cut > 0) == (len(notes) > 100)


def test_a_model_folder_serves_a_dataset_that_is_named(finished_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    shutil.copytree(finished_run / "model", model)
    serving = open_for_serving(model, finished_run / "data")
    whole = open_for_serving(finished_run)
    user = next(iter(whole.dataset.histories()))
    ask = Ask(user.item_ids, "Buys garden tools.", list(whole.recommender.catalogue.items)[:4])
    ours, theirs = serving.recommender.score([ask])[0], whole.recommender.score([ask])[0]
    np.testing.assert_allclose(ours.margins, theirs.margins, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)
    assert serving.engine == DEFAULT_ENGINE
    assert serving.recommender.name == "my-model"
    with pytest.raises(DataError, match="--data"):
        open_for_serving(model)


def test_an_item_put_later_is_known_to_every_part(finished_run: Path) -> None:
    serving = open_for_serving(finished_run)
    title = serving.summariser.title_field
    assert title is not None
    serving.retriever.put_items([Item("new", {title: "xylophone"})])
    assert serving.retriever.top("xylophone", (), 1) == ["new"]
    assert ": xyl" in serving.recommender.text_of("new")  # few tokens of a field are kept
    assert len(serving.recommender.score([Ask(("new",), "", ("new",))])) == 1
    assert "xylophone" in serving.summariser.item_text("new")
    (block,) = serving.summariser.blocks(["new"])
    assert block.item_ids == ("new",)
    assert serving.summariser.without_calls(History("u", ("new",))).n_items == 1


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


def test_texts_for_summaries_are_those_of_the_run(finished_run: Path) -> None:
    from trsr.summarize.user_plan import make_summariser

    serving = open_for_serving(finished_run)
    own = make_summariser(serving.dataset, serving.summariser.config)
    assert all(
        serving.summariser.item_text(i) == own.item_text(i) for i in serving.recommender.catalogue.items
    )


def test_a_folder_of_something_else_and_an_unfinished_run_are_refused(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunMismatchError, match="neither a run folder nor a model folder"):
        open_for_serving(tmp_path)
    shutil.copy(finished_run / "config.yaml", tmp_path)
    with pytest.raises(RunMismatchError, match=r"model holds no readable trsr\.json"):
        open_for_serving(tmp_path, finished_run / "data")
