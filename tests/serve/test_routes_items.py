"""Items over HTTP: what is put is found, ranked and bought from then on, and read again when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from shop import Shop, open_shop

from trsr.text import NO_TEXT


def put(shop: Shop, *items: dict[str, Any]) -> tuple[int, int]:
    """Put items, and return how many were new and changed."""
    answer = shop.client.put("/v1/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    return answer.json()["n_added"], answer.json()["n_changed"]


def item(name: str, title: str, category: str = "lamps") -> dict[str, Any]:
    """Return an item as it is put."""
    return {"item_id": name, "fields": {"title": title, "category": category}}


def test_new_items_are_found_by_their_words_and_filters_and_can_be_bought(shop: Shop) -> None:
    assert put(shop, item("L1", "Zebra lantern"), item("L2", "Paper lantern")) == (2, 0)
    body = {"history": ["i1"], "filter": {"category": "lamps"}}
    found = shop.client.post("/v1/recommend", json=body).json()
    assert {result["item_id"] for result in found["results"]} == {"L1", "L2"}
    shop.buy("ann", "L1")
    shop.follow()
    assert [summary.item_ids for summary in shop.service.store.user_summaries("ann")] == [("L1",)]
    assert "Zebra lantern" in shop.service.summarizer.item_text("L1")


def test_a_changed_item_is_read_again_and_the_last_change_counts(shop: Shop) -> None:
    def margins() -> dict[str, float]:
        body = {"history": ["i1"], "candidates": ["i5", "i6"]}
        results = shop.client.post("/v1/recommend", json=body).json()["results"]
        return {result["item_id"]: result["margin"] for result in results}

    before = margins()
    assert put(shop, item("i5", "Something else")) == (0, 1)
    after = margins()
    assert before["i5"] != after["i5"]
    assert before["i6"] == after["i6"]
    assert "Something else" in shop.service.ranker.recommender.builder.item_text("i5")
    assert put(shop, item("N", "First words"), item("N", "Last words")) == (1, 0)
    assert "Last words" in shop.service.ranker.recommender.builder.item_text("N")
    stored = {item.item_id: item.fields["title"] for item in shop.service.store.changed_items()[0]}
    assert stored == {"i5": "Something else", "N": "Last words"}


@pytest.mark.parametrize("name", ["i5", "new/one", "a b%"])
def test_an_item_is_read_and_deleted_and_stays_so(tmp_path: Path, name: str) -> None:
    address = f"/v1/items/{quote(name, safe='')}"
    with open_shop(tmp_path / "serve.sqlite") as shop:
        put(shop, item(name, "Zebra lantern"))
        fields = {"category": "lamps", "title": "Zebra lantern"}
        assert shop.client.get(address).json() == {"item_id": name, "fields": fields}
        assert shop.client.delete(address).status_code == 204
        for method in ("GET", "DELETE"):
            shop.refused(404, "unknown-item", method, address)
    with open_shop(tmp_path / "serve.sqlite") as shop:
        assert shop.client.get(address).status_code == 404
        answer = shop.client.post("/v1/recommend", json={"history": ["i1"], "candidates": [name]})
        assert answer.json()["unknown_items"] == [name]
        assert put(shop, item(name, "Back again")) == (1, 0)
        assert shop.client.get(address).json()["fields"]["title"] == "Back again"


def test_a_history_keeps_a_deleted_item_without_its_text(shop: Shop) -> None:
    put(shop, item("L1", "Zebra lantern"))
    shop.buy("ann", "L1", "i2")
    shop.follow()
    shop.client.delete("/v1/items/L1")
    history = shop.client.get("/v1/users/ann").json()["history"]
    assert [entry["item_id"] for entry in history] == ["L1", "i2"]
    assert (
        shop.service.ranker.recommender.builder.item_text("L1")
        == shop.service.summarizer.item_text("L1")
        == NO_TEXT
    )
    found = shop.client.post("/v1/recommend", json={"user_id": "ann", "top_n": 40}).json()["results"]
    assert "L1" not in {result["item_id"] for result in found}
    answer = shop.client.post("/v1/recommend", json={"history": ["L1"]})
    assert answer.json()["unknown_items"] == ["L1"]
    shop.buy("ann", "i3")
    shop.follow()
    user = shop.client.get("/v1/users/ann").json()
    assert (user["pending"], user["profile"]["n_items"]) == (False, 3)
    answer = shop.client.post("/v1/users/bob/events", json={"events": [{"event_id": "1", "item_id": "L1"}]})
    assert answer.json()["unknown_items"] == ["L1"]


def test_unknown_fields_are_refused_by_name_and_nothing_is_kept(shop: Shop) -> None:
    items = [item("N1", "Good"), {"item_id": "N2", "fields": {"colour": "red"}}]
    problem = shop.refused(422, "unknown-fields", "PUT", "/v1/items", json={"items": items})
    assert "'colour'" in problem["detail"]
    assert "category, title" in problem["detail"]
    assert "N1" not in shop.service.catalogue
    assert shop.service.store.changed_items() == ([], [])


def test_wrong_items_are_refused(shop: Shop) -> None:
    for items in (
        [],
        [{"item_id": "", "fields": {}}],
        [{"item_id": "a"}],
        [{"item_id": "a", "fields": {"title": 3}}],
        [{"item_id": "a", "fields": {"title": "x" * 200_001}}],
        [{"item_id": f"a{n}", "fields": {}} for n in range(1001)],
    ):
        shop.refused(422, "invalid-request", "PUT", "/v1/items", json={"items": items})
