"""Negatives: never the target, never the history, never twice; each kind follows its distribution."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
from helpers import cpu_seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trsr.errors import DataError
from trsr.seeding import derive_rng
from trsr.splitting.negatives import NegativeSampler, NegativesConfig, NegativesKind

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
def test_negatives_are_new_known_and_different_or_there_is_a_clear_error(
    *,
    kind: NegativesKind,
    n_items: int,
    met: set[int],
    target: int,
    n: int,
    n_known: int | None,
    seed: int,
) -> None:
    target %= n_items
    limit = n_items if n_known is None else min(n_known, n_items)
    history = [f"i{i}" for i in met]  # ids outside the catalogue are allowed: they have no text
    drawable = [i for i in range(limit) if kind != "targets" or i % 7]  # nobody chose the others
    free = {f"i{i}" for i in drawable} - {f"i{target}", *history}

    def draw() -> tuple[str, ...]:
        rng = derive_rng(seed, "negatives", "u")
        return sampler(n_items, kind).draw(rng, f"i{target}", history, n, n_known=limit).item_ids

    if n > len(free):
        with pytest.raises(DataError, match="ask for fewer"):
            draw()
        return
    drawn = draw()
    assert len(drawn) == len(set(drawn)) == n
    assert set(drawn) <= free
    assert drawn == draw()


def test_uniform_negatives_are_uniform() -> None:
    uniform = sampler(20, "uniform")
    counts = Counter(
        item for i in range(4000) for item in uniform.draw(derive_rng(0, i), "i0", ["i1"], 3).item_ids
    )
    assert set(counts) == {f"i{i}" for i in range(2, 20)}
    expected = 4000 * 3 / 18
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_popularity_negatives_follow_interactions_plus_one() -> None:
    popular = NegativeSampler(["a", "b", "c", "d"], "popularity", popularity={"a": 9, "b": 4, "d": 999})
    counts = Counter(popular.draw(derive_rng(0, i), "d", [], 1).item_ids[0] for i in range(4000))
    shares = {item: count / 4000 for item, count in counts.items()}
    assert shares == pytest.approx({"a": 10 / 16, "b": 5 / 16, "c": 1 / 16}, abs=0.03)


def test_targets_are_drawn_as_often_as_they_were_chosen_and_others_never() -> None:
    chosen = NegativeSampler(["a", "b", "c", "d"], "targets", popularity={"a": 6, "b": 2, "d": 999})
    counts = Counter(chosen.draw(derive_rng(0, i), "d", [], 1).item_ids[0] for i in range(4000))
    assert {item: n / 4000 for item, n in counts.items()} == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)
    with pytest.raises(DataError, match=r"Only 1 targets of other users .* ask for fewer negatives or more"):
        chosen.draw(derive_rng(0), "d", ["a"], 2)


def test_popularity_still_draws_when_the_history_holds_nearly_all_the_weight() -> None:
    ids = [f"i{i}" for i in range(50)]
    popular = NegativeSampler(ids, "popularity", popularity={"i0": 10**9, "i1": 10**9})
    assert set(popular.draw(derive_rng(0), "i0", ["i1"], 48).item_ids) == set(ids[2:])


def test_same_category_takes_the_narrowest_shelf_first_and_counts_what_it_took_elsewhere() -> None:
    paths = {f"p{i}": ("paper", "notebook") for i in range(4)}
    paths |= {f"q{i}": ("paper", "card") for i in range(3)} | {f"r{i}": ("ink", "pen") for i in range(9)}
    near = NegativeSampler(list(paths), "same-category", categories=paths)
    few = near.draw(derive_rng(0), "p0", ["p1"], 2)
    assert set(few.item_ids) == {"p2", "p3"}
    assert few.n_widened == 0
    more = near.draw(derive_rng(0), "p0", ["p1"], 5)
    assert set(more.item_ids) == {"p2", "p3", "q0", "q1", "q2"}
    assert more.n_widened == 3
    most = near.draw(derive_rng(0), "p0", ["p1"], 7)
    assert set(more.item_ids) < set(most.item_ids)
    assert most.n_widened == 5


def test_same_category_reads_lists_of_categories_as_levels() -> None:
    paths = {"a": ("Office, Paper",), "b": ("Office, Paper",), "c": ("Office, Ink",), "d": ("Garden",)}
    near = NegativeSampler(list(paths), "same-category", categories=paths)
    assert set(near.draw(derive_rng(0), "a", [], 2).item_ids) == {"b", "c"}


def test_same_category_of_a_target_without_category_is_uniform_and_counted() -> None:
    near = NegativeSampler(["a", "b", "c"], "same-category", categories={"a": (None, "x"), "b": ("y",)})
    drawn = near.draw(derive_rng(0), "a", [], 2)
    assert set(drawn.item_ids) == {"b", "c"}
    assert drawn.n_widened == 2


def test_a_draw_from_a_million_items_does_not_walk_over_them() -> None:
    ids = [str(i) for i in range(1_000_000)]
    history = ids[:25]
    popularity = dict(zip(ids, np.arange(1_000_000)[::-1].tolist(), strict=True))
    for kind in ("uniform", "popularity"):
        big = NegativeSampler(ids, kind, popularity=popularity)
        draws = [partial(big.draw, derive_rng(0, i), "30", history, 20) for i in range(200)]
        # Walking over the catalogue would take over 10 ms a draw.
        assert min(map(cpu_seconds, draws)) < 0.004


def test_the_papers_draw_may_hit_target_and_history() -> None:
    small = sampler(5, "uniform")
    assert set(small.draw_unchecked(derive_rng(0), 5).item_ids) == {f"i{i}" for i in range(5)}
    with pytest.raises(DataError, match="5 items, 6 negatives"):
        small.draw_unchecked(derive_rng(0), 6)


def test_config_refuses_unknown_kinds_and_zero_negatives() -> None:
    with pytest.raises(ValidationError) as caught:
        NegativesConfig.model_validate({"kind": "hard", "n_test": 0})
    assert caught.value.error_count() == 2
