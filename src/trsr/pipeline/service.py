"""Puts a running service together: model, database, queue, and the thread in which profiles follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trsr.data.tables import Dataset
from trsr.errors import RunMismatchError, TrsrError
from trsr.llm.engines import open_generator
from trsr.llm.openmp import apart
from trsr.pipeline.serving import Serving, open_for_serving
from trsr.serve.batching import ModelQueue
from trsr.serve.follower import Follower
from trsr.serve.ranking import Ranker
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.speed import MIN_TOKENS, Speed, measure
from trsr.serve.sqlite_store import SqliteServeStore, Written
from trsr.summarize.store import StoredCall
from trsr.summarize.stores import open_store


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
