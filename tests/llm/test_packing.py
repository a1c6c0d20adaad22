"""A packed group gives every token what it would get in a sequence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from trsr.llm import shared_attention
from trsr.llm.adapter import quiet_peft
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.packing import pack, packed_margins
from trsr.llm.transformers import load_causal_lm

LABELS = LabelTokens(5, 9)
GROUP = ScoringGroup(tuple(range(20, 37)), ((40, 41, 42), (50,), (60, 61, 62, 63, 64), (40, 41)))

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple)
groups = st.builds(
    ScoringGroup,
    st.lists(st.integers(0, 99), max_size=8).map(tuple),
    st.lists(tokens, min_size=1, max_size=5).map(tuple),
)


@pytest.fixture(scope="module", params=["base", "adapter", "shared base", "shared adapter"])
def model(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    """The tiny model in float32, by mask or shared attention, with and without a LoRA adapter."""
    shared = request.param.startswith("shared")
    base = load_causal_lm(str(tiny_model), dtype="float32", device="cpu", shared_prefix=shared)
    assert (base.config._attn_implementation == shared_attention.NAME) == shared
    if request.param.endswith("base"):
        return base
    torch.manual_seed(0)
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(base, lora).eval()


def margins_of(model: Any, group: ScoringGroup) -> torch.Tensor:
    with torch.inference_mode():
        return packed_margins(model, pack(group), LABELS)


def margins_one_by_one(model: Any, prefix: Sequence[int], suffixes: Sequence[Sequence[int]]) -> torch.Tensor:
    """The plain way: each prompt as a sequence of its own, without mask or positions."""
    found = []
    for suffix in suffixes:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prefix, *suffix]])).logits[0, -1].float()
        found.append(logits[LABELS.positive] - logits[LABELS.negative])
    return torch.stack(found)


def test_an_adapter_changes_the_margins(model: Any) -> None:
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            plain = margins_of(model, GROUP)
        assert (margins_of(model, GROUP) - plain).abs().max() > 0.1


def test_packed_margins_equal_those_of_one_candidate_at_a_time(model: Any) -> None:
    alone = margins_one_by_one(model, GROUP.prefix, GROUP.suffixes)
    torch.testing.assert_close(margins_of(model, GROUP), alone, rtol=0, atol=1e-4)
    assert alone.std() > 0.1, "the model tells these candidates apart, so the comparison can fail"


def test_a_group_without_prefix_is_scored_too(model: Any) -> None:
    alone = margins_one_by_one(model, (), GROUP.suffixes)
    torch.testing.assert_close(margins_of(model, ScoringGroup((), GROUP.suffixes)), alone, rtol=0, atol=1e-4)


def test_a_candidate_cannot_see_another(model: Any) -> None:
    before = margins_of(model, GROUP)
    for changed in range(len(GROUP.suffixes)):
        suffixes = list(GROUP.suffixes)
        suffixes[changed] = tuple(token + 17 for token in suffixes[changed])
        after = margins_of(model, ScoringGroup(GROUP.prefix, tuple(suffixes)))
        others = [i for i in range(len(suffixes)) if i != changed]
        torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-5)
        assert abs(after[changed] - before[changed]) > 1e-2


def test_permuting_suffixes_permutes_margins(model: Any) -> None:
    order = [2, 0, 3, 1]
    turned = ScoringGroup(GROUP.prefix, tuple(GROUP.suffixes[i] for i in order))
    torch.testing.assert_close(margins_of(model, turned), margins_of(model, GROUP)[order], rtol=0, atol=1e-5)


def test_margins_are_float32_in_a_bfloat16_model(tiny_model: Path) -> None:
    model = load_causal_lm(str(tiny_model), dtype="bfloat16", device="cpu")
    assert margins_of(model, GROUP).dtype is torch.float32


@given(groups)
def test_the_layout_holds_every_token_once_and_in_order(group: ScoringGroup) -> None:
    packed = pack(group)
    flat = [*group.prefix, *(token for suffix in group.suffixes for token in suffix)]
    assert packed.tokens.tolist() == [flat]
    assert packed.tokens[0, packed.answers].tolist() == [suffix[-1] for suffix in group.suffixes]


@given(groups)
def test_a_row_sees_its_own_sequence_so_far_and_nothing_else(group: ScoringGroup) -> None:
    packed = pack(group)
    for answer, suffix in zip(packed.answers.tolist(), group.suffixes, strict=True):
        seen = packed.mask[0, 0, answer]
        assert packed.tokens[0, seen].tolist() == [*group.prefix, *suffix]
        assert packed.positions[0, seen].tolist() == list(range(len(group.prefix) + len(suffix)))
    upper = torch.triu(packed.mask[0, 0], diagonal=1)
    assert not upper.any()


def test_a_suffix_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no answer position"):
        pack(ScoringGroup((1, 2), ((3,), ())))


def test_a_layout_can_be_moved() -> None:
    packed = pack(GROUP).to(torch.device("meta"))
    assert {packed.tokens.device.type, packed.mask.device.type, packed.answers.device.type} == {"meta"}
