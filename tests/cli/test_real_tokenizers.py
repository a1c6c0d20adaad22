"""`trsr models check` passes the tokenizers that people bring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from real_tokenizers import save_model_for, save_real_tokenizer

pytestmark = pytest.mark.slow
_GEMMA3 = {"head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, tuple[str, bool, str, dict[str, Any]]] = {
    # tokenizer, with its chat template, architecture, settings
    "Llama-2": ("llama2", False, "llama", {}),
    "Llama-3-Instruct": ("llama3", True, "llama", {"tie_word_embeddings": True}),
    "Gemma-3-it": ("gemma3", True, "gemma3_text", _GEMMA3),
    "Gemma-3": ("gemma3", False, "gemma3_text", _GEMMA3),
    "Qwen3": ("qwen3", True, "qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "GPT-2": ("gpt2", False, "gpt2", {"n_inner": 64}),
    "Pythia": ("gpt2", False, "gpt_neox", {"num_key_value_heads": 4}),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "npm"


@pytest.mark.parametrize("name", MODELS)
def test_models_check_passes_real_tokenizers(
    name: str, packages: Path, tmp_path: Path, trsr: Callable[..., Answer]
) -> None:
    tokenizer, chat, model_type, changes = MODELS[name]
    folder = save_real_tokenizer(tokenizer, tmp_path / name, packages, chat=chat)
    answer = trsr("models", "check", save_model_for(folder, model_type, **changes), "--json")
    found = {check["check"]: check for check in json.loads(answer.out)["checks"]}
    assert [(check, entry["message"]) for check, entry in found.items() if not entry["ok"]] == []
    assert answer.code == 0
    assert {"labels generic", "labels movies", "labels news", "labels paper", "labels products"} <= set(found)
    assert ("once" in found["BOS"]["message"]) is (tokenizer in {"llama2", "llama3", "gemma3"})
    assert found["chat template"]["message"].startswith("applied" if chat else "none")
    assert found["sharing"]["message"].startswith("shared;")
