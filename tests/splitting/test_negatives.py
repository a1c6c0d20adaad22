"""Negatives: never the target, never the history, never twice; each kind follows its distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from helpers import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trsr.errors import DataError
from trsr.seeding import derive_rng
from trsr.splitting.negatives import NegativeSampler, NegativesConfig, NegativesKind, _draw_proportional

KINDS: tuple[NegativesKind, ...] = ("uniform", "popularity", "same-category", "targets")


def sampler(n_items: int, kind: NegativesKind, n_shelves: int = 3) -> NegativeSampler:
    ids = [f"i{i}" for i in range(n_items)]
    return NegativeSampler(
        ids,
        kind,
        popularity={item_id: (i % 7) ** 3 for i, item_id in enumerate(ids)},
        categories={item_id: (f"a{i % 2}", f"b{i % n_shelves}") for i, item_id in enumerate(ids)},
    )


@settings(deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_items=st.integers(2, 60),
    met=st.sets(st.integers(0, 70), max_size=70),
    target=st.integers(0, 59),
    n=st.integers(0, 25),
    n_known=st.none() | st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_negatives_are_new_known_and_different_or_refused(
    *, kind: NegativesKind, n_items: int, met: set[int], target: int, n: int, n_known: int | None, seed: int
) -> None:
    target %= n_items
    limit = n_items if n_known is None else min(n_known, n_items)
    history = [f"i{i}" for i in met]  # ids outside the catalogue are allowed: they have no text
    drawable = [i for i in range(limit) if kind != "targets" or i % 7]  # nobody chose the others
    free = {f"i{i}" for i in drawable} - {f"i{target}", *history}

    def draw() -> tuple[str, ...]:
        rng = derive_rng(seed, "negatives", "u")
        return sampler(n_items, kind).draw(rng, f"i{target}", history, n, n_known=limit)[0]

    if n > len(free):
        with pytest.raises(DataError, match=f"^Only {len(free)} .* request fewer negatives"):
            draw()
        return
    drawn = draw()
    assert len(drawn) == len(set(drawn)) == n
    assert set(drawn) <= free
    assert drawn == draw()


@pytest.mark.parametrize(
    ("kind", "counts", "expected"),
    [
        ("uniform", {}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ("popularity", {"a": 0, "b": 1, "c": 4}, {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}),  # interactions + 1
        ("targets", {"a": 3, "b": 1, "d": 9}, {"a": 3 / 4, "b": 1 / 4}),
    ],
)
def test_kinds_draw_in_their_proportions(
    kind: NegativesKind, counts: dict[str, int], expected: dict[str, float]
) -> None:
    drawer = NegativeSampler(["a", "b", "c", "d"], kind, popularity=counts)
    draws = Counter(drawer.draw(derive_rng(0, i), "d", [], 1)[0][0] for i in range(2000))
    assert {item: n / 2000 for item, n in draws.items()} == pytest.approx(expected, abs=0.03)


def test_popularity_still_draws_when_the_history_holds_nearly_all_the_weight() -> None:
    ids = [f"i{i}" for i in range(50)]
    popular = NegativeSampler(ids, "popularity", popularity={"i0": 10**9, "i1": 10**9})
    assert set(popular.draw(derive_rng(0), "i0", ["i1"], 48)[0]) == set(ids[2:])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_a_proportional_draw_takes_each_by_its_weight_and_the_heavy_always(
    weights: list[int], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, len(weights)))
    draws = [_draw_proportional(derive_rng(1, i), np.array(weights, float), n) for i in range(400)]
    assert all(len(set(draw)) == len(draw) == n for draw in draws)
    taken = np.bincount([i for draw in draws for i in draw], minlength=len(weights)) / 400
    free, left = set(range(len(weights))), n
    while heavy := {i for i in free if left * weights[i] >= sum(weights[j] for j in free)}:
        assert all(taken[i] == 1 for i in heavy)
        free, left = free - heavy, left - len(heavy)
    for i in free:
        assert taken[i] == pytest.approx(left * weights[i] / sum(weights[j] for j in free), abs=0.13)


PAPER = {f"p{i}": ("paper", "notebook") for i in range(4)}
PAPER |= {f"q{i}": ("paper", "card") for i in range(3)} | {f"r{i}": ("ink", "pen") for i in range(9)}
LISTS = {"a": ("Office, Paper",), "b": ("Office, Paper",), "c": ("Office, Ink",), "d": ("Garden",)}
NONE = {"a": (None, "x"), "b": ("y",), "c": ()}


@pytest.mark.parametrize(
    ("categories", "target", "exclude", "n", "near", "n_widened"),
    [
        (PAPER, "p0", ["p1"], 2, {"p2", "p3"}, 0),
        (PAPER, "p0", ["p1"], 5, {"p2", "p3", "q0", "q1", "q2"}, 3),
        (PAPER, "p0", ["p1"], 7, {"p2", "p3", "q0", "q1", "q2"}, 5),
        (LISTS, "a", [], 2, {"b", "c"}, 1),
        (NONE, "a", [], 2, {"b", "c"}, 2),
    ],
)
def test_same_category_takes_the_narrowest_shelf_first_and_counts_the_rest(
    *,
    categories: dict[str, Sequence[str | None]],
    target: str,
    exclude: list[str],
    n: int,
    near: set[str],
    n_widened: int,
) -> None:
    drawer = NegativeSampler(list(categories), "same-category", categories=categories)
    drawn, widened = drawer.draw(derive_rng(0), target, exclude, n)
    assert near <= set(drawn)
    assert (len(drawn), widened) == (n, n_widened)


def test_a_draw_from_a_million_items_does_not_walk_over_them() -> None:
    ids = [str(i) for i in range(1_000_000)]
    popularity = dict(zip(ids, np.arange(1_000_000)[::-1].tolist(), strict=True))
    for kind in ("uniform", "popularity"):
        big = NegativeSampler(ids, kind, popularity=popularity)
        draws = [partial(big.draw, derive_rng(0, i), "30", ids[:25], 20) for i in range(200)]
        # Walking over the catalogue would take over 10 ms a draw.
        assert min(map(cpu_seconds, draws)) < 0.004


def test_the_papers_draw_may_hit_target_and_history() -> None:
    small = sampler(5, "uniform")
    assert set(small.draw_unchecked(derive_rng(0), 5)) == {f"i{i}" for i in range(5)}
    with pytest.raises(DataError, match="5 items, 6 negatives"):
        small.draw_unchecked(derive_rng(0), 6)


def test_config_refuses_unknown_kinds_and_zero_negatives() -> None:
    with pytest.raises(ValidationError) as caught:
        NegativesConfig.model_validate({"kind": "hard", "n_test": 0})
    assert caught.value.error_count() == 2
