"""Margins come from two rows of the head, and reading candidates one by one gives the plain answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import random_model

from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.margins import label_head, separate_margins
from trsr.llm.prefix_attention import together
from trsr.recommend.model_folder import quiet_peft

LABELS = LabelTokens(5, 9)
GROUP = ScoringGroup((3, 4, 5, 6), ((7, 8, 9), (10,), (11, 12, 13, 14, 15, 16), (17, 18)))


def plain_margins(model: Any) -> torch.Tensor:
    found = []
    for suffix in GROUP.suffixes:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*GROUP.prefix, *suffix]])).logits[0, -1]
        found.append(logits[LABELS.positive] - logits[LABELS.negative])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["llama", "mamba", "bloom", "gemma2", "qwen3_next", "opt"])
@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_one_by_one_equals_the_plain_forward(name: str, max_tokens: int) -> None:
    model = random_model(name)
    prefix_attention.enable(model, "separate")
    with torch.inference_mode(), label_head(model, LABELS) as columns:
        found = separate_margins(model, GROUP, columns, max_tokens)
    torch.testing.assert_close(found, plain_margins(model), rtol=0, atol=1e-4)


def test_batches_hold_no_more_tokens_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    prefix_attention.enable(model, "separate")
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    with torch.inference_mode():
        separate_margins(model, GROUP, (5, 9), 14)
    assert max(sizes) <= 14
    assert len(sizes) == 3  # 5 and 6 tokens together, then 7 alone, then 10


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "phi"])  # plain, capped, scaled, with bias
def test_two_rows_of_the_head_give_what_the_whole_head_gives(name: str) -> None:
    model = random_model(name)
    whole = model.get_output_embeddings()
    with label_head(model, LABELS) as columns, torch.inference_mode():
        assert columns == (0, 1)
        found = separate_margins(model, GROUP, columns, 1000)
        assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 2, 2)
    assert model.get_output_embeddings() is whole
    torch.testing.assert_close(found, plain_margins(model), rtol=0, atol=1e-4)
    with pytest.raises(KeyError), label_head(model, LABELS):
        raise KeyError
    assert model.get_output_embeddings() is whole


def test_a_head_with_an_adapter_is_left_whole() -> None:
    torch.manual_seed(0)
    with quiet_peft():
        lora = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(random_model("llama"), lora).eval()
    with label_head(model, LABELS) as columns, torch.inference_mode():
        assert columns == (LABELS.positive, LABELS.negative)
        found = separate_margins(model, GROUP, columns, 1000)
    torch.testing.assert_close(found, plain_margins(model), rtol=0, atol=1e-4)


def test_a_model_whose_padded_rows_are_others_reads_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    whole = type(model).forward

    def by_width(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        out = whole(self, input_ids, **options)
        out.logits = out.logits * input_ids.shape[1]
        return out

    monkeypatch.setattr(type(model), "forward", by_width)
    prefix_attention.enable(model, "separate")
    assert together(model, [3, 3, 4], 1000) == 1
    monkeypatch.undo()
    prefix_attention.enable(model, "separate")
    assert together(model, [3, 3, 4], 1000) == 3
    assert together(model, [3, 3, 4], 7) == 2


def test_a_model_that_keeps_its_heads_bias_twice_keeps_its_whole_head() -> None:
    model = random_model("bert", is_decoder=True)
    head = model.get_output_embeddings()
    with label_head(model, LABELS) as columns:
        assert columns == (LABELS.positive, LABELS.negative)
        assert model.get_output_embeddings() is head
