"""Opens a service: a run folder, or a model folder and a dataset, its database, the speed of its model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError, RunMismatchError, TrsrError
from trsr.experiment.config import FolderData, load_config
from trsr.experiment.experiment import check_fields
from trsr.experiment.preflight import check_context
from trsr.llm import models
from trsr.llm.cpu import apart
from trsr.llm.engines import DEFAULT_ENGINE, EngineConfig
from trsr.llm.opening import open_generator
from trsr.recommend.calibration import Calibration
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.loading import RecommenderConfig, open_scorer
from trsr.recommend.model_folder import FILE_NAME, read_adapter_info
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.recommend.questions import Ask
from trsr.recommend.recommender import Recommender
from trsr.recommend.retrieval import Retriever
from trsr.serve.database import SqliteServeStore, Written
from trsr.serve.model_queue import ModelQueue, n_read_at_most
from trsr.serve.profile_updater import Follower
from trsr.serve.ranking import Ranker
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import StoredCall, open_store
from trsr.summarize.user_plan import Summariser, make_summariser

ANSWER_SECONDS = 2.0
"""What ranking for a user should take where nobody else asks."""
PASS_SECONDS = 0.05
"""What a pass should take: the next one is chosen when it ends."""
MIN_RANKED, MAX_RANKED = 10, 50
MIN_TOKENS = 16_384
"""Read for one request on the slowest machine too: one that is busy at the start may be quick later."""
_MIN_PASS_TOKENS = 256
_N_CANDIDATES = 8
_ROUNDS, _SECONDS = 3, 3.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens that the model reads in a second, and those of an ordinary prompt's parts."""

    rate: float
    n_prefix: int
    n_candidate: float

    @property
    def n_ranked(self) -> int:
        """Candidates that are ranked in about `ANSWER_SECONDS`."""
        n = (ANSWER_SECONDS * self.rate - self.n_prefix) / self.n_candidate
        return max(MIN_RANKED, min(MAX_RANKED, int(n)))

    @property
    def pass_tokens(self) -> int:
        """Tokens that are read in about `PASS_SECONDS`."""
        return max(_MIN_PASS_TOKENS, int(PASS_SECONDS * self.rate))


def measure(recommender: Recommender, clock: Callable[[], float] = time.perf_counter) -> Speed | None:
    """Return the best of a few readings, the first of which warms up; None for an empty catalogue.

    The prompts are of items of the catalogue, no two with the same prefix.
    """
    items = list(recommender.catalogue.items)
    if not items:
        return None
    n_recent = max(1, recommender.builder.config.n_recent)
    best: Speed | None = None
    began = clock()
    for turn in range(_ROUNDS + 1):
        first = turn % len(items)
        chosen = (items[first:] + items[:first])[: n_recent + _N_CANDIDATES]
        prompt = recommender.prompt(Ask(chosen[:n_recent], f"{turn}", chosen[-_N_CANDIDATES:]))
        started = clock()
        for _ in recommender.read([prompt.group]):
            pass
        seconds = max(clock() - started, 1e-6)
        group = prompt.group
        n_suffixes = n_read_at_most(prompt) - len(group.prefix)
        speed = Speed(n_read_at_most(prompt) / seconds, len(group.prefix), n_suffixes / len(group.suffixes))
        if best is None or speed.rate > best.rate:
            best = speed
        if clock() - began > _SECONDS:
            break
    return best


CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Serving:
    """The parts of a service, over one catalogue: an item put into it is known to all of them."""

    recommender: Recommender
    retriever: Retriever
    summariser: Summariser
    engine: EngineConfig
    """Writes the profiles; not started."""
    dataset: Dataset
    catalogue: Catalogue
    summaries: str | Path | None
    """Where the run keeps the summaries it wrote: a file, or the URL of a database; None if nowhere."""


@dataclass(frozen=True)
class _Settings:
    """What a run folder or a model folder says."""

    recommender: RecommenderConfig
    adapter: Path | None
    prompt: PromptConfig
    summary: SummaryConfig
    engine: EngineConfig
    data: Path | None
    summaries: str | Path | None


def open_for_serving(
    model_or_run: Path, data: Path | None = None, *, cache_bytes: int = CACHE_BYTES
) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder: then profiles are made with the default summary
            settings and engine, since a model folder does not say how they were made.
        data: The dataset folder; needed with a model folder, else the run's own is the default.
        cache_bytes: Most memory for prefixes read before.

    Raises:
        RunMismatchError: the folder is neither, is not finished, or was made by something else.
        DataError: there is no dataset, or it is damaged.
        ModelError: the base model cannot be had.
        EngineError: it gives margins that are no numbers.
        MissingExtraError: a package is missing.
    """
    from trsr.llm.transformers import HfTokenizer
    from trsr.recommend.scorer import PrefixCache

    settings = _settings(model_or_run)
    folder = data or settings.data
    if folder is None:
        raise DataError(f"{model_or_run} is a model folder, which holds no data; name a dataset with --data.")
    dataset = Dataset.open(folder)
    prompt = settings.prompt
    check_context(settings.recommender.model, prompt)
    check_fields(dataset, prompt.fields)
    tokenizer = HfTokenizer(models.hf_folder(settings.recommender.model))
    template = load_ranking_template(prompt.template, dataset.info.domain)
    catalogue = Catalogue(dataset.catalogue(), dataset.info.text_fields)
    texts = catalogue.texts(prompt.fields, prompt.max_field_tokens, tokenizer)
    builder = PromptBuilder(template, prompt, tokenizer, texts)
    labels = builder.labels()
    scorer, info = open_scorer(
        settings.recommender,
        settings.adapter,
        template.hash,
        tokenizer.prompt_version,
        cache=PrefixCache(cache_bytes),
    )
    saved = info.calibration if info is not None else None
    recommender = Recommender(
        scorer,
        builder,
        labels if info is None else info.labels,
        catalogue,
        name=model_or_run.resolve().name,
        calibration=Calibration.from_json(saved) if saved is not None else None,
        knows=scorer.knows,
    )
    recommender.rerank("probe", ["probe"])
    return Serving(
        recommender=recommender,
        retriever=Retriever(catalogue, dataset.info.category_fields, _popularity(dataset)),
        summariser=_live(make_summariser(dataset, settings.summary), catalogue),
        engine=settings.engine,
        dataset=dataset,
        catalogue=catalogue,
        summaries=settings.summaries,
    )


def _settings(folder: Path) -> _Settings:
    """Read a run folder or a model folder."""
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml")
        adapter = folder / "model" if config.train is not None else None
        own = config.data.path if isinstance(config.data, FolderData) else folder / "data"
        prompt = _trained_prompt(adapter, config.prompt)
        file = folder / "summaries.sqlite"
        summaries = config.store or (file if file.is_file() else None)
        return _Settings(config.recommender, adapter, prompt, config.summary, config.engine, own, summaries)
    if (folder / FILE_NAME).is_file():
        info = read_adapter_info(folder)
        prompt = _trained_prompt(folder, PromptConfig.model_validate(info.prompt))
        base = RecommenderConfig.model_validate({"model": info.base_model, "quantization": info.quantization})
        return _Settings(base, folder, prompt, SummaryConfig(), DEFAULT_ENGINE, None, None)
    raise RunMismatchError(
        f"{folder} is neither a run folder nor a model folder; make one with `trsr run` or `trsr demo`."
    )


def _trained_prompt(adapter: Path | None, prompt: PromptConfig) -> PromptConfig:
    """Name the template that the adapter was trained on, whatever the domain of the data it now serves."""
    if adapter is None:
        return prompt
    return prompt.model_copy(update={"template": read_adapter_info(adapter).template})


def _live(summariser: Summariser, catalogue: Catalogue) -> Summariser:
    """Let a summariser read items as the catalogue has them now."""
    text = catalogue.texts(summariser.config.fields, summariser.config.max_field_tokens, None)
    return replace(
        summariser,
        items=catalogue.items,
        item_text=text,
        n_tokens=lambda item_id: len(text(item_id).split()),
    )


def _popularity(dataset: Dataset) -> dict[str, int]:
    """Return how many users met each item."""
    counts = dataset.events().group_by("item_id").agg(pl.col("user_id").n_unique())
    return dict(counts.collect().iter_rows())


def open_service(
    model_or_run: Path,
    data: Path | None,
    database: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
) -> Service:
    """Load a model and open a database; the first time, the dataset's histories are put into it.

    Args:
        model_or_run: A run folder, or a model folder.
        data: The dataset folder; None for the run's own.
        database: The file; made as needed.
        settings: How much the service takes.
        say: Is told what takes long.

    Raises:
        InputError: as `open_for_serving` and `SqliteServeStore` say.
        RunMismatchError: the database holds the histories of another dataset.
    """
    serving = apart(lambda: open_for_serving(model_or_run, data))  # only the queue's thread computes later
    store = SqliteServeStore(database, _written(serving.summaries, say))
    try:
        say(f"Users are kept in {database}.")
        source = _fingerprint(serving.dataset)
        if (before := store.sources()) and source not in before:
            raise RunMismatchError(
                f"{database} holds the histories of another data set, or of this one before its events "
                "changed: name the data set that it was started with, or a new file with --db."
            )
        if n_events := store.import_histories(serving.dataset.histories(), source):
            say(f"{n_events} events of the data set were put there.")
        return _join(serving, store, settings, say)
    except BaseException:
        store.close()
        raise


def _join(
    serving: Serving, store: SqliteServeStore, settings: Settings, say: Callable[[str], None]
) -> Service:
    summariser, recommender = serving.summariser, serving.recommender
    engine = open_generator(serving.engine) if summariser.config.needs_calls else None
    speed = apart(lambda: measure(recommender)) or Speed(10_000.0, 0, 50.0)  # nothing to rank yet
    n_ranked = settings.n_ranked or speed.n_ranked
    say(f"The model reads {speed.rate:,.0f} tokens a second here; it ranks the best {n_ranked} items found.")
    queue = ModelQueue(
        recommender,
        max_waiting=settings.max_waiting,
        pass_tokens=speed.pass_tokens,
        rate=speed.rate,
    )
    ranker = Ranker(
        recommender,
        queue,
        serving.retriever,
        n_ranked=n_ranked,
        max_candidates=settings.max_candidates,
        max_tokens=settings.max_tokens or max(MIN_TOKENS, int(settings.request_seconds * speed.rate)),
        seconds=settings.request_seconds,
    )
    return Service(store, Follower(store, summariser, engine), ranker, summariser)


def _written(summaries: str | Path | None, say: Callable[[str], None]) -> Written:
    """Return what looks calls up in a run's own store.

    It is opened for each question: SQLite's connections belong to a thread, and few updates ask.
    """

    def look_up(keys: Sequence[str]) -> dict[str, StoredCall]:
        if summaries is None or (isinstance(summaries, Path) and not summaries.is_file()):
            return {}
        with open_store(summaries) as store:
            return store.calls(keys)

    try:
        look_up(["any"])
    except TrsrError as error:  # as on a medium that cannot be written; its texts can be made again
        say(f"The run's summaries are not used, they are written anew: {error}")
        return lambda _: {}
    return look_up


def _fingerprint(dataset: Dataset) -> str:
    """Return a name for a dataset's events, which are imported once."""
    return f"{dataset.info.name}:{dataset.info.sha256['events.parquet']}"
