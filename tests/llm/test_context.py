"""A model's context is read from its configuration, as far as anything says it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from trsr.llm import models
from trsr.llm.context import context_length, context_of, find_tokenizer, gguf_context

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "context"),
    [
        ("gpt2", {"n_positions": 128}, 128),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("gpt_neox", {"max_position_embeddings": 2048}, 2048),
        ("mpt", {"max_seq_len": 512}, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1, "is_decoder": True}, 512),
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": LINEAR}, 16384),
        ("llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ("qwen2", {"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ("gemma3", {"text_config": {"max_position_embeddings": 1000}}, 1000),
        ("mamba", {}, None),
        ("xlnet", {}, None),
    ],
)
def test_a_context_is_found(model_type: str, settings: dict[str, Any], context: int | None) -> None:
    assert context_of(AutoConfig.for_model(model_type, **settings)) == context


@pytest.mark.parametrize(("limit", "context"), [(2048, 2048), (10**30, None), (0, None)])
def test_the_tokenizer_has_a_limit_where_the_model_has_none(
    limit: int, context: int | None, tmp_path: Path
) -> None:
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    assert context_length(str(tmp_path)) == context


def test_a_gguf_file_names_its_context(tmp_path: Path) -> None:
    assert gguf_context(models.gguf_file(models.EMBEDDED_MODEL)) == 8192
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + b"\x07")
    assert gguf_context(damaged) is None


def test_a_tokenizer_that_is_not_here_is_none() -> None:
    assert find_tokenizer("./no/such/folder") is None
