"""A run as one object: everything derived from its configuration and stages, each part loaded when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from trsr.baselines.simple import Bm25Index
from trsr.data.dataset import Dataset
from trsr.errors import RunMismatchError
from trsr.experiment.config import FolderData, RunConfig, load_config
from trsr.experiment.ray import RayRunner
from trsr.experiment.run_folder import RunFolder
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.chat_format import Tokenizer
from trsr.recommend.prompt import PromptBuilder, load_ranking_template
from trsr.recommend.ranker import Ranker
from trsr.recommend.recommender import Recommender
from trsr.splitting.split import Split
from trsr.storage import read_json, read_table
from trsr.summarize.summarizer import Summarizer
from trsr.summarize.user_plan import BoundSummarizer, bind_summarizer
from trsr.templating import Template
from trsr.text import FieldCut
from trsr.train.config import ProfileKind
from trsr.train.dataset import shows_own_profile
from trsr.types import History, RankedItem, RankingExample

NO_CAP = 10_000
"""More tokens than a field has."""


class Experiment:
    """Everything derived from a run's configuration and its finished stages.

    Attributes:
        folder: The run folder.
        config: Its configuration.
        base: The run of which this is a variant; a variant shares its dataset and store.
        notify: Receives a line for each finished stage.
        runner: Where profiles are written and the language model ranks; None for this process.
        fitted: Baselines fitted by this process, which fusions share.
    """

    def __init__(self, folder: RunFolder, base: Experiment | None = None) -> None:
        self.folder = folder
        self.config = folder.config
        self.base = base
        self.notify: Callable[[str], None] = lambda _: None
        self.runner: RayRunner | None = base.runner if base else None
        self.fitted: dict[str, Ranker] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call that opens the run folder in another process."""
        return _reopened, (self.folder.path.resolve(), self.config, self.folder.command, self.base)

    @property
    def store_place(self) -> str | Path:
        """The store of summaries: a file, or the URL of a database."""
        if self.base:
            return self.base.store_place
        return self.config.store or self.folder.path / "summaries.sqlite"

    @property
    def dataset_path(self) -> Path:
        """The dataset folder: the configured one, or the one made inside the run."""
        if self.base:
            return self.base.dataset_path
        data = self.config.data
        return data.path if isinstance(data, FolderData) else self.folder.path / "data"

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset."""
        return self.base.dataset if self.base else Dataset.open(self.dataset_path)

    @cached_property
    def splits(self) -> Split:
        """The examples (stage `examples`)."""
        return Split.read(self.folder.path / "examples", self.dataset, self.config.protocol, self.config.seed)

    def all_examples(self) -> list[RankingExample]:
        """Return training, validation and test examples."""
        return [*self.splits.train, *self.splits.valid, *self.splits.test]

    def summarized_examples(self) -> list[RankingExample]:
        """Return the examples that a profile is written for."""
        return summarized(self.splits, self.config)

    @cached_property
    def summarizer(self) -> BoundSummarizer:
        """The summarizer with its texts."""
        return bind_summarizer(self.dataset, self.config.summary)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json` (stage `evaluate`)."""
        return dict(read_json(self.folder.path / "metrics.json"))

    @property
    def scores(self) -> pl.DataFrame:
        """One row per ranker, test example and candidate (stage `rank`)."""
        return read_table(self.folder.path / "scores.parquet")

    @property
    def profile_table(self) -> pl.DataFrame:
        """One row per profile of an example (stage `summarize`)."""
        return read_table(self.folder.path / "profiles.parquet")

    @cached_property
    def profiles(self) -> dict[str, str]:
        """Profile texts by example id (stage `summarize`)."""
        frame = read_table(self.folder.path / "profiles.parquet", ["example_id", "text"])
        return dict(frame.iter_rows())

    @cached_property
    def counted_profiles(self) -> dict[str, str]:
        """Counted profiles by example id, for any method of the run."""
        return {
            e.example_id: self.summarizer.counted(History(e.user_id, e.history)) for e in self.all_examples()
        }

    def profiles_as(self, kind: ProfileKind) -> dict[str, str]:
        """Return one kind of profile by example id, for the examples that have one."""
        return {} if kind == "none" else self.counted_profiles if kind == "counted" else self.profiles

    @cached_property
    def summary_texts(self) -> dict[str, list[str]]:
        """The texts of every call by example id, the texts of blocks first (stage `summarize`)."""
        frame = read_table(self.folder.path / "profiles.parquet", ["example_id", "texts"])
        return dict(frame.iter_rows())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The recommender's tokenizer."""
        from trsr.llm.transformers import HfTokenizer

        return HfTokenizer(models.hf_folder(self.config.recommender.model))

    @cached_property
    def bm25_index(self) -> Bm25Index:
        """The index of all items' whole texts, for the ranker `bm25` and for judging profiles.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        return Bm25Index.of(self.dataset)

    @cached_property
    def ranking_template(self) -> Template:
        """The ranking prompt's template."""
        return load_ranking_template(self.config.prompt.template, self.dataset.info.domain)

    @cached_property
    def builder(self) -> PromptBuilder:
        """Builds ranking prompts."""
        prompt = self.config.prompt
        texts = self.dataset.item_texts(prompt.fields, prompt.max_field_tokens, self.tokenizer)
        return PromptBuilder(self.ranking_template, prompt, self.tokenizer, texts)

    @cached_property
    def labels(self) -> LabelTokens:
        """The answer tokens."""
        return self.builder.labels()

    @cached_property
    def prompt_cuts(self) -> Callable[[str], dict[str, FieldCut]]:
        """Maps an item's id to the cuts of its fields by `prompt.max_field_tokens`."""
        prompt = self.config.prompt
        return self.dataset.item_cuts(prompt.fields, prompt.max_field_tokens, self.tokenizer)

    def n_field_cut(self, item_id: str) -> int:
        """Return how many tokens of an item `prompt.max_field_tokens` cuts."""
        return sum(cut.n_cut for cut in self.prompt_cuts(item_id).values())

    def record_cuts(self, part: Literal["prompt", "summary"], items: Iterable[str]) -> None:
        """Add to `field_cuts.json` how much the `max_field_tokens` of a part cuts from the texts of items.

        Caps of prompts count tokens, caps of summaries count words.
        """
        settings = self.config.prompt if part == "prompt" else self.config.summary
        cap = settings.max_field_tokens
        cuts = self.prompt_cuts if part == "prompt" else self.dataset.item_cuts(settings.fields, cap, None)
        fields: dict[str, dict[str, int]] = {}
        for item in items:
            for field, cut in cuts(item).items():
                counts = fields.setdefault(field, {"texts": 0, "cut_texts": 0, "tokens": 0, "cut_tokens": 0})
                counts["texts"] += 1
                counts["cut_texts"] += cut.n_cut > 0
                counts["tokens"] += cut.n_tokens
                counts["cut_tokens"] += cut.n_cut
        known = self.folder.read_json("field_cuts.json", {})
        self.folder.write_json("field_cuts.json", {**known, part: {"cap": cap, "fields": fields}})

    @cached_property
    def recommender(self) -> Recommender:
        """The fine-tuned model, or the base model if none was trained, over the run's dataset."""
        return self.open_recommender(self.dataset)

    def open_recommender(self, dataset: Dataset, *, cache_bytes: int = 0) -> Recommender:
        """Open the run's model over the items of a dataset; raises what `Recommender.open` raises."""
        config = self.config
        return Recommender.open(
            config.recommender,
            self.folder.path / "model" if config.train is not None else None,
            config.prompt,
            dataset,
            name=self.folder.path.resolve().name,
            summarizer=Summarizer.of(config.summary, config.engine, self.store_place),
            cache_bytes=cache_bytes,
        )

    def recommend(
        self, user_id: str, top_n: int = 10, *, filters: Mapping[str, str] | None = None
    ) -> list[RankedItem]:
        """Recommend items to a user of the run's dataset, best first; see `Recommender.recommend`."""
        return self.recommender.recommend(user_id, top_n, filters=filters)


def open_run(folder: str | Path) -> Experiment:
    """Open a run folder that `trsr run` or `trsr demo` wrote; opening writes nothing.

    Raises:
        RunMismatchError: it is not a run folder.
        ConfigError: its configuration is wrong.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise RunMismatchError(f"{folder} is not a run folder; make one with `trsr run` or `trsr demo`.")
    return Experiment(RunFolder(folder, load_config(folder / "config.yaml")))


def _reopened(path: Path, config: RunConfig, command: str, base: Experiment | None) -> Experiment:
    return Experiment(RunFolder(path, config, command), base)


def summarized(splits: Split, config: RunConfig) -> list[RankingExample]:
    """Return the examples whose profile is read, in the order of training, validation and test.

    A training example is included if fine-tuning shows its profile in some epoch; the others need no call.
    """
    train = config.train
    shown = [e for e in splits.train if train and shows_own_profile(train, config.seed, e.example_id)]
    return [*shown, *splits.valid, *splits.test]
