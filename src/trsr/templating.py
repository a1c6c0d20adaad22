"""Strict, sandboxed prompt templates with declared variables and a content hash.

Lines of the form `[[name]]` divide a template file into sections, each a Jinja template. The file is divided
before rendering, so no rendered text can open or close a section. Texts of items, users and models pass
through `sanitize_line` before they are rendered.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml

from trsr.errors import TemplateError

_WHITE = re.compile(r"\s+")
_LINE_WHITE = "\n\r\t\f\v"
# Format characters (zero width, direction overrides), control characters, halves of surrogate pairs.
_UNSEEN = {"Cf", "Cc", "Cs"}
# Marks that change the speaker or end a text in chat formats: `<|im_end|>`, `</s>`, `<start_of_turn>`,
# `[INST]`, `<<SYS>>`, `### Assistant:`; each with a sign that it always contains.
_MARKERS = (
    ("##", re.compile(r"#{2,}"), "#"),
    ("<", re.compile(r"<(?=[|/!a-zA-Z_<｜])"), "< "),
    (">", re.compile(r"(?<=[|｜])>"), " >"),
    (
        "[",
        re.compile(
            r"\[(?=/?(?:INST|SYS|TOOL|AVAILABLE|system|user|assistant)[^\]\n]{0,20}\])", re.IGNORECASE
        ),
        "[ ",
    ),
    (":", re.compile(r"\b(assistant|system|user|human)\s*:", re.IGNORECASE), r"\1 -"),
)


def sanitize_line(text: str) -> str:
    """Fold white space and break up the markers of chat formats; the words stay readable. Idempotent.

    Control and direction-override characters are removed, every run of white space becomes one blank, and no
    marker can end a prompt or speak as another role (`<|im_end|>` becomes `< |im_end| >`).
    """
    if not text.isprintable():
        text = "".join(c for c in text if c in _LINE_WHITE or unicodedata.category(c) not in _UNSEEN)
        text = _WHITE.sub(" ", text)
    elif "  " in text:  # the only white space that is printable is a blank
        text = _WHITE.sub(" ", text)
    # Shortening comes first; otherwise it could create new markers.
    for sign, pattern, instead in _MARKERS:
        if sign in text:  # most texts have none of them
            text = pattern.sub(instead, text)
    return text.strip()


_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False, trim_blocks=True
)
# Rendering is a pure function of the declared variables.
_ENVIRONMENT.globals.clear()
del _ENVIRONMENT.filters["random"]
_SECTION = re.compile(r"^\[\[(\w+)\]\]\s*$", re.MULTILINE)
# A part that shows only the notes of users of the service.
_NOTES = re.compile(r"\{% if notes %\}(?:(?!\{%).)*\{% endif %\}\n?", re.DOTALL)
_WORD = re.compile(r"<(\w+)>")
# Expressions of a template can also fail like Python: `{{ 1 / 0 }}`, `{{ items + 1 }}`.
_RENDER_ERRORS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Template:
    """A named set of sections, each a Jinja template over the same declared variables."""

    name: str
    source: str

    @cached_property
    def sections(self) -> Mapping[str, jinja2.Template]:
        """The compiled sections by name."""
        return {name: _ENVIRONMENT.from_string(body.strip("\n")) for name, body in self._bodies.items()}

    @cached_property
    def _bodies(self) -> Mapping[str, str]:
        parts = _SECTION.split(self.source)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    @cached_property
    def hash(self) -> str:
        """Sha256 of the source in hex, without parts of the form `{% if notes %}...{% endif %}`.

        Prompts without notes, as in training, are the same without these parts.
        """
        return hashlib.sha256(_NOTES.sub("", self.source).encode()).hexdigest()

    def used(self, section: str) -> set[str]:
        """Return the variables that a section uses."""
        return jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(self._bodies[section]))

    @cached_property
    def _fixed(self) -> Mapping[str, str]:
        """The rendered sections that use no variable, by name."""
        found = {}
        for name, section in self.sections.items():
            if not self.used(name):
                with suppress(*_RENDER_ERRORS):  # `render` reports the error
                    found[name] = section.render().strip()
        return found

    def own_text(self, section: str) -> str:
        """Return the literal text of a section; empty if there is no such section."""
        tokens = _ENVIRONMENT.lex(self._bodies.get(section, ""))
        return "".join(text for _, kind, text in tokens if kind == "data").strip()

    def render(self, section: str, **variables: object) -> str:
        """Render one section, without the white space around it.

        Raises:
            TemplateError: the section is missing, or uses a variable that was not given.
        """
        if section in self._fixed:
            return self._fixed[section]
        return self.render_whole(section, **variables).strip()

    def render_whole(self, section: str, **variables: object) -> str:
        """Render one section with the white space around it; see `render`."""
        if section not in self.sections:
            raise TemplateError(
                f"The template {self.name!r} has no section [[{section}]]; add it "
                f"(found: {', '.join(self.sections)})."
            )
        try:
            return self.sections[section].render(**variables)
        except _RENDER_ERRORS as error:
            raise TemplateError(
                f"The template {self.name!r}, section [[{section}]], failed: {str(error).rstrip('.')}."
            ) from error


def parse_template(name: str, source: str, *, sections: Iterable[str], variables: Iterable[str]) -> Template:
    """Check a template's source against the sections it must have and the variables it may use.

    Raises:
        TemplateError: it does not parse, a section is missing, or an undeclared variable is used.
    """
    allowed = frozenset(variables)
    try:
        used = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
        template = Template(name, source)
        found = set(template.sections)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"The template {name!r} does not parse: line {error.lineno}: {error.message}."
        ) from error
    if unknown := sorted(used - allowed):
        raise TemplateError(
            f"The template {name!r} uses {', '.join(unknown)}; only {', '.join(sorted(allowed))} can be used."
        )
    if missing := [section for section in sections if section not in found]:
        raise TemplateError(f"The template {name!r} lacks the section [[{missing[0]}]]; add it.")
    return template


@cache
def built_in_templates(folder: Path) -> Mapping[str, str]:
    """Return the sources of a folder's templates by name.

    `NAME.j2` is one template. With a `NAME.yaml` of words by domain, it is one template per domain, in which
    the domain's words replace `<word>`.
    """
    sources: dict[str, str] = {}
    for file in sorted(folder.glob("*.j2")):
        source, words = file.read_text(encoding="utf-8"), file.with_suffix(".yaml")
        if words.is_file():
            domains = yaml.safe_load(words.read_text(encoding="utf-8"))
            sources |= {domain: _fill(source, domains[domain]) for domain in domains}
        else:
            sources[file.stem] = source
    return sources


def _fill(source: str, words: Mapping[str, str]) -> str:
    return _WORD.sub(lambda mark: words[mark[1]], source)


def load_template(
    name: str, domain: str, folder: Path, *, sections: Iterable[str], variables: Iterable[str]
) -> Template:
    """Load a template: a built-in one (see `built_in_templates`), or the path of a user's own file.

    Args:
        name: The name or path; `auto` for the built-in one of the domain, or else `generic`.
        domain: The kind of items, such as `news`.
        folder: The built-in templates.
        sections: Required sections.
        variables: Allowed variables.

    Raises:
        TemplateError: there is no such template, or it is wrong (see `parse_template`).
    """
    built_in = built_in_templates(folder)
    if name == "auto":
        name = domain if domain in built_in else "generic"
    source = built_in.get(name)
    if source is None and not Path(name).is_file():
        known = ", ".join(sorted(built_in))
        raise TemplateError(f"There is no template {name!r}; use one of {known}, or the path of a file.")
    if source is None:
        try:
            source = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(
                f"The template {name} cannot be read ({error}); save it as UTF-8 text."
            ) from error
    return parse_template(name, source, sections=sections, variables=variables)
