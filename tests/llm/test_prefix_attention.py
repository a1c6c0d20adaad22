"""Sharing a prefix gives the margins of one candidate at a time, on every architecture that can share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import random_model

from trsr.llm import prefix_attention
from trsr.llm.architecture import forget_lengths
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.prefix_attention import label_head, packed_margins, separate_margins, together
from trsr.llm.prefix_packing import Part, PrefixKV, Segment, pack
from trsr.recommend.model_folder import quiet_peft

LABELS = LabelTokens(5, 9)
SHARING = ["llama", "qwen3", "mistral", "gemma3_text", "phi", "gpt_neox", "opt", "starcoder2", "phi3"]


def draw(seed: int, *lengths: int) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(tuple(torch.randint(0, 64, (n,), generator=generator).tolist()) for n in lengths)


# Longer than the sliding windows of the tiny Mistral and Gemma, which are 16; the second one's row is wide.
GROUPS = [
    ScoringGroup(draw(0, 30)[0], draw(1, 5, 9, 1, 20, 7)),
    ScoringGroup(draw(2, 12)[0], draw(3, 3, 3, 40)),
    ScoringGroup((), draw(4, 4, 8)),
]


def with_adapter(model: Any) -> Any:
    torch.manual_seed(1)
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(model, lora).eval()


def by_length(kind: str) -> Any:
    """A Llama whose rotary positions change beyond 50 tokens."""
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 50}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    model = random_model(
        "llama", rope_parameters=rope, **({"max_position_embeddings": 50} if kind == "dynamic" else {})
    )
    forget_lengths(model)
    return model


@pytest.fixture(scope="module", params=SHARING)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["rows", "rows adapter", "padded", "padded adapter"])
def model(architecture: str, request: pytest.FixtureRequest) -> Any:
    way, *rest = request.param.split()
    base = random_model(architecture)
    assert prefix_attention.enable(base, way)
    return with_adapter(base) if rest else base


def alone(model: Any) -> torch.Tensor:
    """The plain way by the plain attention: each prompt as a sequence of its own."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    found = []
    with torch.inference_mode():
        for group in GROUPS:
            for suffix in group.suffixes:
                logits = model(input_ids=torch.tensor([[*group.prefix, *suffix]])).logits[0, -1].float()
                found.append(logits[LABELS.positive] - logits[LABELS.negative])
    base.set_attn_implementation(before)
    return torch.stack(found)


@pytest.mark.parametrize("row_tokens", [1, 16, 1000])
def test_packed_margins_equal_those_of_one_candidate_at_a_time(model: Any, row_tokens: int) -> None:
    expected = alone(model)
    packed = pack([Part(group.prefix, group.suffixes) for group in GROUPS], row_tokens)
    with torch.inference_mode(), label_head(model, LABELS) as columns:
        found = packed_margins(model, packed, columns)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1, "the candidates differ, so the comparison can fail"


def test_a_prefix_that_was_read_before_gives_the_same_margins(model: Any) -> None:
    known = [PrefixKV() for _ in GROUPS]
    parts = [Part(g.prefix, g.suffixes[:1], keep=kv) for g, kv in zip(GROUPS, known, strict=True)]
    with torch.inference_mode(), label_head(model, LABELS) as columns:
        packed_margins(model, pack(parts), columns)
        parts = [Part(g.prefix, g.suffixes, known=kv) for g, kv in zip(GROUPS, known, strict=True)]
        assert pack(parts).tokens.numel() == sum(len(s) for g in GROUPS for s in g.suffixes)
        found = packed_margins(model, pack(parts), columns)
    torch.testing.assert_close(found, alone(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_what_is_filled_up_leaves_no_trace_in_gradients(architecture: str) -> None:
    found = {}
    for way in ("rows", "padded"):
        model = random_model(architecture)
        prefix_attention.enable(model, way)
        with label_head(model, LABELS) as columns:
            packed_margins(
                model, pack([Part(g.prefix, g.suffixes) for g in GROUPS]), columns
            ).sum().backward()
        found[way] = {name: weight.grad for name, weight in model.named_parameters()}
    for name, gradient in found["rows"].items():
        torch.testing.assert_close(found["padded"][name], gradient, rtol=1e-4, atol=1e-5)


NOT_SHARED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a bias by distance": ("bloom", {}, "replaced"),
    "a state": ("mamba", {}, "size of tensor"),
    "capped scores": ("gemma2", {}, "softcap"),
    "a state besides attention": ("qwen3_next", {}, "differ"),
    "a mask of chunks": ("llama4_text", {"attention_chunk_size": 64}, "masks hide"),
    "a mask with a window that layers do not name": ("phimoe", {"sliding_window": 64}, "masks hide"),
    "a temperature by place": ("llama4_text", {"attn_temperature_tuning": True}, "temperature_tuning"),
    "attention twice a layer": ("diffllama", {}, "differ"),
    "a sparse mask": ("doge", {}, "keep_window_size"),
    "a setting that is not known": ("llama", {"block_sparse_size": 4096}, "block_sparse_size=4096"),
    "positions that are not known": ("llama", {"strided_positions": True}, "strided_positions"),
}


@pytest.mark.parametrize("kind", NOT_SHARED)
def test_model_that_cannot_share_is_left_as_it_was_and_says_why_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    name, changes, reason = NOT_SHARED[kind]
    model = random_model(name, **changes)
    before = model.config._attn_implementation
    assert not prefix_attention.enable(model)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("trsr")]
    assert reason in line
    assert model.config._attn_implementation == before
    assert not prefix_attention.is_enabled(model)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("phimoe", {"sliding_window": None}), ("llama4_text", {}), ("mistral", {"sliding_window": 100})],
)
def test_attention_that_hides_nothing_within_the_context_is_shared(
    name: str, changes: dict[str, Any]
) -> None:
    assert prefix_attention.enable(random_model(name, **changes))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_follow_from_the_length_are_shared_where_they_do_not_change(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefix_attention._warn_too_long.cache_clear()
    model = by_length(kind)
    assert prefix_attention.enable(model)
    assert prefix_attention.fits(model, GROUPS[0])  # 30 and 20
    assert "more than" not in caplog.text
    assert not prefix_attention.fits(model, ScoringGroup(GROUPS[0].prefix, draw(1, 3, 21)))
    assert "more than 50 tokens" in caplog.text


def test_a_wrong_attention_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Segment.mask

    def leaking(self: Any, window: int | None) -> torch.Tensor:
        mask = whole(self, window)
        mask[:, :, self.n_prefix] = True  # all tokens see a row's first token
        return mask

    monkeypatch.setattr(Segment, "mask", leaking)
    assert not prefix_attention.enable(random_model("llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_obstacle_and_margins_are_float32(dtype: torch.dtype) -> None:
    model = random_model("llama").to(dtype)
    assert prefix_attention.enable(model)
    with torch.inference_mode(), label_head(model, LABELS) as columns:
        margins = packed_margins(model, pack([Part(GROUPS[0].prefix, GROUPS[0].suffixes)]), columns)
        plain = separate_margins(model, GROUPS[0], columns, 1000)
    assert margins.dtype is torch.float32
    torch.testing.assert_close(margins, plain, rtol=0, atol=0.15)


def test_without_a_packed_sequence_it_attends_as_usual() -> None:
    plain, enabled = random_model("llama"), random_model("llama")
    assert prefix_attention.enable(enabled)
    tokens = torch.tensor([draw(7, 12)[0]])
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.inference_mode():
        for options in ({}, {"attention_mask": mask}):
            expected = plain(input_ids=tokens, **options).logits[:, 3:]
            torch.testing.assert_close(enabled(input_ids=tokens, **options).logits[:, 3:], expected)


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


def test_batches_hold_at_most_max_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
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
