"""How a model is loaded in 4 bits; no test here has the GPU that does it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_model
from transformers import AutoModelForCausalLM

from trsr.errors import MissingExtraError, ModelError, RunMismatchError
from trsr.llm import transformers as loading
from trsr.recommend.model_folder import AdapterInfo, check_adapter

GPU = torch.device("cuda", 0)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it look as if there were a GPU and bitsandbytes."""
    find = importlib.util.find_spec
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(loading, "resolve_device", lambda _: GPU)
    monkeypatch.setattr(loading, "resolve_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "bitsandbytes" else find(name)
    )


def test_four_bits_are_refused_without_a_gpu(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="needs an NVIDIA GPU, but the device is cpu"):
        loading.load_causal_lm(str(tiny_model), device="cpu", quantization="4bit")


def test_four_bits_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*trsr\[4bit\]"):
        loading.four_bit(GPU, torch.bfloat16)


@pytest.mark.usefixtures("a_gpu")
def test_a_model_is_loaded_in_nf4_onto_its_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(_folder: Path, **options: Any) -> tuple[torch.nn.Module, dict[str, list[str]]]:
        asked.update(options)
        return random_model("llama").train(), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    model = loading.load_causal_lm(str(tiny_model), quantization="4bit")
    assert not model.training
    assert asked["device_map"] == {"": GPU}
    rounding = asked["quantization_config"]
    assert (rounding.load_in_4bit, rounding.bnb_4bit_quant_type) == (True, "nf4")
    assert rounding.bnb_4bit_compute_dtype is torch.bfloat16


def test_an_adapter_is_read_over_the_weights_it_was_trained_on(tmp_path: Path) -> None:
    info = AdapterInfo(
        base_model="m",
        base_model_id="m@1",
        template="t",
        template_hash="a",
        positive_token=1,
        negative_token=2,
        prompt={},
        training={},
        metrics={},
        versions={},
        quantization="4bit",
    )
    same = AdapterInfo.model_validate_json(info.model_dump_json())
    assert same.quantization == "4bit"
    now = {"template_hash": "a", "prompt_version": same.prompt_version, "base_model_id": "m@1"}
    check_adapter(same, tmp_path, **now, quantization="4bit")  # type: ignore[arg-type]
    with pytest.raises(RunMismatchError, match=r"trained with recommender\.quantization 4bit"):
        check_adapter(same, tmp_path, **now)  # type: ignore[arg-type]
