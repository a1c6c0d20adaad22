"""The source tree has no import circle between files, lazy imports included, and no file over 500 lines."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import trsr

SOURCE = Path(trsr.__file__).parent


def imports() -> dict[str, set[str]]:
    """Return which modules each module imports, wherever in the file."""
    files = {
        ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in SOURCE.rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        if name == "trsr":  # hands out public names, which nothing inside imports
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                found[name] |= names & files.keys() - {name}
    return found


def test_no_file_imports_itself_in_a_circle() -> None:
    packages = {name for name in imports() if (SOURCE.parent / name.replace(".", "/")).is_dir()}
    graph = {name: others - packages for name, others in imports().items()}
    assert sum(map(len, graph.values())) > 100
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_no_file_is_longer_than_500_lines() -> None:
    long = {
        str(file.relative_to(SOURCE)): n
        for file in SOURCE.rglob("*")
        if file.suffix in {".py", ".html", ".css", ".j2", ".yaml"}
        and (n := len(file.read_text("utf-8").splitlines())) > 500
    }
    assert not long
