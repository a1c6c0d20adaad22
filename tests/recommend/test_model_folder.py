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
from trsr.recommend.calibration import Calibration
from trsr.recommend.model_folder import (
    FILE_NAME,
    WEIGHTS,
    AdapterInfo,
    check_adapter,
    installed,
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
    calibration=Calibration("platt", 0.1, -1e-9),
    versions={"trsr": "0"},
)
SAME: dict[str, Any] = {"template_hash": "a" * 64, "prompt_version": 1, "base_model_id": "tiny@123"}


def test_info_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_adapter_info(tmp_path, INFO)
    assert read_adapter_info(tmp_path) == INFO
    assert INFO.labels == LabelTokens(7, 8)
    older = INFO.model_dump(exclude={"prompt_version", "calibration"})
    (tmp_path / FILE_NAME).write_text(json.dumps(older))
    assert read_adapter_info(tmp_path).prompt_version == 1


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'{"base_model": "x"}',
        b"\xff\xfe",
        INFO.model_dump_json().replace('"base_model"', '"from_the_future": 1, "base_model"', 1).encode(),
        INFO.model_dump_json().replace('"a":0.1', '"a":-0.1').encode(),
    ],
)
def test_info_that_is_unreadable_or_unknown_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(RunMismatchError, match="model folder of trsr"):
        read_adapter_info(tmp_path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"template_hash": "b" * 64}, "a{12} as version of the template 'products', but found b{12};"),
        ({"base_model_id": "tiny@456"}, "tiny@123 as base model, but found tiny@456;"),
        ({"prompt_version": 2}, r"1 as prompt version \(BOS.*but found 2;"),
        ({"quantization": "4bit"}, r"null as recommender\.quantization, but found 4bit;"),
    ],
)
def test_check_refuses_another_prompt_or_base_model_by_name(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    rounded = INFO.model_copy(update={"quantization": "4bit"})
    check_adapter(INFO, tmp_path, **SAME)
    check_adapter(rounded, tmp_path, **SAME, quantization="4bit")
    with pytest.raises(RunMismatchError, match=said):
        check_adapter(INFO, tmp_path, **SAME | other)


def test_quiet_peft_silences_only_known_warnings() -> None:
    with quiet_peft():
        warnings.warn("`is_gradient_checkpointing` is deprecated and so on", FutureWarning, stacklevel=1)
        with pytest.warns(FutureWarning, match="something else"):
            warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)


def test_installed_leaves_out_missing_packages() -> None:
    found = installed(["pydantic", "a-package-that-nobody-made", "numpy"])
    assert list(found) == ["pydantic", "numpy"]
    assert all(version[0].isdigit() for version in found.values())


@pytest.fixture
def model_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder of before the hash of its adapter was noted."""
    with quiet_peft():
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(str(tiny_model), device="cpu"), lora)
    model.save_pretrained(str(tmp_path / "model"))
    write_adapter_info(tmp_path / "model", INFO)
    return tmp_path / "model"


def test_adapter_is_loaded_with_its_hash_and_without(model_folder: Path, tiny_model: Path) -> None:
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
def test_adapter_with_damaged_weights_is_refused(
    damage: Callable[[Weights], Weights], said: str, model_folder: Path, tiny_model: Path
) -> None:
    save_file(damage(load_file(model_folder / WEIGHTS)), model_folder / WEIGHTS)
    with pytest.raises(RunMismatchError, match=f"{said}.*copy the whole model folder again"):
        load_adapter(load_causal_lm(str(tiny_model), device="cpu"), model_folder)


def test_adapter_that_is_cut_or_not_the_one_saved_is_refused(model_folder: Path, tiny_model: Path) -> None:
    file, base = model_folder / WEIGHTS, load_causal_lm(str(tiny_model), device="cpu")
    info = INFO.model_copy(update={"adapter_sha256": file_sha256(file)})
    save_file({name: weights * 2 for name, weights in load_file(file).items()}, file)
    write_adapter_info(model_folder, info)
    with pytest.raises(RunMismatchError, match="sha256 is not the one"):
        load_adapter(base, model_folder)
    write_adapter_info(model_folder, INFO)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunMismatchError, match="cannot be used"):
        load_adapter(base, model_folder)
