"""The language model as a ranker: profile, recent items and candidate in, margin out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trsr.errors import CandidateTooLongError
from trsr.llm.base import LabelScorer, LabelTokens
from trsr.prompt.ranking import PromptBuilder
from trsr.rank.base import ExampleScores
from trsr.types import RankingExample


class LlmRanker:
    """Scores candidates by the yes-no margin of a language model, zero-shot or fine-tuned."""

    probabilistic = True

    def __init__(
        self,
        name: str,
        scorer: LabelScorer,
        builder: PromptBuilder,
        labels: LabelTokens,
        profiles: Mapping[str, str],
    ) -> None:
        self.name = name
        self.scorer = scorer
        self.builder = builder
        self.labels = labels
        self.profiles = profiles

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one result an example.

        Raises:
            BudgetError: a prompt cannot fit its budget, or not a forward pass; names user and item.
        """
        prompts = [
            self.builder.build(e.history, self.profiles.get(e.example_id, ""), e.candidates) for e in examples
        ]
        try:
            for index, margins in self.scorer.score([p.group for p in prompts], self.labels):
                prompt = prompts[index]
                yield ExampleScores(
                    examples[index].example_id,
                    margins,
                    np.asarray(prompt.n_tokens(), dtype=np.int32),
                    prompt.fitted.n_tokens_cut,
                )
        except CandidateTooLongError as error:
            example = examples[error.group]
            name = f"The item {example.candidates[error.suffix]!r} for the user {example.user_id!r}"
            raise CandidateTooLongError(
                error.group, error.suffix, error.n_tokens, error.max_tokens, name
            ) from error
