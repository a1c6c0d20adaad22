"""The layers that get an adapter are known before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import ModelError
from trsr.train.config import LoraConfig
from trsr.train.lora import lora_targets


def test_layers_are_named_from_the_configuration_alone(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    found = lora_targets(str(bare), LoraConfig(target_modules=("q_proj", "v_proj")))
    assert [name.rpartition(".")[2] for name in found] == ["q_proj", "v_proj"] * 2
    assert len(lora_targets(str(bare), LoraConfig())) == 14


@pytest.mark.parametrize("targets", ["x_proj", ("query_key_value",), ("q_proj", "query_key_value")])
def test_a_name_that_no_layer_has_is_refused_with_those_there_are(
    targets: str | tuple[str, ...], tiny_model: Path
) -> None:
    named = targets if isinstance(targets, str) else targets[-1]
    with pytest.raises(
        ModelError, match=rf"no layers '{named}'; use `all-linear`, or some of q_proj, k_proj"
    ):
        lora_targets(str(tiny_model), LoraConfig(target_modules=targets))
