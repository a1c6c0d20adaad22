"""Adapted layers are known before weights are loaded; unfit layers get no adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_model

from trsr.errors import ModelError
from trsr.train.config import LoraConfig, TrainConfig
from trsr.train.lora import experts_without_adapter, lora_targets, with_adapter


def test_layers_are_named_from_the_configuration_alone(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    found = lora_targets(str(bare), LoraConfig(target_modules=("q_proj", "v_proj")))
    assert [name.rpartition(".")[2] for name in found] == ["q_proj", "v_proj"] * 2
    assert len(lora_targets(str(bare), LoraConfig())) == 14


@pytest.mark.parametrize("targets", ["x_proj", ("query_key_value",), ("q_proj", "query_key_value")])
def test_unknown_layer_name_is_refused_with_the_known_ones(
    targets: str | tuple[str, ...], tiny_model: Path
) -> None:
    named = targets if isinstance(targets, str) else targets[-1]
    wanted = rf"no layers '{named}'; use `all-linear`, or some of q_proj, k_proj"
    with pytest.raises(ModelError, match=wanted):
        lora_targets(str(tiny_model), LoraConfig(target_modules=targets))


def adapted(model_type: str, **lora: Any) -> Any:
    model = with_adapter(random_model(model_type), TrainConfig(lora=LoraConfig(r=2, **lora)))
    for _, weights in model.named_parameters():
        if weights.requires_grad:
            weights.data.normal_(0, 0.1)
    return model.eval()


def test_experts_without_an_adapter_are_named_and_get_one_on_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = ["experts.down_proj", "experts.gate_up_proj"]
    assert experts_without_adapter(adapted("granitemoe")) == left
    assert f"{', '.join(left)} of the experts get no adapter" in caplog.text
    caplog.clear()
    model = adapted("granitemoe", target_parameters=tuple(left))
    assert experts_without_adapter(model) == []
    assert "experts" not in caplog.text
    tokens = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=tokens).logits[0, -1, 5].backward()
    touched = [name for name, weights in model.named_parameters() if weights.grad is not None]
    assert sum("experts" in name and "lora_A" in name for name in touched) == 4
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        after = model.merge_and_unload()(input_ids=tokens).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba", "phimoe", "falcon"])
def test_layers_that_cannot_have_an_adapter_are_left_out_of_all_linear(model_type: str) -> None:
    model = adapted(model_type)
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    names = {name.split(".")[-3] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names, "the others have one"
    assert names.isdisjoint({"out_proj", "x_proj", "dt_proj", "router", "gate"})
