"""The page's stories in a real browser: find a user, read why, correct it, add to it, delete it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from programs import need_program
from shop import KEY, make_service, make_settings, running
from shop import live as serving
from stores import event

from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.serve.service import Service
from trsr.types import History, Item

FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
AXE = files("axe_playwright_python") / "axe.min.js"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    # Of the plugins that bring the browser.
    pytest.mark.filterwarnings("ignore:Session-scoped fixtures defined as instance methods"),
]


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    return {"executable_path": need_program("chromium"), "args": [*FLAGS.split(), "--disable-sync"]}


expect.set_options(timeout=60_000)


class PausableGenerator(FakeGenerator):
    """Writes only while `writes` is set."""

    def __init__(self, writes: threading.Event) -> None:
        super().__init__()
        self.writes = writes

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        assert self.writes.wait(300)
        yield from super().generate(prompts, params)


@dataclass
class Live:
    """A running server: where it is, what is behind it, and whether its engine writes."""

    address: str
    service: Service
    writes: threading.Event


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A server without keys in which ann has two summarized blocks."""
    settings = make_settings(api_keys=(), port=0, requests_per_minute=1_000_000)
    writes = threading.Event()
    writes.set()
    service = make_service(tmp_path / "serve.sqlite", settings, engine=PausableGenerator(writes))
    buy(service, "ann", "i1", "i2", "i3")
    service.updater.step()
    buy(service, "ann", "i4")
    service.updater.step()
    service.store.import_histories([History("bob", ("i5", "i6"))], "data")
    with running(service, settings) as address:
        yield Live(address, service, writes)
        writes.set()


@pytest.fixture
def tab(page: Any) -> Iterator[Any]:
    """A browser page without errors and without requests to other servers."""
    wrong: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    page.set_default_timeout(60_000)
    yield page
    assert not [text for text in wrong if "status of 4" not in text and "status of 5" not in text]
    assert hosts <= {"127.0.0.1"}


def buy(service: Service, user: str, *items: str) -> None:
    n = len(service.store.events(user))
    service.add_events(user, [event(f"e{n + k}", item) for k, item in enumerate(items)])


def order(tab: Any) -> list[str]:
    """Return the items of the model's ranking, once it has taken the place of the search's."""
    tab.wait_for_selector("[name=before]", state="attached")
    return [field.get_attribute("value") for field in tab.locator("[name=before]").all()]


def serious(tab: Any) -> list[str]:
    """Return what axe finds, of any weight."""
    run = "; const found = await axe.run(); return found.violations.map(v => v.id + ': ' + v.nodes[0].html)"
    found: list[str] = tab.evaluate("async () => {" + AXE.read_text(encoding="utf-8") + run + "}")
    return found


def test_find_a_user_and_read_the_blocks(live: Live, tab: Any) -> None:
    tab.goto(live.address)
    tab.get_by_label("User id").press_sequentially("an")
    tab.get_by_text("1 user with “an”").wait_for()
    tab.get_by_role("link", name="ann").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("ann")
    history = tab.locator("#history")
    expect(history.locator("h3")).to_have_text([re.compile("^\\s*Block 2"), re.compile("^\\s*Block 1")])
    expect(history.get_by_text(str(live.service.user("ann").blocks[0].summary))).to_be_visible()
    expect(history.locator("ins")).not_to_have_count(0)
    history.get_by_text("3 items").click()
    expect(history.locator(".items").nth(1).locator("li")).to_have_count(3)
    tab.locator("#ranking summary").nth(1).click()  # a score is explained
    tab.wait_for_selector(".reasons li")
    expect(tab.locator(".why h3")).to_have_text(["Sentences of the profile", "Recent items"])
    tab.get_by_role("link", name="Compare").click()
    tab.wait_for_selector("#compare tbody tr")
    expect(tab.locator("#compare h3")).to_have_text(["Written by the model", "Counted from the items"])


def test_write_notes_and_see_the_order_change(live: Live, tab: Any) -> None:
    tab.goto(f"{live.address}/?user=ann")
    before = order(tab)
    tab.get_by_role("link", name="Write notes").press("Enter")
    tab.locator("#text:focus").wait_for()
    tab.keyboard.type("I only look for presents.")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.get_by_text("The order has changed.", exact=True).wait_for()
    after = order(tab)
    assert after != before
    expect(tab.locator("#notes > .prose")).to_have_text("I only look for presents.")
    moves = [len(row.locator(".move").all()) for row in tab.locator(".ranking > li").all()]
    expected = [int(item not in before or before.index(item) != rank) for rank, item in enumerate(after)]
    assert moves == expected
    expect(tab.get_by_text("The notes are saved")).to_be_visible()
    expect(tab.locator("textarea")).to_have_count(0)
    tab.get_by_role("button", name="Remove them").click()
    tab.get_by_text("The notes are removed.").wait_for()
    expect(tab.locator("#notes > .prose")).to_have_count(0)
    assert live.service.store.notes("ann") is None


def test_wrong_notes_are_refused_and_the_words_stay(live: Live, tab: Any) -> None:
    tab.goto(f"{live.address}/?user=ann&edit=1")
    tab.evaluate("document.querySelector('textarea').removeAttribute('maxlength')")
    tab.get_by_label("Notes, in your own words").fill("x" * 8001)
    tab.get_by_role("button", name="Save").click()
    tab.get_by_role("alert").get_by_text("shorten them to 8000").wait_for()
    expect(tab.locator("textarea")).to_have_value("x" * 8001)
    tab.get_by_role("button", name="Close").click()
    tab.get_by_role("alert").wait_for(state="detached")


def test_add_an_event_and_watch_the_profile_follow(live: Live, tab: Any) -> None:
    tab.goto(f"{live.address}/?user=ann")
    order(tab)
    title = live.service.catalogue.item("i7").fields["title"]
    tab.get_by_label("An item, by words or id").press_sequentially(title)
    tab.wait_for_selector(".found li")
    live.writes.clear()
    tab.get_by_role("button", name=f"Add {title}", exact=True).click()
    tab.get_by_text("The profile is following 1 new item.").wait_for()
    live.writes.set()
    tab.locator("#profile").get_by_text("Version 3", exact=True).first.wait_for()
    expect(tab.locator("#profile .state")).to_have_count(0)
    tab.locator("#history").get_by_text(title).wait_for()
    tab.locator("#ranking").get_by_text("By version 3 of the profile").wait_for()
    assert "i7" not in order(tab)
    assert [event.item_id for event in live.service.store.events("ann")][-1] == "i7"


def test_the_stories_work_without_javascript(live: Live, browser: Any) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.goto(live.address)
        tab.get_by_role("link", name="bob").click()
        tab.get_by_role("button", name="Write it now").click()
        tab.get_by_role("link", name="Write notes").click()
        tab.get_by_label("Notes, in your own words").fill("Only presents.")
        tab.get_by_role("button", name="Save").click()
        expect(tab.get_by_text("The notes are saved")).to_be_visible(timeout=60_000)
        expect(tab.locator(".ranking > li")).to_have_count(10)
        tab.get_by_label("An item, by words or id").fill("i9")
        tab.get_by_role("button", name="Find").click()
        tab.locator(".found button").first.click()
        expect(tab.get_by_text("The event is saved")).to_be_visible(timeout=60_000)
        assert live.service.store.events("bob")[-1].item_id == "i9"
        tab.get_by_text("Delete this user…").click()
        tab.get_by_label("Yes, delete everything").check()
        tab.get_by_role("button", name="Delete for good").click()
        expect(tab.locator(".users a")).to_have_text(re.compile(r"^\s*ann\s*→\s*$"))
        assert not live.service.store.history("bob")


def test_the_key_is_requested_once(tmp_path: Path, tab: Any) -> None:
    with serving(tmp_path / "s.sqlite") as (address, _):
        tab.goto(address)
        tab.get_by_label("Key").fill("trsr_wrong")
        tab.get_by_role("button", name="Open").click()
        tab.get_by_text("is unknown or has expired").wait_for()
        assert serious(tab) == []
        tab.get_by_label("Key").fill(KEY)
        tab.get_by_role("button", name="Open").click()
        tab.get_by_text("There are no users yet").wait_for()
        assert tab.evaluate("document.cookie") == ""
        assert {c["sameSite"] for c in tab.context.cookies()} == {"Strict"}
        tab.get_by_role("button", name="Log out").click()
        tab.get_by_label("Key").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_everything_is_readable_and_reachable(live: Live, tab: Any, width: int, scheme: str) -> None:
    strange = Item("i9", {"title": f"{LONG} \u202eשלום {LONG}", "category": f"<b>{LONG}</b>"})
    live.service.put_items([strange])
    live.service.put_notes("ann", f"{LONG} مرحبا. " + "Likes long sentences. " * 60)
    buy(live.service, "ann", "i9")
    while live.service.store.update_of("ann"):
        time.sleep(0.05)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    for address in ("/", "/?q=zoe", "/?user=nobody", "/?user=bob"):
        tab.goto(live.address + address)
        tab.wait_for_load_state("networkidle")
        assert serious(tab) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.goto(f"{live.address}/?user=ann&rank=1&edit=1&compare=1&find=i9&explain=i9")
    tab.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    tab.wait_for_load_state("networkidle")
    assert serious(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    tab.keyboard.press("Tab")
    for _ in range(25):  # whatever the keyboard reaches shows that it is there
        style = tab.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)] })()"
        )
        assert style[1] == "solid", style
        assert style[2] >= 2, style
        tab.keyboard.press("Tab")
    assert re.fullmatch(r"[A-Z]+", tab.evaluate("document.activeElement.tagName"))
