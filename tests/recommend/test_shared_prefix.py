"""Scores keep the contract of every scorer, whatever the passes they are read in and what was read before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import random_model

from trsr.errors import CandidateTooLongError, EngineError
from trsr.llm import prefix_attention
from trsr.llm.architecture import forget_lengths
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.prefix_packing import PrefixKV
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.scorer import PrefixCache, SharedPrefixScorer, _pieces, _whole
from trsr.testing.contracts import LabelScorerContract

LABELS = LabelTokens(5, 9)


class TestSharedPrefix(LabelScorerContract):
    tolerance = 1e-4
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _model(cls, tiny_model: Path) -> None:
        cls.folder = tiny_model

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        model = load_causal_lm(str(cls.folder), dtype="float32", device="cpu")
        assert prefix_attention.enable(model)
        return SharedPrefixScorer(model)


class TestOneByOne(TestSharedPrefix):
    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return SharedPrefixScorer(load_causal_lm(str(cls.folder), dtype="float32", device="cpu"))


class TestSmallPassesAndCache(TestSharedPrefix):
    @classmethod
    def make_scorer(cls) -> LabelScorer:
        model = load_causal_lm(str(cls.folder), dtype="float32", device="cpu")
        assert prefix_attention.enable(model)
        return SharedPrefixScorer(model, max_batch_tokens=32, cache=PrefixCache(20_000))


def draw(seed: int, *lengths: int) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.integers(0, 64, n).tolist()) for n in lengths)


GROUPS = [
    ScoringGroup(draw(0, 12)[0], draw(1, 3, 5, 4)),
    ScoringGroup(draw(2, 30)[0], draw(3, *range(1, 20))),
    ScoringGroup(draw(4, 7)[0], draw(5, 6, 1, 9)),
]


@pytest.fixture(scope="module")
def model() -> Any:
    sharing = random_model("llama")
    assert prefix_attention.enable(sharing)
    return sharing


@pytest.mark.parametrize("shares", [True, False])
def test_a_margin_that_is_no_number_is_one_sentence(shares: bool) -> None:
    overflowing = random_model("llama")
    assert not shares or prefix_attention.enable(overflowing)
    overflowing.lm_head.weight.data[LABELS.negative] = torch.inf
    with pytest.raises(
        EngineError, match=r"gave 3 of 3 margins that are NaN or infinite: .*recommender\.dtype"
    ):
        list(SharedPrefixScorer(overflowing).score(GROUPS[:1], LABELS))


def margins(scorer: SharedPrefixScorer) -> list[npt.NDArray[np.float32]]:
    found = dict(scorer.score(GROUPS, LABELS))
    return [found[i] for i in range(len(GROUPS))]


def token_counts(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with the tokens of each forward pass."""
    counts: list[int] = []
    whole = type(model).forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(kwargs["input_ids"].numel())
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    return counts


@pytest.mark.parametrize("max_batch_tokens", [49, 60, 100, 1000])
def test_the_size_of_passes_does_not_change_a_margin(
    model: Any, max_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = margins(SharedPrefixScorer(model, max_batch_tokens=4096))
    counts = token_counts(model, monkeypatch)
    found = margins(SharedPrefixScorer(model, max_batch_tokens=max_batch_tokens))
    for ours, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-4)
    assert max(counts) <= max_batch_tokens
    assert sum(counts) == sum(len(g.prefix) + sum(map(len, g.suffixes)) for g in GROUPS)
    assert len(counts) == {49: 7, 60: 6, 100: 4, 1000: 1}[max_batch_tokens]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.integers(0, 12),
    st.integers(0, 40),
    st.booleans(),
)
def test_pieces_hold_every_suffix_once_in_order_and_fit(
    lengths: list[int], n_prefix: int, spare: int, is_known: bool
) -> None:
    limit = n_prefix + max(lengths) + spare
    group = ScoringGroup(tuple(range(n_prefix)), tuple((i,) * n for i, n in enumerate(lengths)))
    pieces = _pieces(3, _whole(group, PrefixKV() if is_known else None), limit)
    assert tuple(s for piece in pieces for s in piece.part.suffixes) == group.suffixes
    assert all(piece.part.n_tokens <= limit and piece.part.suffixes for piece in pieces)
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.part.known is None for piece in pieces) == (0 if is_known else 1)


def test_a_known_prefix_is_not_read_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = margins(SharedPrefixScorer(model))
    cache = PrefixCache(10**7)
    first = margins(SharedPrefixScorer(model, cache=cache))
    counts = token_counts(model, monkeypatch)
    again = margins(SharedPrefixScorer(model, cache=cache))
    assert sum(counts) == sum(len(s) for g in GROUPS for s in g.suffixes)
    assert (cache.n_hits, cache.n_misses) == (3, 3)
    for ours, theirs, plain in zip(first, again, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-4)
        np.testing.assert_allclose(theirs, plain, rtol=0, atol=1e-4)


def test_another_adapter_does_not_see_the_first_ones_prefixes(model: Any) -> None:
    cache = PrefixCache(10**7)
    margins(SharedPrefixScorer(model, cache=cache, adapter="a"))
    margins(SharedPrefixScorer(model, cache=cache, adapter="b"))
    assert cache.n_hits == 0


def test_a_candidate_that_cannot_fit_a_pass_is_named(model: Any) -> None:
    for scorer in (SharedPrefixScorer(model, max_batch_tokens=48), SharedPrefixScorer(random_model("mamba"))):
        scorer.max_batch_tokens = 48
        with pytest.raises(CandidateTooLongError, match=r"Candidate 18 of group 1 has 49 tokens .* 48 fit"):
            list(scorer.score(GROUPS, LABELS))


def test_a_merged_adapter_scores_as_the_adapter_does(tiny_model: Path) -> None:
    torch.manual_seed(0)
    group = ScoringGroup((20, 21, 22, 23), ((30, 31), (32,)))
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        base = load_causal_lm(str(tiny_model), dtype="float32", device="cpu")
        assert prefix_attention.enable(base)
        model = get_peft_model(base, lora).eval()
    ((_, apart),) = SharedPrefixScorer(model).score([group], LABELS)
    ((_, merged),) = SharedPrefixScorer(model.merge_and_unload().eval()).score([group], LABELS)
    plain = SharedPrefixScorer(load_causal_lm(str(tiny_model), dtype="float32", device="cpu"))
    ((_, without),) = plain.score([group], LABELS)
    np.testing.assert_allclose(merged, apart, atol=1e-4)
    assert np.abs(merged - without).max() > 0.1


@pytest.mark.parametrize("way", ["auto", "separate"])
def test_positions_that_follow_from_the_length_are_those_of_each_candidate_whatever_was_read_before(
    way: Any,
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

    def build() -> Any:
        return random_model("llama", rope_parameters=rope, max_position_embeddings=32)

    def alone(tokens: tuple[int, ...]) -> float:
        with torch.inference_mode():
            logits = build()(input_ids=torch.tensor([tokens])).logits[0, -1]
        return float(logits[LABELS.positive] - logits[LABELS.negative])

    model = build()
    forget_lengths(model)
    assert prefix_attention.enable(model, way) is (way == "auto")
    scorer = SharedPrefixScorer(model, cache=PrefixCache(10**9))
    for _ in range(2):  # the second time after longer ones, and with prefixes from the cache
        found = margins(scorer)
        for group, ours in zip(GROUPS, found, strict=True):
            expected = [alone((*group.prefix, *suffix)) for suffix in group.suffixes]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
