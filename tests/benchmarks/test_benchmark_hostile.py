"""The benchmark of hostile items finds that they stay in their place, and sees it where they do not."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trsr.serve.loading import open_service
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.views import item_view, render_part
from trsr.types import Item

HOSTILE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "hostile.py"))


def test_hostile_items_move_only_their_own_score(finished_run: Path) -> None:
    result = HOSTILE["measure"](finished_run, None, 8, 2)
    assert list(result["own_by_kind"]) == list(HOSTILE["HOSTILE"])
    for exact in ("same_prefix", "others_exactly_as_beside_a_replaced_item", "shown_as_text"):
        assert result[exact] == result["items"] == 8, exact
    assert result["others_max_abs_margin_moved"] < 1e-4
    assert all(result["own"]["margin"][way] > 0 for way in ("hostile", "harmless", "replaced"))


@pytest.fixture
def service(finished_run: Path, tmp_path: Path) -> Iterator[Service]:
    opened = open_service(finished_run, None, tmp_path / "serve.sqlite", Settings(api_keys=()))
    yield opened
    opened.close()


def test_harmless_texts_keep_the_length(service: Service) -> None:
    words = HOSTILE["_words"](service, 3, 500)
    assert len(words) == 500
    known = {
        word for item in service.catalogue.items.values() for v in item.fields.values() for word in v.split()
    }
    assert set(words.split()[:-1]) <= known
    assert words != HOSTILE["_words"](service, 4, 500)
    own, *others = sorted(service.catalogue.items)[:4]
    suffix = service.ranker.recommender.builder.suffix(own)
    replaced = HOSTILE["_replaced"](service, suffix, others, words)
    assert len(replaced) == len(suffix)
    assert replaced != suffix
    assert replaced[-1] == suffix[-1]


def test_markup_of_an_item_is_detected(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    title, script = str(service.summarizer.title_field), HOSTILE["HOSTILE"]["script"]
    service.put_items([Item("evil", {title: script}), Item("good", {title: "Lamp"})])
    shown_as_text = HOSTILE["shown_as_text"]
    assert shown_as_text(service, "evil", "good")
    good, raw = item_view(service, "good"), replace(item_view(service, "evil"), title=script)

    def unescaped(*arguments: object) -> object:
        answer = render_part(*arguments)  # type: ignore[arg-type]
        answer.body = bytes(answer.body).replace(b"&lt;", b"<").replace(b"&gt;", b">")
        return answer

    monkeypatch.setitem(shown_as_text.__globals__, "render_part", unescaped)
    monkeypatch.setitem(
        shown_as_text.__globals__, "item_view", lambda _, name: raw if name == "evil" else good
    )
    assert not shown_as_text(service, "evil", "good")
