"""Every built-in ranking template shows profile, recent items, candidate and answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trsr.errors import TemplateError
from trsr.recommend.prompt import TEMPLATES, load_ranking_template
from trsr.templating import built_in_templates

NAMES = sorted(built_in_templates(TEMPLATES))
VALUES = {
    "notes": "",
    "profile": "likes lamps",
    "recent": ["old bulb", "new bulb"],
    "candidate": "red lamp",
}
FRAME = {"system": "judge", "user": "this"}


def section(name: str, which: str, **changes: object) -> str:
    return load_ranking_template(name, "any").render(which, **(VALUES | changes))


def test_there_is_a_template_for_each_domain() -> None:
    assert NAMES == ["generic", "movies", "news", "paper", "products", "qwen3_reranker"]


@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_shows_the_profile_and_then_the_recent_items_newest_last(name: str) -> None:
    text = section(name, "prefix")
    places = [text.index(part) for part in ("likes lamps", "old bulb", "new bulb")]
    assert places == sorted(places)
    assert "red lamp" not in text


@pytest.mark.parametrize("name", sorted({*NAMES} - {"qwen3_reranker"}))
def test_the_prefix_shows_notes_before_everything_else(name: str) -> None:
    shown = section(name, "prefix", notes="no wool")
    first, _, rest = shown.partition("\n")
    assert first.endswith("come before all else: no wool")
    assert rest == section(name, "prefix")


# What the models that were trained before have in their `trsr.json`.
HASHES = {
    "generic": "e8a57015b1f00f19",
    "movies": "43bfec8d15f4f187",
    "news": "faf81c21f055430f",
    "paper": "ae54a4fd9b01fe8f",
    "products": "87b950ea0fe8b71c",
    "qwen3_reranker": "9f90ee857d8cdec2",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_was_trained_before_there_were_notes_is_still_served(name: str) -> None:
    assert load_ranking_template(name, "any").hash.startswith(HASHES[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_suffix_shows_the_candidate_and_nothing_of_the_user(name: str) -> None:
    text = section(name, "candidate")
    assert "red lamp" in text
    assert not any(part in text for part in ("likes lamps", "bulb"))


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_asks_for_the_two_answers_in_their_own_letters(name: str) -> None:
    text = section(name, "system") + section(name, "candidate")
    for answer in ("positive", "negative"):
        assert re.search(rf"\b{section(name, answer)}\b", text.partition("nswer")[2])


@pytest.mark.parametrize("name", NAMES)
def test_the_instruction_says_which_is_long_term_and_which_short_term(name: str) -> None:
    text = section(name, "system") + section(name, "prefix", profile="", recent=[])
    assert "long-term" in text
    assert "short-term" in text
    assert not any(part in text for part in ("lamp", "bulb"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_template_language_is_left(name: str) -> None:
    template = load_ranking_template(name, "any")
    text = "".join(template.render(which, **VALUES, **FRAME) for which in template.sections)
    assert not any(mark in text for mark in ("{{", "{%", "{#", "[["))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"paper", "qwen3_reranker"}))
def test_an_empty_profile_and_no_recent_items_leave_no_trace(name: str) -> None:
    assert "Profile" not in section(name, "prefix", profile="")
    assert "Recent" not in section(name, "prefix", recent=[])
    assert section(name, "prefix", profile="", recent=[]) == ""


def test_the_papers_template_always_has_all_its_parts() -> None:
    text = section("paper", "prefix", profile="")
    assert text.index("Preference summary: none") < text.index("Recent items") < text.index("1. old bulb")


@pytest.mark.parametrize(
    ("domain", "name"),
    [("news", "news"), ("products", "products"), ("movies", "movies"), ("general", "generic")],
)
def test_auto_takes_the_domains_own_template_or_the_generic_one(domain: str, name: str) -> None:
    assert load_ranking_template("auto", domain) == load_ranking_template(name, "any")


def test_every_template_has_a_hash_of_its_own() -> None:
    assert len({load_ranking_template(name, "any").hash for name in NAMES}) == len(NAMES)


def test_a_users_own_template_must_have_all_sections(tmp_path: Path) -> None:
    file = tmp_path / "own.j2"
    file.write_text("[[system]]\nx\n[[prefix]]\n{{ recent }}\n", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"lacks the section \[\[candidate\]\]"):
        load_ranking_template(str(file), "news")
