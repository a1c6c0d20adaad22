"""A run ranks by a server that holds its fine-tuned model, and gets the scores it would have computed."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import tiny_run
from scripted_server import Answer, scripted, send

from trsr.errors import RunMismatchError
from trsr.experiment.config import RunConfig, load_config, variants_of
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import rank_candidates
from trsr.experiment.run_folder import RunFolder
from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.loading import RecommenderConfig
from trsr.recommend.ranker import sigmoid
from trsr.recommend.scorer import SharedPrefixScorer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "vllm.md"


def _block(language: str) -> str:
    """Return the page's only block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def _in_vllms_form(folder: Path) -> Answer:
    """Answer like vLLM's `/generative_scoring`, with a real model."""
    model = load_causal_lm(str(folder), dtype="float32", device="cpu")
    prefix_attention.enable(model, "auto")
    scorer, lock = SharedPrefixScorer(model), threading.Lock()

    def answer(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        group = ScoringGroup(tuple(request["query"]), tuple(map(tuple, request["items"])))
        with lock:
            ((_, margins),) = scorer.score([group], LabelTokens(*request["label_token_ids"]))
        data = [{"index": i, "score": float(chance)} for i, chance in enumerate(sigmoid(margins))]
        n_read = sum(len(group.prefix) + len(suffix) for suffix in group.suffixes)
        send(handler, 200, json.dumps({"data": data, "usage": {"prompt_tokens": n_read}}))

    return answer


def test_the_merged_model_on_a_server_gives_the_scores_of_the_run(
    finished_run: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = tmp_path / "merge.py"
    merge.write_text(_block("python"))
    monkeypatch.setattr("sys.argv", ["merge.py", str(finished_run / "model"), str(tmp_path / "merged")])
    runpy.run_path(str(merge))
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "scores.parquet").unlink()
    with scripted(_in_vllms_form(tmp_path / "merged")) as server:
        served = {"base_url": server.url, "model": "tuned", "scoring": "vllm"}
        config = load_config(config_file, [f"recommender.servers.llm={json.dumps(served)}"])
        rank_candidates(Experiment(RunFolder(tmp_path / "run", config, "trsr rank")))
        assert {request["model"] for request in server.requests} == {"tuned"}
    found, local = (pl.read_parquet(run / "scores.parquet") for run in (tmp_path / "run", finished_run))
    assert found.drop("margin", "score").equals(local.drop("margin", "score"))
    assert (found["margin"] - local["margin"]).abs().max() < 1e-4  # type: ignore[operator]


def test_other_servers_are_refused_once_candidates_have_scores(
    finished_run: Path, config_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    changed = load_config(config_file, ["recommender.servers.llm={base_url: 'http://h/v1', model: m}"])
    with pytest.raises(RunMismatchError, match="servers"):
        RunFolder(tmp_path / "run", changed, "trsr rank")


def test_variants_do_not_ask_the_servers_of_their_run(tiny_model: Path) -> None:
    content = tiny_run(tiny_model, sweep={"prompt.n_recent": [1]})
    content["recommender"]["servers"] = {"llm": {"base_url": "http://h/v1", "model": "m"}}
    (variant,) = variants_of(RunConfig.model_validate(content)).values()
    assert variant.recommender.servers == {}


def test_the_pages_settings_are_settings() -> None:
    recommender = RecommenderConfig.model_validate(yaml.safe_load(_block("yaml"))["recommender"])
    assert recommender.servers["llm"].model == "tuned"
