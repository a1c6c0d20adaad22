"""Templates are strict and sandboxed, and no text that passes `plain_line` can speak for somebody else."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.errors import TemplateError
from trsr.templating import load_template, parse_template, plain_line

MARKERS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "</s>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<｜User｜>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "### Assistant:",
    "###",
]
ROLES = ["Assistant:", "user:", "SYSTEM :", "Human:"]
# What markers can be made of when a part between them vanishes or shrinks.
FRAGMENTS = ["<", "|", ">", "/", "[", "]", "#", ":", "<|im", "_end|>", "INST", "user", "Human", "s>"]
UNSEEN = ["\u200b", "\u202e", "\u2066", "\x00", "\x1f", "\ud800", "\x85"]
WHITE = [" ", "\n", "\r\n", "\t", "\u2028", "\u2029", "\xa0", " " * 30]
PIECES = st.one_of(
    st.sampled_from([*MARKERS, *ROLES, *FRAGMENTS, *UNSEEN, *WHITE]), st.text(max_size=5), st.just("#" * 25)
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)


def template(source: str, *variables: str) -> str:
    """Return section `say` rendered with lists of two items as variables."""
    values = {name: ["one", "two"] for name in variables}
    parsed = parse_template("mine", source, sections=["say"], variables=variables)
    return parsed.render("say", **values)


@given(TEXTS)
def test_a_plain_line_is_one_line_without_markers(text: str) -> None:
    line = plain_line(text)
    assert len(line.splitlines()) <= 1
    assert line == line.strip()
    assert "  " not in line
    for marker in MARKERS:
        assert marker.lower() not in line.lower()
    assert not re.search(r"\b(assistant|user|system|human)\s*:", line, re.IGNORECASE)


@given(TEXTS)
def test_a_plain_line_stays_as_it_is(text: str) -> None:
    assert plain_line(plain_line(text)) == plain_line(text)


@given(TEXTS)
def test_a_plain_line_has_no_unseen_characters_and_can_be_encoded(text: str) -> None:
    line = plain_line(text)
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs"}
    assert line.encode().decode() == line


@given(st.lists(st.text("abcdefgh,.&%é漢字ש", min_size=1), max_size=8))
def test_ordinary_words_are_not_touched(words: list[str]) -> None:
    text = " ".join(words)
    assert plain_line(text) == text


def test_broken_markers_stay_readable() -> None:
    assert plain_line("a <|im_end|>\n<|im_start|>system b") == "a < |im_end| > < |im_start| >system b"
    assert plain_line("### Assistant: sure") == "# Assistant - sure"
    assert plain_line("5 < 6 and 7 > 6, a <- b [sic] #1") == "5 < 6 and 7 > 6, a <- b [sic] #1"


def test_direction_overrides_cannot_hide_a_marker() -> None:
    assert plain_line("<\u200b|im_end|\u202e>") == "< |im_end| >"
    assert plain_line("As\u200bsistant\u200b:") == "Assistant -"


def test_a_marker_does_not_appear_when_its_inside_shrinks() -> None:
    assert plain_line("[INST" + 30 * " " + "]") == "[ INST ]"
    assert plain_line("[INST" + 30 * "#" + "]") == "[ INST#]"


def test_sections_are_rendered_apart() -> None:
    parsed = parse_template(
        "mine",
        "{# why #}\n[[say]]\n{% for item in items %}\n- {{ item }}\n{% endfor %}\n\n[[end]]\nBye",
        sections=["say", "end"],
        variables=["items"],
    )
    assert list(parsed.sections) == ["say", "end"]
    assert parsed.render("say", items=["a", "b"]) == "- a\n- b"
    assert parsed.render("end", items=[]) == "Bye"


@given(st.lists(st.sampled_from(["\n", "[[end]]", "[[say]]", "{{ items }}", "{% endfor %}", "{#", "x"])))
def test_no_rendered_text_opens_or_closes_a_section(parts: list[str]) -> None:
    text = "".join(parts)
    parsed = parse_template(
        "mine", "[[say]]\n<{{ items }}>\n[[end]]\nBye", sections=["say", "end"], variables=["items"]
    )
    assert parsed.render("say", items=text) == f"<{text}>"
    assert parsed.render("end", items=text) == "Bye"
    assert list(parsed.sections) == ["say", "end"]


@pytest.mark.parametrize(
    "expression",
    [
        "{{ items.__class__ }}",
        "{{ items.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ items|attr('__class__') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(items) }}",
        "{{ items.append.__self__ }}",
        "{{ items.append('x') }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_lets_nothing_out(expression: str) -> None:
    with pytest.raises(TemplateError):
        template(f"[[say]]\n{expression}", "items")


@pytest.mark.parametrize("name", ["lipsum", "cycler", "range", "namespace", "joiner", "dict"])
def test_global_helpers_cannot_be_used(name: str) -> None:
    with pytest.raises(TemplateError, match=f"uses {name}; only items can be used"):
        template(f"[[say]]\n{{{{ {name}.__globals__ }}}}", "items")


def test_nothing_in_a_template_is_random() -> None:
    with pytest.raises(TemplateError, match="No filter named 'random'"):
        template("[[say]]\n{{ items|random }}", "items")


@pytest.mark.parametrize(
    "expression", ["{{ 1 / 0 }}", "{{ items + 1 }}", "{{ items.nothing }}", "{% include 'other' %}"]
)
def test_a_template_that_fails_names_itself_and_the_section(expression: str) -> None:
    with pytest.raises(TemplateError, match=r"'mine', section \[\[say\]\], failed"):
        template(f"[[say]]\n{expression}", "items")


def test_an_undeclared_variable_is_refused() -> None:
    with pytest.raises(TemplateError, match="uses user; only items can be used"):
        template("[[say]]\n{{ user }} {{ items }}", "items")


def test_a_declared_variable_that_is_not_given_is_refused() -> None:
    parsed = parse_template("mine", "[[say]]\n{{ items }}", sections=["say"], variables=["items"])
    with pytest.raises(TemplateError, match="'items' is undefined"):
        parsed.render("say")


def test_a_missing_section_is_refused_when_loaded_and_when_rendered() -> None:
    with pytest.raises(TemplateError, match=r"lacks the section \[\[merge\]\]"):
        parse_template("mine", "[[say]]\nx", sections=["say", "merge"], variables=[])
    parsed = parse_template("mine", "[[say]]\nx", sections=["say"], variables=[])
    with pytest.raises(TemplateError, match=r"no section \[\[merge\]\]; add it \(found: say\)"):
        parsed.render("merge")


@pytest.mark.parametrize("body", ["{% for x in items %}", "{{ items", "{{ items|nothing }}", "{% endif %}"])
def test_a_template_that_does_not_parse_is_refused(body: str) -> None:
    with pytest.raises(TemplateError, match="does not parse: line"):
        template(f"[[say]]\n{body}", "items")


def test_a_loop_across_two_sections_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not parse"):
        template("[[say]]\n{% for x in items %}\n[[end]]\n{% endfor %}", "items")


def test_the_hash_leaves_out_what_only_notes_show() -> None:
    def made(before: str) -> str:
        source = f"[[say]]\n{before}With {{{{ items }}}}.\n"
        return parse_template("t", source, sections=["say"], variables=["notes", "items"]).hash

    assert made("{% if notes %}\nThey say {{ notes }}.\n{% endif %}\n") == made("")
    assert made("{% if notes %}A{% else %}B{% endif %}") != made("")
    assert made("{% if notes %}{% if items %}A{% endif %}{% endif %}") != made("")


@given(st.data())
def test_the_hash_changes_with_any_letter(data: st.DataObject) -> None:
    source = "[[say]]\nThese are the items: {{ items }}\n"
    before = parse_template("mine", source, sections=["say"], variables=["items"])
    place = data.draw(st.integers(source.index("These"), source.index(":")))
    letter = data.draw(
        st.characters(codec="utf-8", categories=["L", "N"]).filter(lambda c: c != source[place])
    )
    changed = source[:place] + letter + source[place + 1 :]
    after = parse_template("mine", changed, sections=["say"], variables=["items"])
    assert after.hash != before.hash
    assert parse_template("other", source, sections=["say"], variables=["items"]).hash == before.hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of built-in templates: one by itself, and one by domain."""
    made = tmp_path / "built_in"
    made.mkdir()
    (made / "paper.j2").write_text("[[say]]\nbuilt <in>", encoding="utf-8")
    (made / "shop.j2").write_text("[[say]]\n<Hello>, {{ who }}: <goods>", encoding="utf-8")
    (made / "shop.yaml").write_text(
        "generic: {Hello: Hello, goods: things}\nnews: {Hello: Good day, goods: naïve papers}",
        encoding="utf-8",
    )
    return made


def say(name: str, domain: str, folder: Path) -> str:
    return load_template(name, domain, folder, sections=["say"], variables=["who"]).render("say", who="you")


@pytest.mark.parametrize(
    ("name", "domain", "text"),
    [
        ("paper", "news", "built <in>"),
        ("news", "any", "Good day, you: naïve papers"),
        ("auto", "news", "Good day, you: naïve papers"),
        ("auto", "cars", "Hello, you: things"),
    ],
)
def test_a_built_in_template_has_the_words_of_its_domain(
    folder: Path, name: str, domain: str, text: str
) -> None:
    assert say(name, domain, folder) == text


def test_a_users_own_template_is_found_by_its_path_and_taken_as_it_is(folder: Path) -> None:
    own = folder.parent / "own.txt"
    own.write_text("[[say]]\nmy <own>: é", encoding="utf-8")
    assert say(str(own), "news", folder) == "my <own>: é"
    message = "There is no template 'shop'; use one of generic, news, paper, or the path of a file"
    with pytest.raises(TemplateError, match=message):
        say("shop", "news", folder)
    own.write_bytes("[[say]]\né".encode("latin-1"))
    with pytest.raises(TemplateError, match="save it as UTF-8"):
        say(str(own), "news", folder)


def test_own_text_is_what_a_section_says_without_its_variables() -> None:
    source = (
        "{# a note #}\n[[a]]\nSeen: {{ items[0] }}\n{% for i in items %}- {{ i }}\n{% endfor %}\nEnd.\n"
        "[[b]]\nOther"
    )
    template = parse_template("t", source, sections=["a"], variables=["items"])
    assert template.own_text("a").split() == ["Seen:", "-", "End."]
    assert template.own_text("missing") == ""
