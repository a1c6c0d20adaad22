"""The prefix cache keeps what was used last within its memory, and parts prefixes by tokens and adapter."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.prefix_packing import PrefixKV
from trsr.recommend.scorer import PrefixCache


def known(n_bytes: int) -> PrefixKV:
    """Return keys and values of a given size, half each."""
    half = torch.zeros(1, 1, n_bytes // 2, 1, dtype=torch.uint8)
    return PrefixKV({0: (half, half)})


def test_a_prefix_is_found_by_its_tokens_and_its_adapter() -> None:
    cache = PrefixCache(100)
    kept = known(10)
    cache.put("a", (1, 2), kept)
    assert cache.get("a", [1, 2]) is kept
    assert cache.get("b", (1, 2)) is None
    assert cache.get("a", (1, 2, 3)) is None
    assert (cache.n_hits, cache.n_misses) == (1, 2)


def test_the_least_recently_used_leaves_first() -> None:
    cache = PrefixCache(30)
    for token in (1, 2, 3):
        cache.put("", (token,), known(10))
    cache.get("", (1,))
    cache.put("", (4,), known(10))
    assert [token for token in (1, 2, 3, 4) if cache.get("", (token,))] == [1, 3, 4]


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache = PrefixCache(30)
    cache.put("", (1,), known(10))
    cache.put("", (2,), known(40))
    assert cache.get("", (1,)) is not None
    assert cache.get("", (2,)) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30).map(lambda n: 2 * n)), max_size=40))
def test_memory_is_counted_and_never_above_its_bound(puts: list[tuple[int, int]]) -> None:
    cache = PrefixCache(80)
    for token, n_bytes in puts:
        cache.put("", (token,), known(n_bytes))
        kept = [cache.get("", (t,)) for t in range(6)]
        assert cache.n_bytes == sum(kv.n_bytes for kv in kept if kv) <= 80
        assert len(cache) == sum(kv is not None for kv in kept)


def test_asking_whether_a_prefix_is_there_is_no_use_of_it() -> None:
    cache = PrefixCache(20)
    for token in (1, 2):
        cache.put("a", (token,), known(10))
    assert cache.holds("a", [1])
    assert not cache.holds("b", [1])
    assert (cache.n_hits, cache.n_misses) == (0, 0)
    cache.put("a", (3,), known(10))
    assert not cache.holds("a", [1])  # it was still the least recently used
