"""Training groups are the prompts that ranking will see."""

from __future__ import annotations

from trsr.llm.fake import FakeTokenizer
from trsr.prompt.ranking import PromptBuilder, PromptConfig, load_ranking_template
from trsr.train.dataset import training_groups
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
