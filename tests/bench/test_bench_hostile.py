"""`trsr bench hostile` finds that hostile items stay in their place, and sees it where they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Answer

from trsr.bench import hostile
from trsr.serve.loading import open_service
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.views import item_view, render
from trsr.types import Item


def test_hostile_items_move_nothing_but_themselves(trsr: Callable[..., Answer], finished_run: Path) -> None:
    answer = trsr("bench", "hostile", finished_run, "--items", "8", "--users", "2", "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert list(result["own_by_kind"]) == list(hostile.HOSTILE)
    for exact in ("same_prefix", "others_exactly_as_beside_a_replaced_item", "shown_as_text"):
        assert result[exact] == result["items"] == 8, exact
    assert result["others_max_abs_margin_moved"] < 1e-4
    assert result["own"]["margin"]["hostile"] > 0
    assert result["own"]["margin"]["harmless"] > 0
    assert result["own"]["margin"]["replaced"] > 0


@pytest.fixture
def service(finished_run: Path, tmp_path: Path) -> Service:
    return open_service(finished_run, None, tmp_path / "serve.sqlite", Settings(api_keys=()))


def test_what_stands_in_place_of_the_candidate_is_as_long_and_ends_alike(service: Service) -> None:
    builder = service.ranker.recommender.builder
    own, *others = sorted(service.catalogue.items)[:4]
    suffix = builder.suffix(own)
    replaced = hostile._replaced(service, suffix, others, hostile._words(service, 0, 40))
    assert len(replaced) == len(suffix)
    assert replaced != suffix
    assert replaced[-1] == suffix[-1]
    service.close()


def test_the_harmless_text_is_as_long_and_made_of_items(service: Service) -> None:
    words = hostile._words(service, 3, 500)
    assert len(words) == 500
    known = {
        word for item in service.catalogue.items.values() for v in item.fields.values() for word in v.split()
    }
    assert set(words.split()[:-1]) <= known
    assert words != hostile._words(service, 4, 500)
    service.close()


def test_an_element_that_comes_from_an_item_is_seen(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = str(service.summariser.title_field)
    service.put_items([Item("evil", {title: hostile.HOSTILE["script"]}), Item("good", {title: "Lamp"})])
    assert hostile.shown_as_text(service, "evil", "good")
    good = item_view(service, "good")
    as_it_is = render

    def unescaped(*arguments: object) -> object:
        answer = as_it_is(*arguments)  # type: ignore[arg-type]
        answer.body = bytes(answer.body).replace(b"&lt;", b"<").replace(b"&gt;", b">")
        return answer

    monkeypatch.setattr(hostile, "render", unescaped)
    raw = replace(item_view(service, "evil"), title=hostile.HOSTILE["script"])
    monkeypatch.setattr(hostile, "item_view", lambda _, name: raw if name == "evil" else good)
    assert not hostile.shown_as_text(service, "evil", "good")
    service.close()
