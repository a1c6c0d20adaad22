"""`Recommender`: ranks candidates for users by the yes/no margin of a language model.

The prompt of one request never depends on other requests: the room kept for a candidate is the same for all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import BudgetError, CandidateTooLongError, DataError
from trsr.llm import models
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.recommend.calibration import Calibration
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.explain import LeaveOneOut, leave_one_out
from trsr.recommend.loading import RecommenderConfig, open_scorer
from trsr.recommend.model_folder import read_adapter_info
from trsr.recommend.prompt import (
    PromptBuilder,
    PromptConfig,
    RankingPrompt,
    check_context,
    load_ranking_template,
)
from trsr.recommend.ranker import (
    ExampleScores,
    ModelRequest,
    RankRequest,
    RerankRequest,
    ScoredRequest,
    best_first,
    sigmoid,
)
from trsr.recommend.retrieval import Retriever
from trsr.summarize.summarizer import Summarizer
from trsr.text import NO_TEXT, capped_line, verbalize_item, was_cut
from trsr.types import Explanation, Item, Profile, RankedItem, RankingExample

Margins = npt.NDArray[np.float32]
MAX_DOCUMENT_TOKENS = 256
"""Tokens kept of a document of `rerank`, or half a prompt where that is less."""


class Recommender:
    """Ranks candidates by the yes/no margin of a language model, zero-shot or fine-tuned.

    Open one with `Recommender.from_pretrained`. It ranks for a single user (`rank` with a history and
    candidates, `recommend`, `rerank`, `explain`), and it is a ranker of examples for `trsr.evaluate`. One
    thread at a time may read the model; everything else is thread-safe.

    Args:
        scorer: Holds the model, and the prefix cache if there is one.
        builder: Builds the prompts; its item texts must come from `catalogue`.
        labels: The answer tokens.
        catalogue: The items.
        name: Shown in tables and answers.
        calibration: Turns margins into scores; None for sigmoid(margin).
        profiles: Profile texts by example id, for examples; None to have `summarizer` write them.
        n_field_cut: How many tokens the caps of fields cut from an item's text.
        dataset: Holds the histories of its users.
        summarizer: Writes profiles of histories.
        folder: The model folder; None for a base model as it is.
    """

    probabilistic = True

    def __init__(
        self,
        scorer: LabelScorer,
        builder: PromptBuilder,
        labels: LabelTokens,
        catalogue: Catalogue,
        *,
        name: str,
        calibration: Calibration | None = None,
        profiles: Mapping[str, str] | None = None,
        n_field_cut: Callable[[str], int] = lambda _: 0,
        dataset: Dataset | None = None,
        summarizer: Summarizer | None = None,
        folder: Path | None = None,
    ) -> None:
        self.scorer = scorer
        self.builder = builder
        self.labels = labels
        self.catalogue = catalogue
        self.name = name
        self.calibration = calibration
        self.profiles = profiles
        self.n_field_cut = n_field_cut
        self.dataset = dataset
        self.summarizer = summarizer
        self.folder = folder
        self.knows: Callable[[tuple[int, ...]], bool] = getattr(scorer, "knows", lambda _: False)
        """Whether the scorer need not read a prefix (token ids) again."""
        self._document_tokens = min(MAX_DOCUMENT_TOKENS, builder.config.max_tokens // 2)
        self._item_room = _room(builder, catalogue)
        self._document_room = len(builder.text_suffix("x")) + self._document_tokens

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        data: Dataset | str | Path | None = None,
        *,
        device: str = "auto",
        cache_bytes: int = 0,
    ) -> Recommender:
        """Open a model folder, such as `trsr.fine_tune` and `trsr run` write.

        Args:
            folder: The model folder.
            data: The dataset, or its folder; by default the one it was trained on.
            device: `auto`, `cpu`, `cuda`, ...
            cache_bytes: As for `open`.

        Raises:
            RunMismatchError: the folder is no model folder, or damaged.
            DataError: there is no dataset.
            ModelError: the base model cannot be had.
        """
        folder = Path(folder)
        info = read_adapter_info(folder)
        if data is None and info.origin is not None:
            data = info.origin.data
        if data is None:
            raise DataError(f"{folder} does not say which dataset it was trained on; name one as `data`.")
        return cls.open(
            RecommenderConfig(model=info.base_model, quantization=info.quantization, device=device),
            folder,
            PromptConfig.model_validate(info.prompt),
            data if isinstance(data, Dataset) else Dataset.open(data),
            name=folder.resolve().name,
            summarizer=Summarizer(**info.origin.summarizer)
            if info.origin and info.origin.summarizer
            else None,
            cache_bytes=cache_bytes,
        )

    @classmethod
    def open(
        cls,
        config: RecommenderConfig,
        adapter: Path | None,
        prompt: PromptConfig,
        dataset: Dataset,
        *,
        name: str,
        summarizer: Summarizer | None = None,
        cache_bytes: int = 0,
    ) -> Recommender:
        """Load a base model, with an adapter if there is one, over the items of a dataset.

        Args:
            config: Names the base model.
            adapter: A model folder, whose template is used whatever `prompt` says; None for the base model.
            prompt: What the prompt shows.
            dataset: The items, and the histories of users.
            name: Shown in tables and answers.
            summarizer: Writes the profiles.
            cache_bytes: Most memory for prefixes that are kept between calls.

        Raises:
            RunMismatchError: the model folder is damaged, or was trained on another template or base model.
            ConfigError: the prompt shows a field that the dataset does not have, or is longer than the model
                reads.
            ModelError: the base model cannot be had.
        """
        from trsr.llm.transformers import HfTokenizer
        from trsr.recommend.scorer import PrefixCache

        dataset.check_fields(prompt.fields)
        check_context(config.model, prompt)
        if adapter is not None:
            prompt = prompt.model_copy(update={"template": read_adapter_info(adapter).template})
        tokenizer = HfTokenizer(models.hf_folder(config.model))
        template = load_ranking_template(prompt.template, dataset.info.domain)
        catalogue = Catalogue(dataset.catalogue(), dataset.info.text_fields)
        texts = catalogue.texts(prompt.fields, prompt.max_field_tokens, tokenizer)
        builder = PromptBuilder(template, prompt, tokenizer, texts)
        labels = builder.labels()
        cache = PrefixCache(cache_bytes) if cache_bytes else None
        scorer, info = open_scorer(config, adapter, template.hash, tokenizer.prompt_version, cache=cache)
        return cls(
            scorer,
            builder,
            info.labels if info else labels,
            catalogue,
            name=name,
            calibration=info.calibration if info else None,
            dataset=dataset,
            summarizer=summarizer,
            folder=adapter,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the model folder.

        Raises:
            DataError: there is no adapter, or `folder` exists.
        """
        if self.folder is None:
            raise DataError(f"{self.name} is a base model as it is; there is no adapter to save.")
        if Path(folder).exists():
            raise DataError(f"{folder} exists; name another folder.")
        shutil.copytree(self.folder, folder)

    @overload
    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]: ...

    @overload
    def rank(
        self,
        *,
        history: Sequence[str],
        candidates: Sequence[str],
        profile: str | Profile = "",
        notes: str = "",
    ) -> list[RankedItem]: ...

    def rank(
        self,
        examples: Sequence[RankingExample] | None = None,
        *,
        history: Sequence[str] = (),
        candidates: Sequence[str] = (),
        profile: str | Profile = "",
        notes: str = "",
    ) -> Iterator[ExampleScores] | list[RankedItem]:
        """Rank the candidates of one user, or score those of many examples.

        Args:
            examples: Examples to score instead of a single user; yields one `ExampleScores` per example, in
                any order. Their profiles are those given, or written by the summarizer.
            history: Item ids, oldest first; the newest `prompt.n_recent` are shown.
            candidates: Item ids, at least one.
            profile: The user's profile.
            notes: What the user wrote about themselves.

        Returns:
            For a single user the candidates, best first.

        Raises:
            DataError: there are no candidates, or an item is not in the catalogue.
            BudgetError: a prompt cannot fit its budget, or not a forward pass; names user and item.
        """
        if examples is not None:
            return self._score_examples(examples)
        text = profile.text if isinstance(profile, Profile) else profile
        (scored,) = self.score([RankRequest(tuple(history), text, tuple(candidates), notes)])
        return best_first(candidates, scored.margins, scored.scores, self.title_of)

    def _score_examples(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        profiles = self.profiles
        if profiles is None and self.summarizer is not None and self.dataset is not None:
            profiles = self.summarizer.before(self.dataset, examples)
        profiles = profiles or {}
        prompts = [
            self.builder.build(e.history, profiles.get(e.example_id, ""), e.candidates) for e in examples
        ]
        try:
            for index, margins in self.scorer.score([p.group for p in prompts], self.labels):
                example, prompt = examples[index], prompts[index]
                n_tokens = np.asarray(prompt.n_tokens(), dtype=np.int32)
                yield ExampleScores(example.example_id, margins, n_tokens, self._n_cut(example, prompt))
        except CandidateTooLongError as error:
            example = examples[error.group]
            raise _renamed(
                error, f"The item {example.candidates[error.suffix]!r} for the user {example.user_id!r}"
            ) from error

    def _n_cut(self, example: RankingExample, prompt: RankingPrompt) -> npt.NDArray[np.int32]:
        """Return the tokens that each candidate's prompt lacks."""
        n_recent = self.builder.config.n_recent
        shown = (example.history[-n_recent:] if n_recent else ())[prompt.n_recent_cut :]
        n_prefix = prompt.n_tokens_cut + sum(map(self.n_field_cut, shown))
        return np.asarray([n_prefix + self.n_field_cut(c) for c in example.candidates], dtype=np.int32)

    @cached_property
    def retriever(self) -> Retriever:
        """Finds candidates in the whole catalogue; needs bm25s."""
        if self.dataset is None:
            return Retriever(self.catalogue)
        users = self.dataset.events().group_by("item_id").agg(pl.col("user_id").n_unique()).collect()
        return Retriever(self.catalogue, self.dataset.info.category_fields, dict(users.iter_rows()))

    def recommend(
        self,
        user_id: str,
        top_n: int = 10,
        *,
        n_ranked: int = 50,
        filters: Mapping[str, str] | None = None,
    ) -> list[RankedItem]:
        """Recommend items to a user of the dataset, best first.

        Args:
            user_id: The user; their history comes from the dataset, their profile from the summarizer.
            top_n: Items to return.
            n_ranked: Candidates that are retrieved and read by the model.
            filters: For each category field the value that an item must have.

        Raises:
            DataError: there is no such user, or no such category field.
            EngineError: the profile could not be written.
        """
        if self.dataset is None:
            raise DataError(f"{self.name} was opened without a dataset, so it knows no users; use `rank`.")
        history = self.dataset.readable(self.dataset.history(user_id))
        profile = ""
        if self.summarizer is not None:
            profile = self.summarizer.write(self.dataset, [history]).profiles[0].text
        found = self.retriever.top(profile, history.item_ids, max(top_n, n_ranked), filters)
        if not found:
            return []
        return self.rank(history=history.item_ids, profile=profile, candidates=found)[:top_n]

    def score(self, questions: Sequence[ModelRequest]) -> list[ScoredRequest]:
        """Answer requests in one stream of passes; the result is in their order.

        Raises:
            DataError: a request has no candidates, or names an item that is not in the catalogue.
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
        """Yield (place in `groups`, margins) as each is finished; a failure of one harms no other.

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
            except Exception as error:
                if len(waiting) == 1:
                    yield waiting.popitem()[0], error
                    return
                for place, group in waiting.items():  # one of them fails: each is read by itself
                    yield from ((place, found) for _, found in self.read([group]))
                return

    def answer(
        self, prompt: RankingPrompt, margins: Margins, n_read_tokens: int, cached: bool
    ) -> ScoredRequest:
        """Return the answer to a prompt whose candidates have these margins."""
        return ScoredRequest(
            margins=margins,
            scores=sigmoid(margins) if self.calibration is None else self.calibration.apply(margins),
            n_prompt_tokens=np.asarray(prompt.n_tokens(), dtype=np.int32),
            n_cut_tokens=prompt.n_tokens_cut,
            n_read_tokens=n_read_tokens,
            cached=cached,
        )

    def rerank(self, query: str, documents: Sequence[str]) -> ScoredRequest:
        """Score free texts against a query that is shown where the profile is shown (see `TextAsk`)."""
        return self.score([RerankRequest(query, documents)])[0]

    def explain(self, request: RankRequest, candidate: str) -> Explanation:
        """Leave out each recent item and sentence of notes and profile in turn; all in one `score` call."""
        parts = self.leave_one_out(request, candidate)
        return parts.explanation(answer.margins[0] for answer in self.score(parts.requests))

    def leave_one_out(self, request: RankRequest, candidate: str) -> LeaveOneOut:
        """Return the requests behind `explain`, for callers that put them into a queue."""
        prompt = self.prompt(replace(request, candidates=(candidate,)))
        n_shown = min(len(request.user_history), self.builder.config.n_recent) - prompt.n_recent_cut
        profile = request.profile if self.builder.config.use_profile else ""
        return leave_one_out(replace(request, profile=profile), candidate, n_shown)

    def title_of(self, item_id: str) -> str:
        """Return an item's title: its field `title` or `name`, else its first field without categories."""
        fields = self.catalogue.item(item_id).fields
        categories = self.dataset.info.category_fields if self.dataset else ()
        names = ["title", "name", *(field for field in fields if field not in categories), *fields]
        return next((fields[name] for name in names if name in fields), "")

    def prompt(self, question: ModelRequest) -> RankingPrompt:
        """Build a request's prompt; see `score` for what is raised. Safe to call from several threads."""
        match question:
            case RankRequest(user_history=history, profile=profile, candidates=names, notes=notes):
                if not names:
                    raise DataError("The question has no candidates; name at least one.")
                try:
                    return self.builder.build(history, profile, names, notes=notes, room=self._item_room)
                except BudgetError as error:
                    longest = max(names, key=lambda name: len(self.builder.suffix(name)))
                    raise BudgetError(f"With the item {longest!r} among the candidates: {error}") from error
            case RerankRequest(query=query, documents=documents, max_tokens=most):
                if not documents:
                    raise DataError("The question has no documents; give at least one.")
                cap = min(most or MAX_DOCUMENT_TOKENS, self._document_tokens)
                lines = [capped_line(text, cap, self.builder.tokenizer) for text in documents]
                cut = frozenset(i for i, line in enumerate(lines) if was_cut(documents[i], line))
                suffixes = [self.builder.text_suffix(line or NO_TEXT) for line in lines]
                return replace(self.builder.join((), query, suffixes, room=self._document_room), cut=cut)


def _room(builder: PromptBuilder, catalogue: Catalogue) -> int:
    """Return how many tokens the suffix of any item may have: every field is there and as long as it may be.

    At most half a prompt: an item with more fields than that takes room from the profile.
    """
    config = builder.config
    fields = catalogue.fields if config.fields is None else config.fields
    shortest = verbalize_item(Item("", dict.fromkeys(fields, "x")), fields=fields)
    # A field's value may need a token or two more behind its name than by itself.
    most = len(builder.text_suffix(shortest)) + len(fields) * (config.max_field_tokens + 1)
    return min(most, config.max_tokens // 2)


def named(error: Exception, question: ModelRequest) -> Exception:
    """Return an error about a candidate with its name in place of its number."""
    if not isinstance(error, CandidateTooLongError):
        return error
    if isinstance(question, RankRequest):
        return _renamed(error, f"The item {question.candidates[error.suffix]!r}")
    return _renamed(error, f"Document {error.suffix}")


def _renamed(error: CandidateTooLongError, name: str) -> CandidateTooLongError:
    return CandidateTooLongError(error.group, error.suffix, error.n_tokens, error.max_tokens, name)
