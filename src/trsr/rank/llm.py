"""The language model as a ranker: profile, recent items and candidate in, margin out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trsr.errors import CandidateTooLongError
from trsr.llm.base import LabelScorer, LabelTokens
from trsr.prompt.budget import Fitted
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
        n_field_cut: Callable[[str], int] = lambda _: 0,
    ) -> None:
        """Rank with a scorer; `n_field_cut` is how many tokens the caps of fields cut from an item's text."""
        self.name = name
        self.scorer = scorer
        self.builder = builder
        self.labels = labels
        self.profiles = profiles
        self.n_field_cut = n_field_cut

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
                    self._n_cut(examples[index], prompt.fitted),
                )
        except CandidateTooLongError as error:
            example = examples[error.group]
            name = f"The item {example.candidates[error.suffix]!r} for the user {example.user_id!r}"
            raise CandidateTooLongError(
                error.group, error.suffix, error.n_tokens, error.max_tokens, name
            ) from error

    def _n_cut(self, example: RankingExample, fitted: Fitted) -> npt.NDArray[np.int32]:
        """Return the tokens that each candidate's prompt lacks."""
        n_recent = self.builder.config.n_recent
        shown = (example.history[-n_recent:] if n_recent else ())[fitted.n_recent_cut :]
        n_prefix = fitted.n_tokens_cut + sum(map(self.n_field_cut, shown))
        return np.asarray([n_prefix + self.n_field_cut(c) for c in example.candidates], dtype=np.int32)
