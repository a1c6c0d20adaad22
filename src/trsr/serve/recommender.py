"""The model side of the service: questions in, margins and calibrated scores out. No HTTP, no store.

What one question brings cannot change another's answer: the room kept for a candidate is the same for all, so
neither a long candidate nor a strange one changes what the model reads with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trsr.data.verbalize import capped_line
from trsr.errors import CandidateTooLongError, DataError, TrsrError
from trsr.llm.base import LabelScorer, LabelTokens
from trsr.prompt.ranking import PromptBuilder, RankingPrompt
from trsr.rank.base import sigmoid
from trsr.rank.calibration import Calibration
from trsr.serve.catalogue import Catalogue
from trsr.serve.explaining import Explanation, LeaveOneOut, leave_one_out
from trsr.serve.questions import Ask, Question, Scored, TextAsk
from trsr.types import Item

MAX_DOCUMENT_TOKENS = 256
"""Tokens kept of a document of `rerank`, or half a prompt where that is less."""


class Recommender:
    """Scores candidates for users whose history and profile are given.

    One thread at a time may score; `text_of` and `put_items` are safe beside it.

    Args:
        scorer: Holds the model, and the prefix cache if there is one.
        builder: Builds the prompts; its item texts must come from `catalogue`.
        labels: The answer tokens.
        catalogue: The items.
        model_name: Stands in answers.
        calibration: Turns margins into scores; None for sigmoid(margin).
        knows: Whether the scorer has read a prefix (token ids) before; None: never.
    """

    def __init__(
        self,
        scorer: LabelScorer,
        builder: PromptBuilder,
        labels: LabelTokens,
        catalogue: Catalogue,
        *,
        model_name: str,
        calibration: Calibration | None = None,
        knows: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> None:
        self.scorer = scorer
        self.builder = builder
        self.labels = labels
        self.catalogue = catalogue
        self.model_name = model_name
        self.calibration = calibration
        self._knows = knows or (lambda _: False)

    def score(self, questions: Sequence[Question]) -> list[Scored]:
        """Answer questions in one stream of passes; the result is in their order.

        Raises:
            DataError: a question has no candidates, or names an item that is not in the catalogue.
            BudgetError: a prompt cannot fit; names the item.
        """
        found = dict(self.answers(questions))
        for answer in found.values():
            if isinstance(answer, Exception):
                raise answer
        return [answer for i in range(len(questions)) if isinstance(answer := found[i], Scored)]

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Scored | Exception]]:
        """Yield (place in `questions`, answer) as each is finished; what is wrong with one harms no other."""
        raise NotImplementedError

    def rerank(self, query: str, documents: Sequence[str]) -> Scored:
        """Score free texts against a query that stands where the profile stands (see `TextAsk`)."""
        return self.score([TextAsk(query, documents)])[0]

    def explain(self, ask: Ask, candidate: str) -> Explanation:
        """Leave out each recent item and each sentence of the profile in turn; all in one `score` call."""
        parts = self.leave_one_out(ask, candidate)
        return parts.explanation(self.score(parts.asks))

    def leave_one_out(self, ask: Ask, candidate: str) -> LeaveOneOut:
        """Return the questions behind `explain`, for callers that put them into a queue."""
        raise NotImplementedError

    def text_of(self, item_id: str) -> str:
        """Return an item's text as prompts show it.

        Raises:
            DataError: it is not in the catalogue.
        """
        return self.builder.item_text(item_id)

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; questions asked later see them (see `Catalogue.put`)."""
        self.catalogue.put(items)
