"""Open a service: model and dataset of a run or model folder, and the database; measure the model's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from trsr.data.dataset import Dataset
from trsr.errors import DataError, RunMismatchError, TrsrError
from trsr.experiment.experiment import open_run
from trsr.llm.engines import DEFAULT_ENGINE, EngineConfig
from trsr.llm.opening import open_generator
from trsr.recommend.model_folder import FILE_NAME, read_adapter_info
from trsr.recommend.ranker import RankRequest
from trsr.recommend.recommender import Recommender
from trsr.serve.model_queue import ModelQueue, n_read_at_most
from trsr.serve.profile_updater import ProfileUpdater, run_in_thread
from trsr.serve.ranking_service import RankingService
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.store import ServeStore, StoredSummaries
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import StoredCall, open_store
from trsr.summarize.store_url import is_database_url
from trsr.summarize.summarizer import Summarizer
from trsr.summarize.user_plan import BoundSummarizer, bind_summarizer

ANSWER_SECONDS = 2.0
"""Target time of a ranking when no other request waits."""
PASS_SECONDS = 0.05
"""Target time of a pass; the next one is chosen when it ends."""
MIN_RANKED, MAX_RANKED = 10, 50
MIN_TOKENS = 16_384
"""Least token limit of a request: a machine that is slow at the start may be fast later."""
CACHE_BYTES = 2 * 1024**3
_MIN_PASS_TOKENS = 256
_N_CANDIDATES = 8
_ROUNDS, _SECONDS = 3, 3.0


class Speed(NamedTuple):
    """Tokens that the model reads per second, and token counts of a typical prompt."""

    rate: float
    n_prefix: int
    n_candidate: float

    @property
    def n_ranked(self) -> int:
        """Number of candidates ranked in about `ANSWER_SECONDS`."""
        n = (ANSWER_SECONDS * self.rate - self.n_prefix) / self.n_candidate
        return max(MIN_RANKED, min(MAX_RANKED, int(n)))

    @property
    def pass_tokens(self) -> int:
        """Number of tokens read in about `PASS_SECONDS`."""
        return max(_MIN_PASS_TOKENS, int(PASS_SECONDS * self.rate))


def measure(recommender: Recommender, clock: Callable[[], float] = time.perf_counter) -> Speed | None:
    """Return the best speed of a few passes, the first of which warms up; None for an empty catalogue.

    The prompts use items of the catalogue, each with a prefix of its own.
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
        prompt = recommender.prompt(RankRequest(chosen[:n_recent], f"{turn}", chosen[-_N_CANDIDATES:]))
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


class Serving(NamedTuple):
    """The parts of a service, with one shared catalogue.

    `engine` generates the profiles and is not started; `store` has the existing summaries: a file or the URL
    of a database.
    """

    recommender: Recommender
    dataset: Dataset
    summarizer: BoundSummarizer
    engine: EngineConfig
    store: str | Path


def open_for_serving(model_or_run: Path, data: Path | None = None) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder. Profiles are generated with the training profiles'
            settings, or with the default settings if the folder has none.
        data: The dataset folder; by default the dataset that the model was trained on.

    Raises:
        RunMismatchError: the folder is neither, is not finished, or was made by another program.
        DataError: the dataset is missing or damaged.
        ModelError: the base model is not available.
        EngineError: the model returns margins that are not numbers.
        MissingExtraError: a package is missing.
    """
    if (model_or_run / "config.yaml").is_file():
        run = open_run(model_or_run)
        dataset = run.dataset if data is None else Dataset.open(data)
        recommender = run.open_recommender(dataset, cache_bytes=CACHE_BYTES)
    elif (model_or_run / FILE_NAME).is_file():
        origin = read_adapter_info(model_or_run).origin
        data = data or (Path(origin.data) if origin else None)
        if data is None:
            raise DataError(
                f"{model_or_run} does not say which dataset it was trained on; name one with --data."
            )
        dataset = Dataset.open(data)
        recommender = Recommender.from_pretrained(model_or_run, dataset, cache_bytes=CACHE_BYTES)
    else:
        raise RunMismatchError(
            f"{model_or_run} is neither a run folder nor a model folder; make one with `trsr run` or "
            "`trsr demo`."
        )
    recommender.rerank("probe", ["probe"])
    writer = recommender.summarizer or Summarizer.of(SummaryConfig(), DEFAULT_ENGINE, None)
    # It reads the current items of the catalogue.
    items, config = recommender.catalogue, writer.config
    text = items.texts(config.fields, config.max_field_tokens, None)
    summarizer = replace(
        bind_summarizer(dataset, config),
        items=items.items,
        item_text=text,
        n_tokens=lambda item_id: len(text(item_id).split()),
    )
    store = writer.store or dataset.path / "summaries.sqlite"
    return Serving(recommender, dataset, summarizer, writer.engine, store)


def open_service(
    model_or_run: Path,
    data: Path | None,
    database: Path,
    settings: Settings,
    log: Callable[[str], None] = lambda _: None,
) -> Service:
    """Load a model and open a database; the first time, import the dataset's histories into it.

    Args:
        model_or_run: A run folder, or a model folder.
        data: The dataset folder; None for the model's own.
        database: The file; created if needed.
        settings: Limits of the service.
        log: Receives lines about what was opened.

    Raises:
        InputError: see `open_for_serving` and `ServeStore`.
        RunMismatchError: the database holds the histories of another dataset.
    """
    # In a thread that ends: later only the queue's thread computes.
    serving = run_in_thread(lambda: open_for_serving(model_or_run, data))
    store = ServeStore(database, _written(serving.store, log))
    try:
        log(f"The database of users is {database}.")
        info = serving.dataset.info
        source = f"{info.name}:{info.sha256['events.parquet']}"
        if n_events := store.import_histories(serving.dataset.histories(), source):
            log(f"{n_events} events of the dataset were imported.")
        summarizer, recommender = serving.summarizer, serving.recommender
        engine = open_generator(serving.engine) if summarizer.config.needs_calls else None
        speed = run_in_thread(lambda: measure(recommender)) or Speed(10_000.0, 0, 50.0)  # an empty catalogue
        n_ranked = settings.n_ranked or speed.n_ranked
        rate = f"{speed.rate:,.0f} tokens per second"
        log(f"The model reads {rate} on this machine; it ranks the best {n_ranked} retrieved items.")
        queue = ModelQueue(
            recommender, max_waiting=settings.max_waiting, pass_tokens=speed.pass_tokens, rate=speed.rate
        )
        ranker = RankingService(
            recommender,
            queue,
            recommender.retriever,
            n_ranked=n_ranked,
            max_candidates=settings.max_candidates,
            max_tokens=settings.max_tokens or max(MIN_TOKENS, int(settings.request_seconds * speed.rate)),
            seconds=settings.request_seconds,
        )
        return Service(store, ProfileUpdater(store, summarizer, engine), ranker, summarizer)
    except BaseException:
        store.close()
        raise


def _written(place: str | Path, log: Callable[[str], None]) -> StoredSummaries:
    """Return a function that looks up calls in the store of existing summaries.

    It opens the store each time: SQLite's connections belong to a thread, and look-ups are few.
    """

    def look_up(keys: Sequence[str]) -> dict[str, StoredCall]:
        if not (is_database_url(place) or Path(place).is_file()):
            return {}
        with open_store(place) as store:
            return store.calls(keys)

    try:
        look_up(["any"])
    except TrsrError as error:  # for example a read-only disk; summaries can be regenerated
        log(f"The existing summaries cannot be read and are generated again: {error}")
        return lambda _: {}
    return look_up
