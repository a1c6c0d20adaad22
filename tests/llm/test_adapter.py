"""What a model folder says about itself, and when it is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from trsr.errors import RunMismatchError
from trsr.llm.adapter import (
    FILE_NAME,
    AdapterInfo,
    check_adapter,
    quiet_peft,
    read_adapter_info,
    write_adapter_info,
)
from trsr.llm.base import LabelTokens

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


def test_a_matching_adapter_is_accepted(tmp_path: Path) -> None:
    check_adapter(INFO, tmp_path, template_hash="a" * 64, prompt_version=1, base_model_id="tiny@123")


def test_another_template_is_refused_by_name_and_hash(tmp_path: Path) -> None:
    with pytest.raises(RunMismatchError, match=r"a{12} of the template 'products', but .* b{12},"):
        check_adapter(INFO, tmp_path, template_hash="b" * 64, prompt_version=1, base_model_id="tiny@123")


def test_another_base_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunMismatchError, match="trained on tiny@123, not on tiny@456"):
        check_adapter(INFO, tmp_path, template_hash="a" * 64, prompt_version=1, base_model_id="tiny@456")


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
