"""Where a setting stands in a YAML file, and what a misspelled one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

Place = Sequence[str | int]
"""Keys and list positions from the top, as in a pydantic error's `loc`."""


def nearest_setting(model: type[BaseModel], place: Place) -> str | None:
    """Return the known setting that is most like the last part of a place, None if none is like it."""
    schema = model.model_json_schema()
    levels = [schema]
    for part in place[:-1]:
        levels = [inner for level in levels for inner in _inside(level, part, schema)]
    known = {name for level in levels for name in level.get("properties", ())}
    found = difflib.get_close_matches(str(place[-1]), sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _inside(level: Mapping[str, Any], part: str | int, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas that a part of a place leads to; a union's tag leads to that member."""
    if part in (properties := level.get("properties", {})):
        yield from _members(properties[part], schema)
    elif part == level.get("properties", {}).get("kind", {}).get("const"):
        yield dict(level)
    elif isinstance(level.get("additionalProperties"), dict):
        yield from _members(level["additionalProperties"], schema)


def _members(level: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema with its references followed, each member of a union by itself."""
    if "$ref" in level:
        yield from _members(schema["$defs"][level["$ref"].rpartition("/")[2]], schema)
    elif unions := level.get("anyOf") or level.get("oneOf"):
        for member in unions:
            yield from _members(member, schema)
    else:
        yield dict(level)


def line_of(text: str, place: Place) -> int | None:
    """Return the line (from 1) of a key in a YAML text; parts that are no key there (tags) are skipped."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is not None:
                line, node = pair[0].start_mark.line + 1, pair[1]
                continue
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            continue
        if part == place[-1]:
            return None
    return line


def repeated_keys(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each key that stands twice in one group of a YAML text, with both lines; YAML takes the last."""
    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    seen: set[int] = set()  # an alias is the node that it names
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value in first:
                    yield key.value, first[key.value], line
                first.setdefault(str(key.value), line)
                nodes.append(value)
