"""Retrieval finds unseen items by words, obeys filters, and knows what was put later."""

from __future__ import annotations

import numpy as np
import pytest
from serve_parts import ITEMS, KINDS, WORDS, catalogue

from trsr.baselines.simple import BM25, Bm25Index
from trsr.errors import DataError
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.retrieval import Retriever
from trsr.types import Item, RankingExample

CATEGORY = ("category",)


def test_top_is_that_of_the_bm25_ranker() -> None:
    items = catalogue()
    profile, history = "likes a lamp, rope and seed", ("i3", "i7")
    found = Retriever(items, CATEGORY).top(profile, history, 10)
    names = tuple(name for name in ITEMS if name not in history)
    text = items.texts(None, 10_000, None)
    ranker = BM25(Bm25Index({name: text(name) for name in ITEMS}), profiles={"e": profile})
    (answer,) = ranker.rank([RankingExample("e", "u", history, names, (0,) * len(names))])
    best = [names[i] for i in np.argsort(-answer.margins, kind="stable")[:10]]
    assert answer.margins.max() > 0
    by_name = dict(zip(names, answer.margins.tolist(), strict=True))
    assert [by_name[name] for name in found] == pytest.approx([by_name[name] for name in best])


def test_top_leaves_seen_items_out() -> None:
    retriever = Retriever(catalogue())
    best = retriever.top("lamp", (), 3)
    again = retriever.top("lamp", best, 40)
    assert not set(best) & set(again)
    assert len(again) == len(ITEMS) - 3


def test_top_searches_for_the_newest_items_too() -> None:
    retriever = Retriever(catalogue(Item("twin", {"title": "zebra"}), Item("seen", {"title": "zebra"})))
    assert retriever.top("", ("seen",), 1) == ["twin"]
    assert retriever.top("", ("seen", "i1", "i2", "i3", "i4", "i5"), 1) != ["twin"]
    assert Retriever(retriever.catalogue, n_recent=0).top("", ("seen",), 1) == ["i0"]


def test_top_begins_with_the_popular_where_no_word_is_found() -> None:
    retriever = Retriever(catalogue(), popularity={"i9": 5, "i30": 7})
    assert retriever.top("", (), 3) == ["i30", "i9", "i0"]
    assert retriever.top("wordsthatnobodyuses", (), 2) == ["i30", "i9"]


@pytest.mark.parametrize("value", ["paper", "OFFICE", "paper, office", " Paper,  office"])
def test_filter_keeps_items_that_have_the_value_in_any_case(value: str) -> None:
    found = Retriever(catalogue(), CATEGORY).top("lamp", ("i1",), 100, {"category": value})
    assert set(found) == {name for name in ITEMS if int(name[1:]) % 3 == 1} - {"i1"}


def test_filters_hold_together_and_may_leave_nothing() -> None:
    retriever = Retriever(catalogue(Item("b", {"category": "pap", "brand": "Acme"})), ("category", "brand"))
    assert retriever.top("", (), 9, {"category": "pap", "brand": "acme"}) == ["b"]
    assert retriever.top("", (), 9, {"category": "paper", "brand": "acme"}) == []
    assert retriever.top("", (), 9, {"category": "no such"}) == []


def test_filter_on_another_field_and_unknown_history_are_refused_by_name() -> None:
    retriever = Retriever(catalogue(), CATEGORY)
    with pytest.raises(DataError, match="filter on 'title'; expected category"):
        retriever.top("", (), 5, {"title": "lamp"})
    with pytest.raises(DataError, match="'gone'"):
        retriever.top("", ("gone",), 5)


def test_items_put_later_are_found_and_changed_ones_by_their_new_words_only() -> None:
    retriever = Retriever(catalogue(), CATEGORY)
    retriever.put_items(
        [
            Item("new", {"title": "xylophone", "category": "music"}),
            Item("i5", {"title": "trombone", "category": "music"}),
        ]
    )
    assert retriever.top("xylophone", (), 1) == ["new"]
    assert retriever.top("trombone", (), 1) == ["i5"]
    assert set(retriever.top("", (), 9, {"category": "music"})) == {"new", "i5"}
    assert retriever.top(ITEMS["i5"].fields["title"], (), 99).index("i5") > 5


@pytest.mark.parametrize("n_changes", [30, 1500])
def test_changed_catalogue_is_searched_as_one_opened_anew(n_changes: int) -> None:
    rng = np.random.default_rng(0)
    popularity = {f"i{n}": n for n in range(60)}  # no two alike, so every order is one by score
    retriever = Retriever(catalogue(), CATEGORY, popularity)
    for _ in range(n_changes):
        name, other = (f"i{n}" for n in rng.integers(60, size=2))
        title = " ".join(rng.choice(list(WORDS), size=rng.integers(1, 6)))
        retriever.put_items([Item(name, {"title": title, "category": KINDS[rng.integers(3)]})])
        if rng.integers(2):
            retriever.delete_items([other])
    again = Retriever(retriever.catalogue, CATEGORY, popularity)
    for query in ("", "lamp", "rope seed rope", " ".join(WORDS)):
        assert retriever.top(query, ("i3",), 99) == again.top(query, ("i3",), 99)
        office = {"category": "office"}
        assert retriever.top(query, (), 9, office) == again.top(query, (), 9, office)


def test_deleted_items_are_not_found_and_their_words_are_not_searched_for() -> None:
    items = {"a": Item("a", {"title": "lamp oil"}), "b": Item("b", {"title": "product description sheet"})}
    retriever = Retriever(Catalogue({**items, "d": Item("d", {"title": "rope"})}, ("title",)), (), {"a": 9})
    retriever.delete_items(["d"])
    assert retriever.top("", ["d"], 5) == ["a", "b"]  # prompts say of "d" that it has no description


def test_items_without_any_words_do_no_harm() -> None:
    retriever = Retriever(Catalogue({"a": Item("a", {}), "b": Item("b", {})}, ("title",)))
    assert retriever.top("lamp", ("a",), 5) == ["b"]
    retriever.put_items([Item("c", {"title": "lamp"})])
    assert retriever.top("lamp", (), 1) == ["c"]
