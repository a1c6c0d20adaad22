"""Margins keep the contract of every scorer, whatever the passes they are read in and what a cache holds."""

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
from trsr.llm.prefix_packing import Part, PrefixKV
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.scorer import PrefixCache, SharedPrefixScorer, _pieces
from trsr.testing.contracts import LabelScorerContract

LABELS = LabelTokens(5, 9)


def loaded(folder: Path, *, shares: bool = True) -> Any:
    model = load_causal_lm(str(folder), dtype="float32", device="cpu")
    assert not shares or prefix_attention.enable(model)
    return model


class TestSharedPrefix(LabelScorerContract):
    tolerance = 1e-4
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _model(cls, tiny_model: Path) -> None:
        cls.folder = tiny_model

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return SharedPrefixScorer(loaded(cls.folder))


class TestOneByOne(TestSharedPrefix):
    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return SharedPrefixScorer(loaded(cls.folder, shares=False))


class TestSmallPassesAndCache(TestSharedPrefix):
    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return SharedPrefixScorer(loaded(cls.folder), max_batch_tokens=32, cache=PrefixCache(20_000))


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


@pytest.fixture
def counts(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the tokens of each forward pass."""
    found: list[int] = []
    whole = type(model).forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["input_ids"].numel())
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    return found


def margins(scorer: SharedPrefixScorer) -> list[npt.NDArray[np.float32]]:
    found = dict(scorer.score(GROUPS, LABELS))
    return [found[i] for i in range(len(GROUPS))]


def assert_close(found: list[npt.NDArray[np.float32]], expected: list[Any]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shares", [True, False])
def test_margin_that_is_no_number_is_one_sentence(shares: bool) -> None:
    overflowing = random_model("llama")
    assert not shares or prefix_attention.enable(overflowing)
    overflowing.lm_head.weight.data[LABELS.negative] = torch.inf
    message = r"gave 3 of 3 margins that are NaN or infinite: .*recommender\.dtype"
    with pytest.raises(EngineError, match=message):
        list(SharedPrefixScorer(overflowing).score(GROUPS[:1], LABELS))


@pytest.mark.parametrize(("max_batch_tokens", "n_passes"), [(49, 7), (60, 6), (100, 4), (1000, 1)])
def test_margins_do_not_depend_on_the_size_of_passes(
    model: Any, counts: list[int], max_batch_tokens: int, n_passes: int
) -> None:
    expected = margins(SharedPrefixScorer(model))
    counts.clear()
    assert_close(margins(SharedPrefixScorer(model, max_batch_tokens=max_batch_tokens)), expected)
    assert max(counts) <= max_batch_tokens
    assert sum(counts) == sum(len(g.prefix) + sum(map(len, g.suffixes)) for g in GROUPS)
    assert len(counts) == n_passes


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
    suffixes = tuple((i,) * n for i, n in enumerate(lengths))
    pieces = _pieces(3, Part(tuple(range(n_prefix)), suffixes, PrefixKV() if is_known else None), limit)
    assert tuple(s for piece in pieces for s in piece.part.suffixes) == suffixes
    assert all(piece.part.n_tokens <= limit and piece.part.suffixes for piece in pieces)
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.part.known is None for piece in pieces) == (0 if is_known else 1)


def test_known_prefix_is_not_read_again(model: Any, counts: list[int]) -> None:
    expected = margins(SharedPrefixScorer(model))
    scorer = SharedPrefixScorer(model, cache=PrefixCache(10**7))
    assert not scorer.knows(GROUPS[0].prefix)
    assert_close(margins(scorer), expected)
    counts.clear()
    assert_close(margins(scorer), expected)
    assert sum(counts) == sum(len(s) for g in GROUPS for s in g.suffixes)
    assert scorer.knows(GROUPS[0].prefix)


def test_candidate_that_cannot_fit_a_pass_is_named(model: Any) -> None:
    for made in (model, random_model("mamba")):
        with pytest.raises(CandidateTooLongError, match=r"Candidate 18 of group 1 has 49 tokens .* 48 fit"):
            list(SharedPrefixScorer(made, max_batch_tokens=48).score(GROUPS, LABELS))


def test_merged_adapter_scores_as_the_adapter_does(tiny_model: Path) -> None:
    torch.manual_seed(0)
    group = ScoringGroup((20, 21, 22, 23), ((30, 31), (32,)))
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(loaded(tiny_model), lora).eval()
    ((_, apart),) = SharedPrefixScorer(model).score([group], LABELS)
    ((_, merged),) = SharedPrefixScorer(model.merge_and_unload().eval()).score([group], LABELS)
    ((_, without),) = SharedPrefixScorer(loaded(tiny_model, shares=False)).score([group], LABELS)
    np.testing.assert_allclose(merged, apart, atol=1e-4)
    assert np.abs(merged - without).max() > 0.1


@pytest.mark.parametrize("way", ["auto", "separate"])
def test_positions_that_follow_from_the_length_are_those_of_each_candidate(way: Any) -> None:
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
    expected = [[alone((*group.prefix, *suffix)) for suffix in group.suffixes] for group in GROUPS]
    for _ in range(2):  # the second time after longer ones, and with prefixes from the cache
        assert_close(margins(scorer), expected)


def kept(n_bytes: int) -> PrefixKV:
    """Return keys and values of a given size, half each."""
    half = torch.zeros(1, 1, n_bytes // 2, 1, dtype=torch.uint8)
    return PrefixKV({0: (half, half)})


def test_cache_drops_the_least_recently_used_first() -> None:
    cache = PrefixCache(30)
    for token in (1, 2, 3):
        cache.put((token,), kept(10))
    assert cache.get((1,)) is not None
    assert (2,) in cache  # asking is no use
    cache.put((4,), kept(10))
    assert [token for token in (1, 2, 3, 4) if (token,) in cache] == [1, 3, 4]
    cache.put((5,), kept(40))
    assert (5,) not in cache, "larger than the cache"
    assert len(cache) == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30).map(lambda n: 2 * n)), max_size=40))
def test_cache_counts_its_memory_and_stays_within_it(puts: list[tuple[int, int]]) -> None:
    cache = PrefixCache(80)
    for token, n_bytes in puts:
        cache.put((token,), kept(n_bytes))
        found = [cache.get((t,)) for t in range(6)]
        assert cache.n_bytes == sum(kv.n_bytes for kv in found if kv) <= 80
        assert len(cache) == sum(kv is not None for kv in found)
