"""What the stages of a run share: dataset, texts, templates and examples, each loaded once, when needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from trsr.baselines.simple import Bm25Index
from trsr.data.dataset import Dataset
from trsr.experiment.config import FolderData, RunConfig
from trsr.experiment.ray import RayRunner
from trsr.experiment.run_folder import RunFolder
from trsr.llm import models
from trsr.llm.base import LabelTokens, Tokenizer
from trsr.recommend.prompt import PromptBuilder, load_ranking_template
from trsr.recommend.ranker import Ranker
from trsr.splitting.examples import Splits, read_splits
from trsr.storage import read_table
from trsr.summarize.user_plan import Summariser, make_summariser
from trsr.templating import Template
from trsr.text import FieldCut
from trsr.train.config import ProfileKind
from trsr.train.dataset import shows_own_profile
from trsr.types import History, RankingExample

NO_CAP = 10_000
"""More tokens than a field has."""


class Workbench:
    """Everything derived from a run's configuration and its finished stages."""

    def __init__(self, folder: RunFolder, base: Workbench | None = None) -> None:
        """Work on `folder`; a variant takes dataset and summaries of its run, whose workbench is `base`."""
        self.folder = folder
        self.config = folder.config
        self.base = base
        self.say: Callable[[str], None] = lambda _: None
        """Is told what long stages do."""
        self.runner: RayRunner | None = base.runner if base else None
        """Where profiles are written and the language model ranks; None for this process."""
        self.fitted: dict[str, Ranker] = {}
        """Baselines that this process has fitted, which rank themselves and in fusions."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as what opens the run folder there."""
        return _reopened, (self.folder.path.resolve(), self.config, self.folder.command, self.base)

    @property
    def store_place(self) -> str | Path:
        """Where the summaries are kept: a file, or the URL of a database."""
        if self.base:
            return self.base.store_place
        return self.config.store or self.folder.path / "summaries.sqlite"

    @property
    def dataset_path(self) -> Path:
        """The dataset folder: the one named, or the one made inside the run."""
        if self.base:
            return self.base.dataset_path
        data = self.config.data
        return data.path if isinstance(data, FolderData) else self.folder.path / "data"

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset."""
        if self.base:
            return self.base.dataset
        return Dataset.open(self.dataset_path)

    @cached_property
    def splits(self) -> Splits:
        """The examples of finished stage `examples`."""
        return read_splits(self.folder.path / "examples")

    def all_examples(self) -> list[RankingExample]:
        """Return training, validation and test examples."""
        return [*self.splits.train, *self.splits.valid, *self.splits.test]

    def summarised_examples(self) -> list[RankingExample]:
        """Return the examples that a profile is written for."""
        return summarised(self.splits, self.config)

    def summarised_with(self, config: RunConfig) -> tuple[list[History], Summariser]:
        """Return the histories that this run, or a variant of it, summarises, and with what."""
        if config.summary == self.config.summary:
            found = self.summarised_examples(), self.summariser
        else:
            found = summarised(self.splits, config), make_summariser(self.dataset, config.summary)
        return [History(e.user_id, e.history) for e in found[0]], found[1]

    @cached_property
    def summariser(self) -> Summariser:
        """The summariser with its texts."""
        return make_summariser(self.dataset, self.config.summary)

    @cached_property
    def profiles(self) -> dict[str, str]:
        """Profile texts by example id, of finished stage `summarize`."""
        frame = read_table(self.folder.path / "profiles.parquet", ["example_id", "text"])
        return dict(frame.iter_rows())

    @cached_property
    def counted_profiles(self) -> dict[str, str]:
        """Counted profiles by example id, whatever the run's own method."""
        return {
            e.example_id: self.summariser.counted(History(e.user_id, e.history)) for e in self.all_examples()
        }

    def profiles_as(self, kind: ProfileKind) -> dict[str, str]:
        """Return one kind of profile by example id, of those examples that have one."""
        return {} if kind == "none" else self.counted_profiles if kind == "counted" else self.profiles

    @cached_property
    def summary_texts(self) -> dict[str, list[str]]:
        """The texts of every call by example id, those of blocks first, of finished stage `summarize`."""
        frame = read_table(self.folder.path / "profiles.parquet", ["example_id", "texts"])
        return dict(frame.iter_rows())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The recommender's tokenizer."""
        from trsr.llm.transformers import HfTokenizer

        return HfTokenizer(models.hf_folder(self.config.recommender.model))

    @cached_property
    def bm25_index(self) -> Bm25Index:
        """The index of all items' whole texts, read by the ranker `bm25` and to judge profiles.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        text = self.item_texts(None, NO_CAP, None)
        return Bm25Index({item_id: text(item_id) for item_id in self.dataset.catalogue()})

    @cached_property
    def ranking_template(self) -> Template:
        """The ranking prompt's template."""
        return load_ranking_template(self.config.prompt.template, self.dataset.info.domain)

    @cached_property
    def builder(self) -> PromptBuilder:
        """Builds ranking prompts."""
        prompt = self.config.prompt
        texts = self.item_texts(prompt.fields, prompt.max_field_tokens, self.tokenizer)
        return PromptBuilder(self.ranking_template, prompt, self.tokenizer, texts)

    @cached_property
    def prompt_cuts(self) -> Callable[[str], dict[str, FieldCut]]:
        """What `prompt.max_field_tokens` cuts from an item's fields, by its id."""
        prompt = self.config.prompt
        return item_cuts(self.dataset, prompt.fields, prompt.max_field_tokens, self.tokenizer)

    def n_field_cut(self, item_id: str) -> int:
        """Return how many tokens of an item `prompt.max_field_tokens` cuts."""
        return sum(cut.n_cut for cut in self.prompt_cuts(item_id).values())

    @cached_property
    def labels(self) -> LabelTokens:
        """The answer tokens."""
        return self.builder.labels()

    def item_texts(
        self, fields: tuple[str, ...] | None, max_field_tokens: int, tokenizer: Tokenizer | None
    ) -> Callable[[str], str]:
        """Return a function from item id to item text that remembers what it made."""
        return item_texts(self.dataset, fields, max_field_tokens, tokenizer)


def _reopened(path: Path, config: RunConfig, command: str, base: Workbench | None) -> Workbench:
    return Workbench(RunFolder(path, config, command), base)


def item_texts(
    dataset: Dataset, fields: tuple[str, ...] | None, max_field_tokens: int, tokenizer: Tokenizer | None
) -> Callable[[str], str]:
    """Return a function from item id to item text that remembers what it made.

    Raises:
        ConfigError: a field is none of the dataset's.
    """
    return dataset.item_texts(fields, max_field_tokens, tokenizer)


def item_cuts(
    dataset: Dataset, fields: tuple[str, ...] | None, max_field_tokens: int, tokenizer: Tokenizer | None
) -> Callable[[str], dict[str, FieldCut]]:
    """Return a function from item id to what the cap cuts from its fields; it remembers what it counted."""
    return dataset.item_cuts(fields, max_field_tokens, tokenizer)


def check_fields(dataset: Dataset, fields: tuple[str, ...] | None) -> None:
    """Refuse fields that a dataset does not have.

    Raises:
        ConfigError: naming them.
    """
    dataset.check_fields(fields)


def summarised(splits: Splits, config: RunConfig) -> list[RankingExample]:
    """Return the examples whose profile something reads, in the order of training, validation and test.

    Of the training examples these are the ones that fine-tuning shows with it in an epoch; for the others no
    call is paid.
    """
    train = config.train
    shown = [e for e in splits.train if train and shows_own_profile(train, config.seed, e.example_id)]
    return [*shown, *splits.valid, *splits.test]
