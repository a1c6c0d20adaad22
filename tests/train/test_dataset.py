"""Training groups are the prompts that ranking will see."""

from __future__ import annotations

import pytest

from trsr.llm.fake import FakeTokenizer
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.train.config import ProfileMix
from trsr.train.dataset import profile_kind, training_groups
from trsr.types import RankingExample

EXAMPLES = [
    RankingExample("e1", "u1", ("a", "b"), ("c", "d", "e"), (0, 1, 0)),
    RankingExample("e2", "u2", ("c",), ("a", "b"), (1, 0)),
]


def test_each_example_becomes_one_group_with_its_profile_and_labels() -> None:
    template = load_ranking_template("products", "products")
    builder = PromptBuilder(template, PromptConfig(), FakeTokenizer(), lambda item: f"Title: {item}")
    first, second = training_groups(EXAMPLES, {"e1": "likes gardens"}, builder)
    assert (first.labels, second.labels) == ((0, 1, 0), (1, 0))
    assert first.group == builder.build(("a", "b"), "likes gardens", ("c", "d", "e")).group
    assert second.group == builder.build(("c",), "", ("a", "b")).group
    assert "likes gardens" in FakeTokenizer().decode(first.group.prefix)
    assert "Profile" not in FakeTokenizer().decode(second.group.prefix)


@pytest.mark.parametrize(("none", "counted"), [(0.0, 0.0), (0.25, 0.25), (1.0, 0.0), (0.2, 0.8)])
def test_kinds_of_profiles_are_drawn_by_their_shares_anew_each_epoch(none: float, counted: float) -> None:
    mix = ProfileMix(none=none, counted=counted)
    draws = [[profile_kind(mix, 0, f"e{n}", epoch) for n in range(2000)] for epoch in (0, 1)]
    for drawn in draws:
        assert abs(drawn.count("none") / 2000 - none) < 0.04
        assert abs(drawn.count("counted") / 2000 - counted) < 0.04
    assert (draws[0] != draws[1]) == (none + counted > 0 and none < 1)
    assert profile_kind(mix, 0, "e7", 1) == draws[1][7]


def test_shares_are_at_most_the_whole() -> None:
    with pytest.raises(ValueError, match=r"1\.1 together, more than 1"):
        ProfileMix(none=0.6, counted=0.5)
