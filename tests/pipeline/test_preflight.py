"""What is wrong with a model is found out before hours of work, and only where the model is used."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import read_only, temporary_folder

from trsr.config import RunConfig
from trsr.errors import ModelError
from trsr.pipeline.preflight import check_models

NOWHERE = {"model": "./no/such/model"}
WITHOUT_LLM = {"train": None, "rankers": ["bm25"]}


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "test", "data": {"kind": "synthetic"}, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"recommender": NOWHERE},
        {"recommender": NOWHERE, "train": None, "rankers": ["llm_zero_shot"]},
        {"engine": {"kind": "transformers", **NOWHERE}},
        {"engine": {"kind": "llamacpp", **NOWHERE}, **WITHOUT_LLM},
    ],
)
def test_an_unknown_model_that_would_be_loaded_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"There is no model '\./no/such/model'"):
        check_models(config(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recommender": NOWHERE, **WITHOUT_LLM},
        {"engine": {"kind": "transformers", **NOWHERE}, "summary": {"method": "counted"}},
        {"engine": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", **NOWHERE}},
        {"engine": {"kind": "fake"}, "recommender": {"model": "OWNER/NAME"}},
    ],
)
def test_a_model_that_is_known_or_not_used_here_is_let_through(settings: dict[str, Any]) -> None:
    check_models(config(**settings))


def test_a_model_that_may_not_be_looked_into_is_one_sentence() -> None:
    with temporary_folder() as folder:
        (folder / "locked").mkdir(mode=0)
        chosen = config(recommender={"model": str(folder / "locked" / "model")})
        with (
            read_only(folder),
            pytest.raises(ModelError, match=r"cannot be read \(Permission denied\); check"),
        ):
            check_models(chosen)
