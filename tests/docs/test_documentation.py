"""Checks of the pages without running them: links, commands, and tables that repeat the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from page_runner import PAGES, ROOT, blocks_of

from trsr.cli import app
from trsr.experiment.config import RunConfig
from trsr.serve import schemas
from trsr.serve.settings import Settings

_FENCED = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"`(trsr [^`]+)`")
_SERVING = ROOT / "docs" / "serving.md"

each_page = pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_have_targets(file: Path) -> None:
    text = _FENCED.sub("", file.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_index_links_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link).resolve() for link in _LINK.findall(text)}
    assert not [page for page in ROOT.glob("docs/**/*.md") if page not in linked and page.name != "index.md"]
    assert "(docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|md))`", text)
    assert named
    assert not [
        name for name in named if not any((ROOT / at / name).exists() for at in ("", "src/trsr", "src"))
    ]


def commands(page: Path) -> Iterator[str]:
    """Yield every `trsr` command of a page, of its blocks and of its sentences."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(text):
        if block.language in ("sh", ""):
            for line in block.text.replace("\\\n", " ").split("\n"):
                if found := re.match(r"\s*(?:\w+=\S+ )*(trsr .*)", line):
                    yield found[1]
    yield from _COMMAND.findall(_FENCED.sub("", text))


@each_page
def test_commands_and_options_exist(file: Path) -> None:
    for command in commands(file):
        words = shlex.split(re.split(r"[|>;&]", command)[0], comments=True)[1:]
        known: Any = typer.main.get_command(app)
        while hasattr(known, "commands") and words and not words[0].startswith("-"):
            name = words.pop(0)
            if not name.islower():
                break  # `trsr import KIND`
            assert name in known.commands, f"{command}: there is no {name}"
            known = known.commands[name]
        options = {option for parameter in known.params for option in parameter.opts} | {"--help", "--debug"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0].rstrip(".,") in options, f"{command}: there is no {word}"


@each_page
def test_configurations_are_valid(file: Path) -> None:
    for block in blocks_of(file.read_text(encoding="utf-8")):
        if block.language == "yaml" and block.file is not None:
            RunConfig.model_validate(yaml.safe_load(block.text))


def test_serving_page_lists_every_problem() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", _SERVING.read_text(encoding="utf-8"), re.M)
    kinds = [kind for kind in vars(schemas).values() if isinstance(kind, schemas.Kind)]
    assert sorted(rows) == sorted((kind.name, str(kind.status)) for kind in kinds)


def test_serving_page_lists_every_setting() -> None:
    shown: dict[str, str] = {}
    for names, defaults in re.findall(
        r"^\| (`TRSR_.*?) \| (.*?) \|", _SERVING.read_text(encoding="utf-8"), re.M
    ):
        named = re.findall(r"`TRSR_(\w+)`", names)
        shown.update(zip(named, defaults.split(", ") if len(named) > 1 else [defaults], strict=True))
    found = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, float) and default.is_integer():
            default = int(default)
        said = "none" if default == () else str(default).lower()
        found[name.upper()] = shown.get(name.upper()) if default is None else said  # None: in words
    assert shown == found
