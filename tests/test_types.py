"""The shared values are immutable and refuse impossible content."""

from __future__ import annotations

import dataclasses

import pytest

from trsr import types
from trsr.types import Block, Explanation, History, Item, Profile, RankedItem, RankingExample

VALUES = [
    Item("i", {"title": "Lamp"}),
    History("u", ("i", "j")),
    Block(0, 0, ("i",), complete=False),
    Profile("u", "Likes lamps.", "counted", 2),
    RankingExample("e", "u", ("i",), ("j", "k"), (1, 0)),
    Explanation(0.5, (), (), ()),
    RankedItem("i", 1, 0.5, 0.6),
]


def test_every_public_value_is_covered_here() -> None:
    public = {name for name, value in vars(types).items() if dataclasses.is_dataclass(value)}
    assert public == {type(value).__name__ for value in VALUES}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_cannot_be_changed(value: object) -> None:
    assert dataclasses.is_dataclass(value)
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, "other")
    assert not hasattr(value, "__dict__")


def test_a_history_is_as_long_as_its_items() -> None:
    assert len(History("u", ("i", "j"))) == 2
    assert len(History("u", ())) == 0


def test_an_example_needs_a_label_for_each_candidate() -> None:
    with pytest.raises(ValueError, match="2 candidates but 1 labels"):
        RankingExample("e", "u", (), ("i", "j"), (1,))
