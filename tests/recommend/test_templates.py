"""Every built-in ranking template shows profile, recent items, candidate and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import TemplateError
from trsr.recommend.prompt import TEMPLATES, load_ranking_template
from trsr.templating import built_in_templates

# What the models that were trained before have in their `trsr.json`.
HASHES = {
    "generic": "e8a57015b1f00f19",
    "movies": "43bfec8d15f4f187",
    "news": "faf81c21f055430f",
    "paper": "ae54a4fd9b01fe8f",
    "products": "87b950ea0fe8b71c",
    "qwen3_reranker": "9f90ee857d8cdec2",
}
VALUES = {"notes": "", "profile": "likes lamps", "recent": ["old bulb", "new bulb"], "candidate": "red lamp"}


def section(name: str, which: str, **changes: object) -> str:
    return load_ranking_template(name, "any").render(which, **(VALUES | changes))


def test_templates_are_those_that_models_were_trained_with() -> None:
    hashes = {name: load_ranking_template(name, "any").hash[:16] for name in built_in_templates(TEMPLATES)}
    assert hashes == HASHES


@pytest.mark.parametrize("name", HASHES)
def test_template_shows_every_part_in_its_place(name: str) -> None:
    prefix, candidate = section(name, "prefix"), section(name, "candidate")
    places = [prefix.index(part) for part in ("likes lamps", "old bulb", "new bulb")]
    assert places == sorted(places)
    assert "red lamp" not in prefix
    assert "red lamp" in candidate
    assert not any(part in candidate for part in ("likes lamps", "bulb"))
    template = load_ranking_template(name, "any")
    whole = "".join(template.render(s, **VALUES, system="judge", user="this") for s in template.sections)
    assert not any(mark in whole for mark in ("{{", "{%", "{#", "[["))


@pytest.mark.parametrize("name", sorted({*HASHES} - {"qwen3_reranker"}))
def test_template_shows_notes_before_everything_else(name: str) -> None:
    first, _, rest = section(name, "prefix", notes="no wool").partition("\n")
    assert first.endswith("come before all else: no wool")
    assert rest == section(name, "prefix")


@pytest.mark.parametrize("name", sorted({*HASHES} - {"paper", "qwen3_reranker"}))
def test_template_has_no_trace_of_missing_parts(name: str) -> None:
    assert "Profile" not in section(name, "prefix", profile="")
    assert "Recent" not in section(name, "prefix", recent=[])
    assert section(name, "prefix", profile="", recent=[]) == ""


@pytest.mark.parametrize(
    ("domain", "name"),
    [("news", "news"), ("products", "products"), ("movies", "movies"), ("general", "generic")],
)
def test_auto_is_the_template_of_the_domain_or_the_generic_one(domain: str, name: str) -> None:
    assert load_ranking_template("auto", domain) == load_ranking_template(name, "any")


def test_template_of_a_user_must_have_all_sections(tmp_path: Path) -> None:
    file = tmp_path / "own.j2"
    file.write_text("[[system]]\nx\n[[prefix]]\n{{ recent }}\n", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"lacks the section \[\[candidate\]\]"):
        load_ranking_template(str(file), "news")
