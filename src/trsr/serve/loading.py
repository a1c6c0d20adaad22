"""Opens a service: the model and data of a run folder or a model folder, the database, the model's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError, RunMismatchError, TrsrError
from trsr.experiment.config import FolderData, load_config
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
from trsr.serve.model_queue import ModelQueue, n_read_at_most
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.ranking import Ranker
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.store import ServeStore, StoredSummaries
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import StoredCall, open_store
from trsr.summarize.user_plan import Summariser, make_summariser

ANSWER_SECONDS = 2.0
"""What ranking for a user should take where no other request waits."""
PASS_SECONDS = 0.05
"""What a pass should take: the next one is chosen when it ends."""
MIN_RANKED, MAX_RANKED = 10, 50
MIN_TOKENS = 16_384
"""Read for one request on the slowest machine too: one that is busy at the start may be quick later."""
CACHE_BYTES = 2 * 1024**3
_MIN_PASS_TOKENS = 256
_N_CANDIDATES = 8
_ROUNDS, _SECONDS = 3, 3.0


class Speed(NamedTuple):
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
        n_tokens, n_prefix = n_read_at_most(prompt), len(prompt.group.prefix)
        speed = Speed(n_tokens / seconds, n_prefix, (n_tokens - n_prefix) / len(prompt.group.suffixes))
        if best is None or speed.rate > best.rate:
            best = speed
        if clock() - began > _SECONDS:
            break
    return best


@dataclass(frozen=True)
class Serving:
    """The parts of a service, over one catalogue: an item put into it is known to all of them.

    `engine` writes the profiles and is not started; `summaries` is where the run keeps those it wrote: a
    file, the URL of a database, or None.
    """

    recommender: Recommender
    retriever: Retriever
    summariser: Summariser
    engine: EngineConfig
    dataset: Dataset
    summaries: str | Path | None


class _Source(NamedTuple):
    """What a run folder or a model folder says."""

    recommender: RecommenderConfig
    adapter: Path | None
    prompt: PromptConfig
    summary: SummaryConfig
    engine: EngineConfig
    data: Path | None
    summaries: str | Path | None


def open_for_serving(model_or_run: Path, data: Path | None = None) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder: then profiles are made with the default summary
            settings and engine, since a model folder does not say how they were made.
        data: The dataset folder; needed with a model folder, else the run's own is the default.

    Raises:
        RunMismatchError: the folder is neither, is not finished, or was made by something else.
        DataError: there is no dataset, or it is damaged.
        ModelError: the base model cannot be had.
        EngineError: it gives margins that are no numbers.
        MissingExtraError: a package is missing.
    """
    from trsr.llm.transformers import HfTokenizer
    from trsr.recommend.scorer import PrefixCache

    source = _source(model_or_run)
    folder = data or source.data
    if folder is None:
        raise DataError(f"{model_or_run} is a model folder, which holds no data; name a dataset with --data.")
    dataset = Dataset.open(folder)
    prompt = source.prompt
    check_context(source.recommender.model, prompt)
    dataset.check_fields(prompt.fields)
    tokenizer = HfTokenizer(models.hf_folder(source.recommender.model))
    template = load_ranking_template(prompt.template, dataset.info.domain)
    catalogue = Catalogue(dataset.catalogue(), dataset.info.text_fields)
    texts = catalogue.texts(prompt.fields, prompt.max_field_tokens, tokenizer)
    builder = PromptBuilder(template, prompt, tokenizer, texts)
    labels = builder.labels()
    cache = PrefixCache(CACHE_BYTES)
    scorer, info = open_scorer(
        source.recommender, source.adapter, template.hash, tokenizer.prompt_version, cache=cache
    )
    saved = None if info is None else info.calibration
    recommender = Recommender(
        scorer,
        builder,
        labels if info is None else info.labels,
        catalogue,
        name=model_or_run.resolve().name,
        calibration=None if saved is None else Calibration.from_json(saved),
        knows=scorer.knows,
    )
    recommender.rerank("probe", ["probe"])
    n_users = dataset.events().group_by("item_id").agg(pl.col("user_id").n_unique())
    return Serving(
        recommender=recommender,
        retriever=Retriever(catalogue, dataset.info.category_fields, dict(n_users.collect().iter_rows())),
        summariser=_live(make_summariser(dataset, source.summary), catalogue),
        engine=source.engine,
        dataset=dataset,
        summaries=source.summaries,
    )


def _source(folder: Path) -> _Source:
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml")
        adapter = folder / "model" if config.train is not None else None
        own = config.data.path if isinstance(config.data, FolderData) else folder / "data"
        prompt = _trained_prompt(adapter, config.prompt)
        file = folder / "summaries.sqlite"
        summaries = config.store or (file if file.is_file() else None)
        return _Source(config.recommender, adapter, prompt, config.summary, config.engine, own, summaries)
    if (folder / FILE_NAME).is_file():
        info = read_adapter_info(folder)
        prompt = _trained_prompt(folder, PromptConfig.model_validate(info.prompt))
        base = RecommenderConfig.model_validate({"model": info.base_model, "quantization": info.quantization})
        return _Source(base, folder, prompt, SummaryConfig(), DEFAULT_ENGINE, None, None)
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


def open_service(
    model_or_run: Path,
    data: Path | None,
    database: Path,
    settings: Settings,
    log: Callable[[str], None] = lambda _: None,
) -> Service:
    """Load a model and open a database; the first time, the dataset's histories are put into it.

    Args:
        model_or_run: A run folder, or a model folder.
        data: The dataset folder; None for the run's own.
        database: The file; made as needed.
        settings: How much the service takes.
        log: Takes lines about what was opened.

    Raises:
        InputError: as `open_for_serving` and `ServeStore` say.
        RunMismatchError: the database holds the histories of another dataset.
    """
    serving = apart(lambda: open_for_serving(model_or_run, data))  # only the queue's thread computes later
    store = ServeStore(database, _written(serving.summaries, log))
    try:
        log(f"Users are kept in {database}.")
        info = serving.dataset.info
        source = f"{info.name}:{info.sha256['events.parquet']}"
        if n_events := store.import_histories(serving.dataset.histories(), source):
            log(f"{n_events} events of the data set were put there.")
        summariser, recommender = serving.summariser, serving.recommender
        engine = open_generator(serving.engine) if summariser.config.needs_calls else None
        speed = apart(lambda: measure(recommender)) or Speed(10_000.0, 0, 50.0)  # nothing to rank yet
        n_ranked = settings.n_ranked or speed.n_ranked
        rate = f"{speed.rate:,.0f} tokens a second"
        log(f"The model reads {rate} here; it ranks the best {n_ranked} items found.")
        queue = ModelQueue(
            recommender, max_waiting=settings.max_waiting, pass_tokens=speed.pass_tokens, rate=speed.rate
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
        return Service(store, ProfileUpdater(store, summariser, engine), ranker, summariser)
    except BaseException:
        store.close()
        raise


def _written(summaries: str | Path | None, log: Callable[[str], None]) -> StoredSummaries:
    """Return a function that looks calls up in a run's own store.

    The store is opened for each look-up: SQLite's connections belong to a thread, and few updates ask.
    """

    def look_up(keys: Sequence[str]) -> dict[str, StoredCall]:
        if summaries is None or (isinstance(summaries, Path) and not summaries.is_file()):
            return {}
        with open_store(summaries) as store:
            return store.calls(keys)

    try:
        look_up(["any"])
    except TrsrError as error:  # as on a medium that cannot be written; its texts can be made again
        log(f"The run's summaries are not used, they are written again: {error}")
        return lambda _: {}
    return look_up
