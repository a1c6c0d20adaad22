"""Every built-in summary template asks each kind of call with all it has to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import TemplateError
from trsr.summarize.plan import Call
from trsr.summarize.prompts import TEMPLATES, load_summary_template, render_call

NAMES = sorted(file.stem for file in TEMPLATES.glob("*.j2"))
ITEMS = ["Title: Lamp", "Title: Red bulb", "Title: Blue bulb"]
KNOWN = ["lamps of all kinds.", "only red bulbs."]


def asked(name: str, kind: str) -> str:
    """Return the last turn of a call."""
    call = {
        "first": Call("first", (), ("a",)),
        "update": Call("update", (0,), ("a",)),
        "merge": Call("merge", (0, 1), ("a",)),
    }[kind]
    texts = [] if kind == "merge" else ITEMS
    prompt = render_call(load_summary_template(name, "any"), call, texts, KNOWN[: len(call.inputs)])
    return prompt.messages[-1].content


def test_there_is_a_template_for_each_domain() -> None:
    assert NAMES == ["generic", "movies", "news", "paper", "products"]


@pytest.mark.parametrize("name", NAMES)
def test_a_first_call_shows_the_items_oldest_first(name: str) -> None:
    text = asked(name, "first")
    places = [text.index(item) for item in ITEMS]
    assert places == sorted(places)
    assert "oldest first" in text


@pytest.mark.parametrize("name", NAMES)
def test_an_update_shows_what_was_known_and_then_the_items(name: str) -> None:
    text = asked(name, "update")
    places = [text.index(part) for part in [KNOWN[0], *ITEMS]]
    assert places == sorted(places)


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_shows_the_summaries_in_time_order(name: str) -> None:
    text = asked(name, "merge")
    assert text.index(KNOWN[0]) < text.index(KNOWN[1])
    assert "oldest first" in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["first", "update", "merge"])
def test_nothing_of_the_template_language_is_left(name: str, kind: str) -> None:
    text = asked(name, kind)
    assert not any(mark in text for mark in ("{{", "{%", "{#", "[["))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "paper"])
@pytest.mark.parametrize("kind", ["first", "update", "merge"])
def test_a_worked_example_has_a_question_and_an_answer_that_goes_on_from_the_prefill(
    name: str, kind: str
) -> None:
    template = load_summary_template(name, "any")
    call = Call(kind, (0,) if kind == "update" else (), ("a",))  # type: ignore[arg-type]
    prompt = render_call(template, call, ITEMS, KNOWN[: len(call.inputs)])
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.prefill
    assert prompt.messages[2].content.startswith(f"{prompt.prefill} ")
    assert prompt.messages[2].content.endswith(".")
    assert not any(item in prompt.messages[1].content for item in ITEMS)


def test_the_papers_template_has_no_example_and_asks_whether_the_interest_changed() -> None:
    template = load_summary_template("paper", "news")
    prompt = render_call(template, Call("update", (0,), ("a",)), ITEMS, KNOWN[:1])
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.prefill == ""
    assert "changed" in prompt.messages[-1].content


@pytest.mark.parametrize(
    ("domain", "name"),
    [("news", "news"), ("products", "products"), ("movies", "movies"), ("general", "generic")],
)
def test_auto_takes_the_domains_own_template_or_the_generic_one(domain: str, name: str) -> None:
    assert load_summary_template("auto", domain) == load_summary_template(name, "any")


def test_every_template_has_a_hash_of_its_own() -> None:
    assert len({load_summary_template(name, "any").hash for name in NAMES}) == len(NAMES)


def test_a_users_own_template_must_have_all_sections(tmp_path: Path) -> None:
    file = tmp_path / "own.j2"
    file.write_text("[[system]]\nx\n[[first]]\n{{ items }}\n", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"lacks the section \[\[update\]\]"):
        load_summary_template(str(file), "news")
    file.write_text("[[system]]\n{{ user_id }}\n", encoding="utf-8")
    with pytest.raises(TemplateError, match="only items, previous, summaries can be used"):
        load_summary_template(str(file), "news")
