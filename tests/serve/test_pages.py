"""The page: what it shows, what it escapes, whom it lets in, and what becomes of its forms."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from serve_parts import HOSTILE
from shop import KEY, LOCAL, Shop, open_shop
from starlette.testclient import TestClient
from stores import add_profile, event

from trsr.llm.fake import FakeGenerator, FakeScorer
from trsr.serve.app import create_app
from trsr.serve.views import ASSETS
from trsr.types import History

ORIGIN = {"Origin": LOCAL}
HTMX = {"HX-Request": "true"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
WHOLE = "/?user=ann&rank=1&edit=1&compare=1&find=kind1"
ADDRESSES = (
    "/",
    "/?user=ann",
    WHOLE,
    "/?user=ann&explain=i9",
    "/?user=nobody",
    "/page/profile?user=ann",
    "/page/history?user=ann",
    "/page/ranking?user=ann",
    "/page/why?user=ann&item=i9",
    "/page/compare?user=ann",
    "/page/items?user=ann&find=kind1",
    "/page/notes?user=ann",
    "/page/editor?user=ann",
    "/page/users?q=a",
)


class Handlers(HTMLParser):
    """Finds attributes that would run something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def send(shop: Shop, action: str, *, part: bool = False, **fields: Any) -> Any:
    """Send a form as a browser does, without following where it leads."""
    headers = {**ORIGIN, **(HTMX if part else {})}
    return shop.client.post(f"/page/{action}", data=fields, headers=headers, follow_redirects=False)


def page(shop: Shop, address: str = "/?user=ann") -> str:
    answer = shop.client.get(address)
    assert answer.status_code == 200, re.findall("<h1>.*</h1>", answer.text)
    return str(answer.text)


def ranked(html: str) -> list[str]:
    return re.findall(r'name="before" value="([^"]*)"', html)


def ranking(shop: Shop, *before: str) -> str:
    return page(shop, "/page/ranking?user=ann" + "".join(f"&before={item}" for item in before))


@pytest.fixture
def ann(shop: Shop) -> Shop:
    """A shop in which ann has two blocks, both summarized."""
    for items in (("i1", "i2", "i3"), ("i4",)):
        shop.buy("ann", *items)
        shop.follow()
    return shop


# What it shows


def test_users_are_listed_and_found(shop: Shop) -> None:
    assert "There are no users yet" in page(shop, "/")
    for user in ("ann", "bob", "anna/b&c=d"):
        shop.service.store.add_events(user, [event("e", "i1")])
    assert "3 users" in page(shop, "/")
    found = page(shop, "/?q=ann")
    assert 'href="/?user=ann"' in found
    assert 'href="/?user=anna%2Fb%26c%3Dd"' in found
    assert 'href="/?user=bob"' not in found
    assert "anna/b&amp;c=d</bdi></h1>" in page(shop, "/?user=anna%2Fb%26c%3Dd")
    assert "No user has “<bdi>zoe</bdi>”" in page(shop, "/page/users?q=zoe")
    many = [History(f"u{n:03d}", ("i1",)) for n in range(60)] + [History("9", ("i1",))]
    shop.service.store.import_histories(many, "data")
    assert "The first 50 users" in page(shop, "/")
    found = page(shop, "/page/users?q=9")
    assert found.index("user=9") < found.index("user=u009"), "the exact id comes first"


def test_a_user_is_shown_with_blocks_profile_and_versions(ann: Shop) -> None:
    html = page(ann)
    user = ann.service.user("ann")
    assert user.versions[-1].text in html
    assert html.index("Block 2") < html.index("Block 1")  # newest first
    for text in ("covers all 4 items", "2 versions", "items 1–3", "item 4 · still filling", "<ins>", "<del>"):
        assert text in html
    for block in user.blocks:
        assert str(block.summary) in html


def test_a_ranking_names_its_profile_and_what_moved(ann: Shop) -> None:
    html = ranking(ann)
    items = ranked(html)
    assert "By version 2 of the profile" in html
    assert "The order has changed" not in html
    expected = ann.client.post("/v1/recommend", json={"user_id": "ann", "top_n": 10}).json()["results"]
    assert items == [result["item_id"] for result in expected]
    html = ranking(ann, items[2], items[0], "i99")
    assert "The order has changed" in html
    assert '<span class="unseen">up </span>1' in html  # the first was second
    assert '<span class="unseen">down </span>2' in html  # the third was first
    assert html.count(">new</span>") == 8
    assert "The order has changed" not in ranking(ann, *items)


def test_a_score_is_explained_and_two_methods_compared(ann: Shop) -> None:
    item = ranked(ranking(ann))[0]
    why = page(ann, f"/page/why?user=ann&item={item}")
    wish = {"user_id": "ann", "candidates": [item], "explain": True}
    explained = ann.client.post("/v1/recommend", json=wish).json()["results"][0]["explanation"]
    moved = re.findall(r'class="number">([+−]?[\d.]+)<', why)
    assert len(moved) == len(explained["without_item"]) + len(explained["without_sentence"]) > 3
    assert "Recent items" in why
    html = page(ann, "/page/compare?user=ann")
    for text in ("Counted from the items", "Most often: ", "Written by the model"):
        assert text in html
    rows = re.findall(r'<span class="place">(\d+)\.</span>', html)
    assert {"1", "10"} <= set(rows[::2])
    assert {"1", "10"} <= set(rows[1::2])


def test_without_javascript_the_parts_come_inside_the_page(ann: Shop) -> None:
    html = page(ann, WHOLE)
    assert len(ranked(html)) == 10
    assert '<textarea id="text"' in html
    assert "<table>" in html
    assert html.count('action="/page/events"') == 18
    assert 'class="reasons"' in page(ann, f"/?user=ann&explain={ranked(html)[3]}")


@pytest.mark.parametrize(
    ("method", "text"),
    [("none", "There is no profile."), ("counted", "Most often: "), ("hierarchical", "written by the model")],
)
def test_every_method_has_its_page(shop: Shop, method: str, text: str) -> None:
    service = shop.service
    config = service.summarizer.config.model_copy(update={"method": method})
    service.summarizer = service.updater.summarizer = replace(service.summarizer, config=config)
    shop.buy("ann", "i1", "i2", "i3", "i4")
    shop.follow()
    html = page(shop, "/?user=ann&rank=1&compare=1&explain=i9")
    assert text in html
    assert len(ranked(html)) == 10
    assert ("does not summarize blocks" in html) == (method != "hierarchical")
    assert "every 1s" not in html
    assert "Write it now" not in html


def test_a_long_life_is_folded(shop: Shop) -> None:
    for n in range(40):
        shop.buy("ann", f"i{n}")
        add_profile(shop.service.store, "ann", f"wish{n} and so on. " * 60, n + 1)
    html = page(shop)
    for text in ("40 versions", "20 older versions not shown", "older block", "Read all of it"):
        assert text in html
    newest = html.index("Version 39</span>")
    assert html.index("<ins><bdi>wish39", html.index('class="versions"')) < newest
    assert "<ins><bdi>wish20" in html  # what the oldest one shown brought, though the one before is not shown
    assert "<del><bdi>wish19" in html
    assert "wish18" not in html


# What it escapes, and what it may load


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_texts_are_shown_as_text(shop: Shop, name: str) -> None:
    text = HOSTILE[name]
    bad = {"item_id": "i0", "fields": {"title": text, "category": text[:2000]}}
    assert shop.client.put("/v1/items", json={"items": [bad]}).status_code == 200
    user = '<img src=x onerror=alert(1)>"\u202e'
    shop.service.store.import_histories([History(user, ("i0", "i1"))], "data")
    evil = "</textarea><script>alert(2)</script> {{ 7 * 7 }} " + text[:6000]
    assert send(shop, "notes", user=user, text=evil).status_code == 303
    named = quote(user)
    for address in (f"/?user={named}&edit=1&rank=1&compare=1&find=i0&explain=i0", f"/?q={named}", "/"):
        html = page(shop, address)
        assert html.count("<script") == html.count("</script>") == 1
        assert "<img" not in html
        assert not Handlers(html).found
        assert html.count("<textarea") == html.count("</textarea>") <= 1
        assert len(html) < 400_000  # a text of 100 kB is cut
    assert "{{ 7 * 7 }}" in page(shop, f"/page/notes?user={named}")


def test_every_answer_is_strict(ann: Shop) -> None:
    for address in ADDRESSES:
        answer = ann.client.get(address)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/html")
        assert not re.search(r"\sstyle=|<style|javascript:|hx-on|hx-vals=.js", answer.text)
        assert not re.search(r"(?:src|href|action|url\()\W*(?:https?:)?//", answer.text)


def test_assets_are_kept_for_good_and_need_no_key(shop: Shop) -> None:
    stranger = TestClient(shop.client.app, base_url=LOCAL)
    for asset in ASSETS.values():
        answer = stranger.get(asset.path)
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest()[:16] in asset.path
        assert "immutable" in answer.headers["cache-control"]
    assert b"url(" not in ASSETS["page.css"].content
    assert ASSETS["page.css"].path in page(shop, "/")


# Whom it lets in


def test_the_key_is_requested_once_and_hidden_from_scripts(shop: Shop) -> None:
    browser = TestClient(shop.client.app, base_url=LOCAL)
    refused = browser.get("/?user=ann")
    assert refused.status_code == 401
    assert 'action="/page/key"' in refused.text
    assert "not known" not in refused.text
    assert "default-src 'none'" in refused.headers["content-security-policy"]
    wrong = browser.post("/page/key", data={"key": "trsr_wrong"}, headers=ORIGIN)
    assert wrong.status_code == 401
    assert "is unknown or has expired" in wrong.text
    answer = browser.post("/page/key", data={"key": KEY}, headers=ORIGIN, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "max-age=43200"))
    assert not any(part in cookie for part in ("secure", KEY.lower()))
    assert browser.get("/").status_code == 200
    assert browser.get("/v1/users/ann").status_code == 401  # a cookie never opens the JSON addresses
    assert browser.post("/v1/users/ann/events", json={"events": []}).status_code == 401
    kept = browser.cookies["trsr_session"]
    browser.post("/page/log-out", headers={**ORIGIN, **FORM})
    assert browser.get("/").status_code == 401
    browser.cookies["trsr_session"] = kept
    assert "The session has ended" in browser.get("/").text


def test_without_keys_no_key_is_requested(tmp_path: Path) -> None:
    with open_shop(tmp_path / "s.sqlite", api_keys=()) as shop:
        assert "Log out" not in page(shop, "/")
        app = create_app(shop.service, shop.settings)
        assert TestClient(app, base_url="http://evil.example").get("/").status_code == 400


@pytest.mark.parametrize("action", ["events", "notes", "follow", "delete", "key", "log-out"])
def test_posts_of_other_sites_change_nothing(ann: Shop, action: str) -> None:
    before = ann.client.get("/v1/users/ann").json()
    fields = {"user": "ann", "item": "i5", "event_id": "x", "text": "evil", "sure": "yes", "key": KEY}
    for headers in (
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": LOCAL, "Sec-Fetch-Site": "cross-site"},
        {"Origin": LOCAL, "Sec-Fetch-Site": "same-site"},
    ):
        answer = ann.client.post(f"/page/{action}", data=fields, headers=headers, follow_redirects=False)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    assert ann.client.get("/v1/users/ann").json() == before


def test_bodies_other_than_forms_are_refused(ann: Shop) -> None:
    answer = ann.client.post("/page/delete", json={"user": "ann", "sure": "yes"}, headers=ORIGIN)
    assert answer.status_code == 400
    for body in (b"user=%ff", b"user=ann\xff", b"&a=" * 30):
        answer = ann.client.post("/page/delete", content=body, headers={**ORIGIN, **FORM})
        assert answer.status_code == 400
    assert ann.client.get("/v1/users/ann").status_code == 200


# What becomes of its forms


@pytest.mark.parametrize("user", [" ann", "ann ", "a/nn", "ann\ufffd"])
def test_a_form_acts_on_the_user_it_names_and_no_other(ann: Shop, user: str) -> None:
    before = ann.client.get("/v1/users/ann").json()
    ann.service.store.add_events(user, [event("e1", "i1")])
    assert f'name="user" value="{user}"' in page(ann, f"/?{urlencode({'user': user})}")
    assert send(ann, "follow", user=user).status_code == 303
    assert send(ann, "delete", user=user, sure="yes").status_code == 303
    assert not ann.service.store.history(user)
    assert ann.client.get("/v1/users/ann").json() == before


def test_the_page_makes_no_user_whose_id_the_rule_forbids(ann: Shop) -> None:
    for user in (" ann", "", "ann\t", "\u202eann"):
        assert send(ann, "events", user=user, item="i5", event_id="x").status_code == 422
    assert ann.service.store.users() == ["ann"]


def test_notes_are_saved_shown_first_and_move_the_ranking_until_they_are_removed(ann: Shop) -> None:
    before = ranked(ranking(ann))
    answer = send(ann, "notes", part=True, user="ann", text="Only\r\npresents.")
    assert answer.headers["hx-trigger"] == "user-changed"
    assert "The notes are saved" in answer.text
    assert ann.client.get("/v1/users/ann").json()["notes"]["text"] == "Only\npresents."
    html = page(ann)
    assert html.index("Only\npresents.") < html.index(ann.service.user("ann").versions[-1].text)
    assert ">Remove them</button>" in html
    html = ranking(ann)
    assert "By the notes, version 2 of the profile and the recent items" in html
    assert ranked(html) != before
    assert "Sentences of the notes" in page(ann, f"/page/why?user=ann&item={ranked(html)[0]}")
    answer = send(ann, "notes", user="ann")  # as the form that removes them sends it
    assert answer.headers["location"] == "/?user=ann&rank=1&done=removed"
    html = page(ann, answer.headers["location"])
    assert "The notes are removed." in html
    assert "presents." not in html
    assert ann.client.get("/v1/users/ann").json()["notes"] is None


def test_two_methods_are_compared_with_the_notes_read_by_both(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3")  # no profile is written: both are the counted one
    send(shop, "notes", user="ann", text="Only presents.")
    scores = re.findall(r'class="number">([^<]*)<', page(shop, "/page/compare?user=ann"))
    assert scores[::2] == scores[1::2]


def test_wrong_notes_keep_what_was_typed(ann: Shop) -> None:
    answer = send(ann, "notes", part=True, user="ann", text="x" * 8001)
    assert answer.status_code == 422
    assert answer.headers["hx-retarget"] == "#notices"
    assert 'role="alert"' in answer.text
    assert "<html" not in answer.text
    assert ann.service.user("ann").notes is None


def test_an_event_is_added_once_and_the_profile_is_watched(ann: Shop) -> None:
    fields: dict[str, Any] = {"user": "ann", "item": "i5", "event_id": "page:1"}
    assert send(ann, "events", part=True, **fields).headers["hx-trigger"] == "user-changed"
    assert send(ann, "events", **fields).status_code == 303
    assert ann.service.store.history("ann") == ("i1", "i2", "i3", "i4", "i5")
    waiting = page(ann, "/page/profile?user=ann")
    assert "following 1 new item" in waiting
    poll = re.search(r'hx-get="([^"]*seen=[^"]*)" hx-trigger="every 1s"', waiting)
    assert poll is not None
    address = poll.group(1).replace("&amp;", "&")
    assert ann.client.get(address).status_code == 204
    ann.follow()
    followed = ann.client.get(address)
    assert followed.headers["hx-trigger"] == "profile-changed"
    assert "Version 3" in followed.text
    assert "every" not in followed.text
    unknown = send(ann, "events", part=True, user="ann", item="<b>", event_id="1")
    assert unknown.status_code == 422
    assert "&lt;b&gt;" in unknown.text


def test_a_profile_that_is_not_being_written_is_not_polled(shop: Shop) -> None:
    shop.service.store.import_histories([History("ann", ("i1", "i2"))], "data")
    html = page(shop)
    assert "Counted" in html
    assert "Write it now" in html
    assert "every 1s" not in html
    assert send(shop, "follow", part=True, user="ann").status_code == 200
    assert "is being written" in page(shop)
    shop.follow()
    assert "written by the model" in page(shop)
    assert send(shop, "follow", user="nobody").status_code == 404


def test_a_failing_update_is_shown(shop: Shop) -> None:
    shop.service.updater.engine = FakeGenerator(fail_on=lambda _: True)
    shop.buy("ann", "i1")
    shop.service.updater.step()
    html = page(shop)
    assert "could not be updated (1 attempt so far)" in html
    assert "every 2s" in html


def test_deleting_needs_a_tick(ann: Shop) -> None:
    assert send(ann, "delete", user="ann").status_code == 422
    assert ann.client.get("/v1/users/ann").status_code == 200
    answer = send(ann, "delete", user="ann", sure="yes")
    assert answer.headers["location"] == "/?done=deleted"
    assert ann.client.get("/v1/users/ann").status_code == 404
    assert "The user is deleted" in page(ann, "/?done=deleted")


# When it goes wrong


def test_a_refusal_is_a_page_or_a_part_of_one(ann: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ann.client.get("/?user=nobody")
    assert whole.status_code == 404
    assert "<h1>The user is not known</h1>" in whole.text
    part = ann.client.get("/page/history?user=nobody", headers=HTMX)
    assert part.status_code == 404
    assert "hx-retarget" not in part.headers
    assert "<html" not in part.text
    for address, status in (("/page/none", 404), ("/page/why?user=ann", 422), (f"/?q={'x' * 300}", 422)):
        assert ann.client.get(address).status_code == status
    assert ann.client.get("/v1/users/nobody").headers["content-type"] == "application/problem+json"

    def fail(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(ann.service, "user", fail)
    answer = ann.client.get("/?user=ann")
    assert answer.status_code == 500
    assert "<h1>The server failed</h1>" in answer.text
    assert "secret words" not in answer.text


def test_a_busy_model_holds_up_nothing_else(tmp_path: Path) -> None:
    go = threading.Event()

    class Slow(FakeScorer):
        def score(self, groups: Any, labels: Any) -> Any:
            assert go.wait(30)
            return super().score(groups, labels)

    with open_shop(tmp_path / "s.sqlite", scorer=Slow(), request_seconds=0.5) as shop:
        shop.buy("ann", "i1")
        found = shop.service.ranker.retriever.top(shop.service.reader("ann").profile, ["i1"], 10)
        titles = [shop.service.catalogue.items[item_id].fields["title"] for item_id in found]
        for path in ("/?user=ann", "/?user=ann&rank=1", "/page/ranking?user=ann"):  # without the model
            html = page(shop, path)
            assert re.findall(r'<bdi class="name">(.*?)</bdi>', html)[:10] == titles
            assert ("The model is busy" in html) == ("load delay:1s" in html) == ("rank" in path)
        assert "1 user" in page(shop, "/")
        go.set()
        shop.service.ranker._seconds = 60.0
        assert len(ranked(ranking(shop))) == 10
