"""Models and tokenizers are loaded with one sentence for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from trsr.errors import ModelError
from trsr.llm.transformers import HfTokenizer, load_causal_lm, resolve_device, resolve_dtype
from trsr.testing.engines import ask


def test_the_tokenizer_adds_nothing_and_reads_back(tiny_model: Path) -> None:
    tokenizer = HfTokenizer(tiny_model)
    text = "yes\n<|im_end|> Grüße, no"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("<|im_end|>")) == 1
    assert len(tokenizer.encode("yes")) == 1


def test_a_model_without_chat_format_gets_plain_paragraphs(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    text = HfTokenizer(tmp_path / "plain").render_chat(ask("Seeds?", prefill="Yes,"))
    assert text == "You answer in one sentence.\n\nSeeds?\n\nYes,"


def test_half_precision_is_only_chosen_where_the_device_computes_in_it() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cpu", "cuda"}


@pytest.mark.parametrize("dtype", ["float99", "nn", "int8"])
def test_an_unknown_precision_is_one_sentence(dtype: str) -> None:
    with pytest.raises(ModelError, match=rf"{dtype}.*float32"):
        resolve_dtype(dtype, torch.device("cpu"))


@pytest.mark.parametrize("device", ["tpu9", "", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(ModelError, match="device"):
        resolve_device(device)


def test_an_unknown_model_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="There is no model") as caught:
        load_causal_lm("./nowhere/tiny")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "hollow")
    (tmp_path / "hollow" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(str(tmp_path / "hollow"))
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(str(tmp_path / "broken"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="tokenizer") as caught:
        HfTokenizer(tmp_path)
    assert "\n" not in str(caught.value)
