"""Opens a ranking model; asks it as a ranker of examples, or for single users: margins and calibrated scores.

What one question brings cannot change another's answer: the room kept for a candidate is the same for all, so
neither a long candidate nor a strange one changes what the model reads with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from trsr.errors import BudgetError, CandidateTooLongError, DataError
from trsr.llm import models
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup, Sharing
from trsr.llm.engines import OpenAIEngine, open_remote_scorer
from trsr.recommend.calibration import Calibration
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.explain import Explanation, LeaveOneOut, leave_one_out
from trsr.recommend.model_folder import AdapterInfo, check_adapter, load_adapter, read_adapter_info
from trsr.recommend.prompt import Fitted, PromptBuilder, RankingPrompt
from trsr.recommend.questions import Ask, Question, Scored, TextAsk
from trsr.recommend.ranker import ExampleScores, sigmoid
from trsr.text import NO_TEXT, capped_line, verbalize_item, was_cut
from trsr.types import Item, RankingExample


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


if TYPE_CHECKING:
    from trsr.recommend.scorer import PrefixCache, SharedPrefixScorer


def open_scorer(
    recommender: RecommenderConfig,
    adapter: Path | None,
    template_hash: str,
    prompt_version: int,
    *,
    cache: PrefixCache | None = None,
) -> tuple[SharedPrefixScorer, AdapterInfo | None]:
    """Load the model, and what its adapter says about itself.

    Args:
        recommender: Names the base model, its precision and its device.
        adapter: A model folder; None for the base model as it is.
        template_hash: Of the prompt template that will be rendered.
        prompt_version: Of the tokenizer that will read it.
        cache: Where prefixes are kept between calls; None to forget them.

    Raises:
        ModelError: the base model cannot be had.
        RunMismatchError: the model folder is damaged, or was trained on another template or base model.
    """
    from trsr.llm import prefix_attention
    from trsr.llm.transformers import load_causal_lm
    from trsr.recommend.scorer import SharedPrefixScorer

    info = _checked_info(recommender, adapter, template_hash, prompt_version)
    model = load_causal_lm(
        recommender.model,
        dtype=recommender.dtype,
        device=recommender.device,
        quantization=recommender.quantization,
    )
    prefix_attention.enable(model, recommender.sharing)
    if adapter is not None:
        adapted = load_adapter(model, adapter)
        # Merged into 4 bits, the adapter would be rounded too: there it stays beside the weights.
        model = adapted.base_model.model if recommender.quantization else adapted.merge_and_unload()
        model = model.eval()
    scorer = SharedPrefixScorer(model, max_batch_tokens=recommender.max_batch_tokens, cache=cache)
    return scorer, info


def open_server_scorer(
    server: OpenAIEngine,
    recommender: RecommenderConfig,
    adapter: Path | None,
    template_hash: str,
    prompt_version: int,
) -> tuple[LabelScorer, AdapterInfo | None]:
    """Return a scorer over a server that holds the model, and what its adapter says about itself.

    Args:
        server: Where the model is.
        recommender: As for `open_scorer`; no model is loaded.
        adapter: The model folder of what is served; None for the base model as it is.
        template_hash: Of the prompt template that will be rendered.
        prompt_version: Of the tokenizer that will read it.

    Raises:
        RunMismatchError: as for `open_scorer`.
        MissingExtraError: the client's package is not installed.
    """
    return open_remote_scorer(server), _checked_info(recommender, adapter, template_hash, prompt_version)


def _checked_info(
    recommender: RecommenderConfig, adapter: Path | None, template_hash: str, prompt_version: int
) -> AdapterInfo | None:
    if adapter is None:
        return None
    info = read_adapter_info(adapter)
    base = models.model_id(recommender.model)
    check_adapter(
        info,
        adapter,
        template_hash=template_hash,
        prompt_version=prompt_version,
        base_model_id=base,
        quantization=recommender.quantization,
    )
    return info


class RecommenderConfig(BaseModel):
    """The language model that ranks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "smollm2-135m"
    """The embedded model, a hub id or a local folder."""
    dtype: str = "auto"
    device: str = "auto"
    quantization: Literal["4bit"] | None = None
    """`4bit` loads the model in NF4 (bitsandbytes, NVIDIA GPUs only) under a LoRA adapter in float32, as
    QLoRA does; scores are those of the model so rounded."""
    sharing: Sharing = "auto"
    """How candidates share the reading of their prefix: `rows`, `padded` or `blocks` (both for GPUs), or
    `separate`, which reads it again for each. Results are equal; models that cannot share are read
    separately. `auto` is `padded` on a GPU, else `rows`."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of a forward pass when ranking; bounds the memory."""
    servers: dict[Literal["llm", "llm_zero_shot"], OpenAIEngine] = {}
    """Servers that score the test's candidates in place of this process, by ranker: for `llm` one that holds
    the fine-tuned model, for `llm_zero_shot` the base model. `model` still names the tokenizer."""


Margins = npt.NDArray[np.float32]
MAX_DOCUMENT_TOKENS = 256
"""Tokens kept of a document of `rerank`, or half a prompt where that is less."""


class Recommender:
    """Scores candidates for users whose history and profile are given.

    One thread at a time may read; all else is safe beside it.

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
        self.knows = knows or (lambda _: False)
        self._document_tokens = min(MAX_DOCUMENT_TOKENS, builder.config.max_tokens // 2)
        self._item_room = _room(builder, catalogue)
        self._document_room = len(builder.text_suffix("x")) + self._document_tokens

    def score(self, questions: Sequence[Question]) -> list[Scored]:
        """Answer questions in one stream of passes; the result is in their order.

        Raises:
            DataError: a question has no candidates, or names an item that is not in the catalogue.
            BudgetError: a prompt cannot fit; names the item.
        """
        prompts = [self.prompt(question) for question in questions]
        known = [self.knows(prompt.group.prefix) for prompt in prompts]
        found = dict(self.read([prompt.group for prompt in prompts]))
        answers = []
        for place, prompt in enumerate(prompts):
            margins = found[place]
            if isinstance(margins, Exception):
                raise named(margins, questions[place])
            n_read = sum(map(len, prompt.group.suffixes)) + (0 if known[place] else len(prompt.group.prefix))
            answers.append(self.answer(prompt, margins, n_read, known[place]))
        return answers

    def read(self, groups: Sequence[ScoringGroup]) -> Iterator[tuple[int, Margins | Exception]]:
        """Yield (place in `groups`, margins) as each is finished; what is wrong with one harms no other.

        An exception stands for margins where there can be none; it is never raised here.
        """
        waiting = dict(enumerate(groups))
        while waiting:
            places = list(waiting)
            try:
                for index, margins in self.scorer.score([waiting[place] for place in places], self.labels):
                    del waiting[places[index]]
                    yield places[index], margins
                return
            except CandidateTooLongError as error:  # found before anything is read
                del waiting[places[error.group]]
                yield places[error.group], error
            except Exception as error:  # one of them, nobody says which
                if len(waiting) == 1:
                    yield next(iter(waiting)), error
                    return
                for place, group in waiting.items():
                    yield from ((place, found) for _, found in self.read([group]))
                return

    def answer(self, prompt: RankingPrompt, margins: Margins, n_read_tokens: int, cached: bool) -> Scored:
        """Return the answer to a prompt whose candidates have these margins."""
        return Scored(
            margins=margins,
            scores=sigmoid(margins) if self.calibration is None else self.calibration.apply(margins),
            n_prompt_tokens=np.asarray(prompt.n_tokens(), dtype=np.int32),
            n_cut_tokens=prompt.fitted.n_tokens_cut,
            n_read_tokens=n_read_tokens,
            cached=cached,
        )

    def rerank(self, query: str, documents: Sequence[str]) -> Scored:
        """Score free texts against a query that stands where the profile stands (see `TextAsk`)."""
        return self.score([TextAsk(query, documents)])[0]

    def explain(self, ask: Ask, candidate: str) -> Explanation:
        """Leave out each recent item and sentence of notes and profile in turn; all in one `score` call."""
        parts = self.leave_one_out(ask, candidate)
        return parts.explanation(self.score(parts.asks))

    def leave_one_out(self, ask: Ask, candidate: str) -> LeaveOneOut:
        """Return the questions behind `explain`, for callers that put them into a queue."""
        prompt = self.prompt(replace(ask, candidates=(candidate,)))
        n_shown = min(len(ask.user_history), self.builder.config.n_recent) - prompt.fitted.n_recent_cut
        shown = tuple(ask.user_history[len(ask.user_history) - n_shown :])
        profile = ask.profile if self.builder.config.use_profile else ""
        return leave_one_out(replace(ask, profile=profile), candidate, shown)

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
        """Build a question's prompt; see `score` for what is raised. Safe to call from several threads."""
        match question:
            case Ask(user_history=history, profile=profile, candidates=names, notes=notes):
                if not names:
                    raise DataError("The question has no candidates; name at least one.")
                try:
                    return self.builder.build(history, profile, names, notes=notes, room=self._item_room)
                except BudgetError as error:
                    longest = max(names, key=lambda name: len(self.builder.suffix(name)))
                    raise BudgetError(f"With the item {longest!r} among the candidates: {error}") from error
            case TextAsk(query=query, documents=documents, max_tokens=most):
                if not documents:
                    raise DataError("The question has no documents; give at least one.")
                cap = min(most or MAX_DOCUMENT_TOKENS, self._document_tokens)
                lines = [capped_line(text, cap, self.builder.tokenizer) for text in documents]
                cut = frozenset(i for i, line in enumerate(lines) if was_cut(documents[i], line))
                suffixes = [self.builder.text_suffix(line or NO_TEXT) for line in lines]
                return replace(self.builder.join((), query, suffixes, room=self._document_room), cut=cut)


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


def named(error: Exception, question: Question) -> Exception:
    """Return an error about a candidate with its name in place of its number."""
    if not isinstance(error, CandidateTooLongError):
        return error
    match question:
        case Ask(candidates=names):
            name = f"The item {names[error.suffix]!r}"
        case TextAsk():
            name = f"Document {error.suffix}"
    return CandidateTooLongError(error.group, error.suffix, error.n_tokens, error.max_tokens, name)
