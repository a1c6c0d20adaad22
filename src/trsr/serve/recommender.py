"""The model side of the service: questions in, margins and calibrated scores out. No HTTP, no store.

What one question brings cannot change another's answer: the room kept for a candidate is the same for all, so
neither a long candidate nor a strange one changes what the model reads with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trsr.data.verbalize import NO_TEXT, capped_line, verbalize_item
from trsr.errors import BudgetError, CandidateTooLongError, DataError
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
        self._document_tokens = min(MAX_DOCUMENT_TOKENS, builder.config.max_tokens // 2)
        self._item_room = _room(builder, catalogue)
        self._document_room = len(builder.text_suffix("x")) + self._document_tokens

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
        """Yield (place in `questions`, answer) as each is finished; what is wrong with one harms no other.

        An exception stands for an answer where one cannot be given; it is never raised here.
        """
        prompts: dict[int, RankingPrompt] = {}
        for place, question in enumerate(questions):
            try:
                prompts[place] = self.prompt(question)
            except Exception as error:  # also one of ours: the others can still be answered
                yield place, error
        for place, answer in self._scored(prompts):
            if isinstance(answer, CandidateTooLongError):
                yield place, _named(answer, questions[place])
            else:
                yield place, answer

    def rerank(self, query: str, documents: Sequence[str]) -> Scored:
        """Score free texts against a query that stands where the profile stands (see `TextAsk`)."""
        return self.score([TextAsk(query, documents)])[0]

    def explain(self, ask: Ask, candidate: str) -> Explanation:
        """Leave out each recent item and each sentence of the profile in turn; all in one `score` call."""
        parts = self.leave_one_out(ask, candidate)
        return parts.explanation(self.score(parts.asks))

    def leave_one_out(self, ask: Ask, candidate: str) -> LeaveOneOut:
        """Return the questions behind `explain`, for callers that put them into a queue."""
        prompt = self.prompt(Ask(ask.user_history, ask.profile, (candidate,)))
        n_shown = min(len(ask.user_history), self.builder.config.n_recent) - prompt.fitted.n_recent_cut
        shown = tuple(ask.user_history[len(ask.user_history) - n_shown :])
        profile = ask.profile if self.builder.config.use_profile else ""
        return leave_one_out(Ask(ask.user_history, profile, ()), candidate, shown)

    def text_of(self, item_id: str) -> str:
        """Return an item's text as prompts show it.

        Raises:
            DataError: it is not in the catalogue.
        """
        return self.builder.item_text(item_id)

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; questions asked later see them (see `Catalogue.put`)."""
        self.catalogue.put(items)

    def prompt(self, question: Question) -> RankingPrompt:
        """Build a question's prompt; see `score` for what is raised."""
        match question:
            case Ask(user_history=history, profile=profile, candidates=names):
                if not names:
                    raise DataError("The question has no candidates; name at least one.")
                try:
                    return self.builder.build(history, profile, names, room=self._item_room)
                except BudgetError as error:
                    longest = max(names, key=lambda name: len(self.builder.suffix(name)))
                    raise BudgetError(f"With the item {longest!r} among the candidates: {error}") from error
            case TextAsk(query=query, documents=documents):
                if not documents:
                    raise DataError("The question has no documents; give at least one.")
                cap, tokenizer = self._document_tokens, self.builder.tokenizer
                lines = [capped_line(text, cap, tokenizer) or NO_TEXT for text in documents]
                suffixes = [self.builder.text_suffix(line) for line in lines]
                return self.builder.join((), query, suffixes, room=self._document_room)

    def _scored(self, prompts: Mapping[int, RankingPrompt]) -> Iterator[tuple[int, Scored | Exception]]:
        """Yield every prompt's answer: all in one stream, and when that breaks, the others in another."""
        waiting = dict(prompts)
        while waiting:
            places = list(waiting)
            groups = [waiting[place].group for place in places]
            known = [self._knows(group.prefix) for group in groups]
            try:
                for index, margins in self.scorer.score(groups, self.labels):
                    prompt = waiting.pop(places[index])
                    yield places[index], self._answer(prompt, margins, known[index])
                return
            except CandidateTooLongError as error:  # found before anything is read
                del waiting[places[error.group]]
                yield places[error.group], error
            except Exception as error:  # one of them, nobody says which
                if len(waiting) == 1:
                    yield next(iter(waiting)), error
                    return
                for place, prompt in waiting.items():
                    yield from self._scored({place: prompt})
                return

    def _answer(self, prompt: RankingPrompt, margins: npt.NDArray[np.float32], known: bool) -> Scored:
        scores = sigmoid(margins) if self.calibration is None else self.calibration.apply(margins)
        group = prompt.group
        return Scored(
            margins=margins,
            scores=scores,
            n_prompt_tokens=np.asarray(prompt.n_tokens(), dtype=np.int32),
            n_cut_tokens=prompt.fitted.n_tokens_cut,
            n_read_tokens=sum(map(len, group.suffixes)) + (0 if known else len(group.prefix)),
            cached=known,
        )


def _room(builder: PromptBuilder, catalogue: Catalogue) -> int:
    """Return how many tokens the suffix of any item may have: every field is there and as long as it may be.

    At most half a prompt: an item with more fields than that takes room from the profile it stands beside.
    """
    config = builder.config
    fields = catalogue.fields if config.fields is None else config.fields
    shortest = verbalize_item(Item("", dict.fromkeys(fields, "x")), fields=fields)
    # A field's value may need a token or two more behind its name than by itself.
    most = len(builder.text_suffix(shortest)) + len(fields) * (config.max_field_tokens + 1)
    return min(most, config.max_tokens // 2)


def _named(error: CandidateTooLongError, question: Question) -> CandidateTooLongError:
    """Return the error with the candidate's name in place of its number."""
    match question:
        case Ask(candidates=names):
            name = f"The item {names[error.suffix]!r}"
        case TextAsk():
            name = f"Document {error.suffix}"
    return CandidateTooLongError(error.group, error.suffix, error.n_tokens, error.max_tokens, name)
