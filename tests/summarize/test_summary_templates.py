"""Every built-in summary template shows each kind of call all it has to read, in time order."""

from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import TemplateError
from trsr.llm.base import Prompt
from trsr.summarize.plan import Call
from trsr.summarize.prompts import example_text, frame_text, load_summary_template, render_call

# What rows of stores written before have as `template_hash`.
HASHES = {
    "generic": "fbcf2acaed26718c",
    "movies": "129f3323af085994",
    "news": "e8423a71795f7483",
    "paper": "a75ef2d35b76a385",
    "products": "e903c4520163a779",
}
ITEMS = ["Title: Lamp", "Title: Red bulb", "Title: Blue bulb"]
KNOWN = ["lamps of all kinds.", "only red bulbs."]
SHOWN = {"first": ITEMS, "update": [KNOWN[0], *ITEMS], "merge": KNOWN}
BY_KIND = pytest.mark.parametrize("kind", SHOWN)
BY_NAME = pytest.mark.parametrize("name", HASHES)


def prompt_of(name: str, kind: str) -> Prompt:
    calls = {
        "first": Call("first", (), ("a",)),
        "update": Call("update", (0,), ("a",)),
        "merge": Call("merge", (0, 1), ("a",)),
    }
    texts = [] if kind == "merge" else ITEMS
    known = KNOWN[: len(calls[kind].inputs)]
    return render_call(load_summary_template(name, "any"), calls[kind], texts, known)


@BY_NAME
def test_a_template_has_the_hash_it_always_had(name: str) -> None:
    assert load_summary_template(name, "any").hash.startswith(HASHES[name])


@BY_NAME
@BY_KIND
def test_a_call_shows_what_it_reads_oldest_first(name: str, kind: str) -> None:
    text = prompt_of(name, kind).messages[-1].content
    places = [text.index(part) for part in SHOWN[kind]]
    assert places == sorted(places)
    assert "oldest first" in text
    assert not any(mark in text for mark in ("{{", "{%", "{#", "[["))


@pytest.mark.parametrize("name", sorted({*HASHES} - {"paper"}))
@BY_KIND
def test_a_worked_example_has_a_question_and_an_answer_that_continues_the_prefill(
    name: str, kind: str
) -> None:
    prompt = prompt_of(name, kind)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.prefill
    assert prompt.messages[2].content.startswith(f"{prompt.prefill} ")
    assert prompt.messages[2].content.endswith(".")
    assert not any(part in prompt.messages[1].content for part in SHOWN[kind])


def test_the_papers_template_has_no_example_and_asks_whether_the_interest_changed() -> None:
    prompt = prompt_of("paper", "update")
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.prefill == ""
    assert "changed" in prompt.messages[-1].content


@pytest.mark.parametrize(
    ("domain", "name"),
    [("news", "news"), ("products", "products"), ("movies", "movies"), ("general", "generic")],
)
def test_auto_takes_the_domains_own_template_or_the_generic_one(domain: str, name: str) -> None:
    assert load_summary_template("auto", domain) == load_summary_template(name, "any")


def test_worked_examples_are_apart_from_what_a_template_says_in_every_call() -> None:
    template = load_summary_template("news", "news")
    assert "Known before:" in frame_text(template)
    assert "Packers" not in frame_text(template)
    assert "Packers" in example_text(template)
    assert example_text(load_summary_template("paper", "news")) == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[[system]]\nx\n[[first]]\n{{ items }}\n", r"lacks the section \[\[update\]\]"),
        ("[[system]]\n{{ user_id }}\n", "only items, previous, summaries can be used"),
    ],
)
def test_a_users_own_template_is_checked(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "own.j2"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(TemplateError, match=message):
        load_summary_template(str(file), "news")
