"""What a model folder says about itself, and when it is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from trsr.errors import RunMismatchError
from trsr.llm.base import LabelTokens
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import (
    FILE_NAME,
    WEIGHTS,
    AdapterInfo,
    check_adapter,
    load_adapter,
    quiet_peft,
    read_adapter_info,
    write_adapter_info,
)
from trsr.storage import file_sha256

Weights = dict[str, torch.Tensor]

INFO = AdapterInfo(
    base_model="tiny",
    base_model_id="tiny@123",
    template="products",
    template_hash="a" * 64,
    positive_token=7,
    negative_token=8,
    prompt={"n_recent": 5},
    training={"loss": "answer"},
    metrics={"valid_recall_sum": 1.5},
    versions={"trsr": "0"},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_adapter_info(tmp_path, INFO)
    assert read_adapter_info(tmp_path) == INFO
    assert INFO.labels == LabelTokens(7, 8)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"base_model": "x"}', b"\xff\xfe"])
def test_a_folder_without_a_readable_note_is_no_model_folder(
    tmp_path: Path, content: str | bytes | None
) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunMismatchError, match="model folder of trsr"):
        read_adapter_info(tmp_path)


def test_an_unknown_setting_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    text = INFO.model_dump_json().replace('"base_model"', '"from_the_future": 1, "base_model"', 1)
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(RunMismatchError, match="model folder of trsr"):
        read_adapter_info(tmp_path)


USED: dict[str, Any] = {"template_hash": "a" * 64, "prompt_version": 1, "base_model_id": "tiny@123"}


def test_matching_adapter_is_accepted(tmp_path: Path) -> None:
    check_adapter(INFO, tmp_path, **USED)
    rounded = INFO.model_copy(update={"quantization": "4bit"})
    check_adapter(rounded, tmp_path, **USED, quantization="4bit")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"template_hash": "b" * 64}, r"a{12} of the template 'products', but .* b{12},"),
        ({"base_model_id": "tiny@456"}, "trained on tiny@123, not on tiny@456"),
        ({"quantization": "4bit"}, r"trained with recommender\.quantization null, but it is now 4bit"),
    ],
)
def test_adapter_that_was_trained_otherwise_is_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(RunMismatchError, match=problem):
        check_adapter(INFO, tmp_path, **USED | change)


def test_a_model_trained_on_other_prompts_is_refused_and_older_ones_have_the_first_version(
    tmp_path: Path,
) -> None:
    older = INFO.model_dump(exclude={"prompt_version"})
    (tmp_path / FILE_NAME).write_text(json.dumps(older))
    assert read_adapter_info(tmp_path).prompt_version == 1
    with pytest.raises(
        RunMismatchError, match=r"prompts of version 1, those of tiny are now of version 2 \(BOS"
    ):
        check_adapter(INFO, tmp_path, template_hash="a" * 64, prompt_version=2, base_model_id="tiny@123")


def test_only_the_one_warning_is_silenced() -> None:
    with quiet_peft():
        warnings.warn("`is_gradient_checkpointing` is deprecated and so on", FutureWarning, stacklevel=1)
        with pytest.warns(FutureWarning, match="something else"):
            warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)


@pytest.fixture
def model_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder of before the hash of its adapter was noted."""
    with quiet_peft():
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(str(tiny_model), device="cpu"), lora)
    model.save_pretrained(str(tmp_path / "model"))
    write_adapter_info(tmp_path / "model", INFO)
    return tmp_path / "model"


def test_a_whole_adapter_is_loaded_with_its_hash_and_without(model_folder: Path, tiny_model: Path) -> None:
    saved = load_file(model_folder / WEIGHTS)
    for noted in (None, file_sha256(model_folder / WEIGHTS)):
        write_adapter_info(model_folder, INFO.model_copy(update={"adapter_sha256": noted}))
        adapted = load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)
        name = next(iter(saved))
        own = dict(adapted.named_parameters())[name.replace(".weight", ".default.weight")]
        assert torch.equal(own, saved[name])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: dict(list(found.items())[:3]), r"\d+ of \d+ weights are missing"),
        (lambda found: found | {"more.lora_A.weight": torch.ones(1)}, "does not have, as more"),
        (lambda found: {name: w * float("nan") for name, w in found.items()}, "not finite"),
        (lambda found: {name: w / 0 for name, w in found.items()}, "not finite"),
        (lambda found: {name: w[:, :-1].contiguous() for name, w in found.items()}, "size mismatch"),
    ],
)
def test_a_damaged_adapter_is_refused(
    damage: Callable[[Weights], Weights], said: str, model_folder: Path, tiny_model: Path
) -> None:
    save_file(damage(load_file(model_folder / WEIGHTS)), model_folder / WEIGHTS)
    with pytest.raises(RunMismatchError, match=f"{said}.*copy the whole model folder again"):
        load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)


def test_an_adapter_file_that_is_cut_or_not_the_one_that_was_saved_is_refused(
    model_folder: Path, tiny_model: Path
) -> None:
    file = model_folder / WEIGHTS
    info = INFO.model_copy(update={"adapter_sha256": file_sha256(file)})
    save_file({name: weights * 2 for name, weights in load_file(file).items()}, file)
    load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)  # nothing notes its hash
    write_adapter_info(model_folder, info)
    with pytest.raises(RunMismatchError, match="sha256 is not the one"):
        load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)
    write_adapter_info(model_folder, INFO)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunMismatchError, match="cannot be used"):
        load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)
