"""Foretells the tokens of ranking prompts, of users whose profile is written and of those where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trsr.recommend.prompt import PromptBuilder
from trsr.templating import plain_line
from trsr.types import RankingExample


@dataclass(slots=True)
class PromptCounts:
    """Counts over ranking prompts.

    Attributes:
        n_groups: Users' questions, each with one prefix.
        n_prompts: Candidates.
        prompt_tokens: Tokens of all prompts, each whole: what `scores.parquet` says.
        read_tokens: Tokens read when the candidates of a question share the reading of its prefix.
        n_exact: Questions whose profile is known; the others are counted with a bound from above.
    """

    n_groups: int = 0
    n_prompts: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    n_exact: int = 0

    def add(self, other: PromptCounts, times: int = 1) -> None:
        """Add the counts of other prompts, which come several times."""
        self.n_groups += times * other.n_groups
        self.n_prompts += times * other.n_prompts
        self.prompt_tokens += times * other.prompt_tokens
        self.read_tokens += times * other.read_tokens
        self.n_exact += times * other.n_exact


def count_prompts(
    builder: PromptBuilder,
    examples: Sequence[RankingExample],
    profiles: Sequence[str | None],
    *,
    stand_in: str,
    n_more: int,
) -> PromptCounts:
    """Count the prompts of examples.

    Args:
        builder: Builds them.
        examples: The questions.
        profiles: The profile of each; None where it is not written yet.
        stand_in: A profile as short as one can be, which stands for those not written.
        n_more: Tokens by which one of these may be longer.

    Raises:
        BudgetError: a prompt cannot fit its budget.
    """
    counts = PromptCounts()
    for example, profile in zip(examples, profiles, strict=True):
        text = "" if not builder.config.use_profile else profile
        suffixes = [len(builder.suffix(candidate)) for candidate in example.candidates]
        if text is None:
            n_prefix = _longest_prefix(builder, example, stand_in, n_more, max(suffixes))
        else:
            n_prefix = len(builder.build(example.history, text, example.candidates).group.prefix)
        counts.n_groups += 1
        counts.n_prompts += len(suffixes)
        counts.prompt_tokens += len(suffixes) * n_prefix + sum(suffixes)
        counts.read_tokens += n_prefix + sum(suffixes)
        counts.n_exact += text is not None
    return counts


def _longest_prefix(
    builder: PromptBuilder, example: RankingExample, stand_in: str, n_more: int, longest_suffix: int
) -> int:
    """Return how many tokens the prefix has at most: no more than the budget leaves."""
    n_recent = builder.config.n_recent
    newest = example.history[-n_recent:] if n_recent else ()
    recent = [plain_line(builder.item_text(item)) for item in newest]
    whole = len(builder.prefix(recent, plain_line(stand_in))) + n_more
    return min(whole, builder.config.max_tokens - longest_suffix)
