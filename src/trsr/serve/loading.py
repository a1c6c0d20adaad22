"""Opens a service: the model and data of a run folder or a model folder, the database, the model's speed."""

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
    """The parts of a service, over one catalogue: an item put into it is known to all of them.

    `engine` writes the profiles and is not started; `store` is where those written before are kept: a file or
    the URL of a database.
    """

    recommender: Recommender
    dataset: Dataset
    summarizer: BoundSummarizer
    engine: EngineConfig
    store: str | Path


def open_for_serving(model_or_run: Path, data: Path | None = None) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder. Profiles are made as those it was trained on, or with
            the default settings where it does not say how.
        data: The dataset folder; by default the one it was trained on, where it says which.

    Raises:
        RunMismatchError: the folder is neither, is not finished, or was made by something else.
        DataError: there is no dataset, or it is damaged.
        ModelError: the base model cannot be had.
        EngineError: it gives margins that are no numbers.
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
    # It reads items as the catalogue has them now.
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
    serving = run_in_thread(
        lambda: open_for_serving(model_or_run, data)
    )  # only the queue's thread computes later
    store = ServeStore(database, _written(serving.store, log))
    try:
        log(f"Users are kept in {database}.")
        info = serving.dataset.info
        source = f"{info.name}:{info.sha256['events.parquet']}"
        if n_events := store.import_histories(serving.dataset.histories(), source):
            log(f"{n_events} events of the data set were put there.")
        summarizer, recommender = serving.summarizer, serving.recommender
        engine = open_generator(serving.engine) if summarizer.config.needs_calls else None
        speed = run_in_thread(lambda: measure(recommender)) or Speed(10_000.0, 0, 50.0)  # nothing to rank yet
        n_ranked = settings.n_ranked or speed.n_ranked
        rate = f"{speed.rate:,.0f} tokens a second"
        log(f"The model reads {rate} here; it ranks the best {n_ranked} items found.")
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
    """Return a function that looks calls up in the store of summaries that were written before.

    The store is opened for each look-up: SQLite's connections belong to a thread, and few updates ask.
    """

    def look_up(keys: Sequence[str]) -> dict[str, StoredCall]:
        if not (is_database_url(place) or Path(place).is_file()):
            return {}
        with open_store(place) as store:
            return store.calls(keys)

    try:
        look_up(["any"])
    except TrsrError as error:  # as on a medium that cannot be written; its texts can be made again
        log(f"The run's summaries are not used, they are written again: {error}")
        return lambda _: {}
    return look_up
