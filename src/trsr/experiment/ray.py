"""Writes profiles on the workers of a Ray cluster, which share one store of summaries.

Every worker commits each call to the store when it is answered, as the local runner does, so that neither a
worker's end nor the driver's loses or repeats one. What a piece of the users has come to goes back to the
driver as a table.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError, EngineError
from trsr.experiment.config import RankerName
from trsr.experiment.experiment import Place, RayRunner, Workbench, reopened
from trsr.experiment.ranking import make_ranker, write_part
from trsr.experiment.ray_workers import ClaimTable, RemoteClaims, stay, wait_for_workers
from trsr.llm.engines import EngineConfig, open_generator
from trsr.progress import bar
from trsr.storage import write_whole
from trsr.summarize.executor import SummaryProgress, complete
from trsr.summarize.stores import is_database, open_store
from trsr.summarize.summarizer import profile_facts, profile_table
from trsr.summarize.user_plan import Summariser, profile, start_fold
from trsr.types import History, RankingExample

Part = tuple[Path, Sequence[RankingExample]]


class RankWorker:
    """Writes parts with one model for all of them; a part that is there is not made again."""

    def __init__(self, places: Sequence[Place], name: RankerName, output: Path, *, served: bool) -> None:
        stay(output)
        self._ranker = make_ranker(reopened(places), name, served=served)

    def __call__(self, part: Part) -> int:
        """Score the examples of a part, and return how many there are."""
        file, examples = part
        if not file.exists():  # it may be there when the worker before died in the moment after
            write_part(file, self._ranker, examples)
        return len(examples)


def rank_on_ray(
    bench: Workbench,
    name: RankerName,
    parts: Mapping[Path, Sequence[RankingExample]],
    runner: RayRunner,
    on_progress: Callable[[int], None],
    *,
    served: bool = True,
) -> None:
    """Write parts of one ranker's scores, in any order.

    Args:
        bench: The run; its folder is on a disk that all workers share.
        name: The ranker.
        parts: Examples by the file that holds their scores.
        runner: How many workers.
        on_progress: Told how many examples are done.
        served: As for `make_ranker`.

    Raises:
        BudgetError: a prompt cannot fit its budget.
        EngineError: Ray gave up; finished parts are kept.
        OutputError: the run folder cannot be written.
    """
    from trsr.experiment import ray_cluster

    pieces: list[Part] = [(file.resolve(), examples) for file, examples in parts.items()]
    output = pieces[0][0].with_name(name)
    wait_for_workers(output)
    ray_cluster.start(runner)
    done = 0
    opened = partial(RankWorker, bench.places(), name, output, served=served)
    for _, n_examples in ray_cluster.do_pieces(pieces, opened, runner):
        done += n_examples
        on_progress(done)


MAX_USERS = 1000
"""Most users of a piece: enough to keep an engine full, and few enough to share among workers."""
PIECES_A_WORKER = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source's profiles; `owner` names it among all that share calls."""

    owner: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where workers find what is to be summarised.

    Attributes:
        summariser: What the texts depend on.
        histories: Start and stop of a piece to its histories, each with the name of its profile.
    """

    summariser: Summariser
    histories: Callable[[int, int], list[tuple[str, History]]]


@dataclass(frozen=True, slots=True)
class Written:
    """What a piece has come to: its profiles, or why some are unfinished."""

    table: pl.DataFrame | None
    progress: SummaryProgress
    error: str | None = None


class ProfileWorker:
    """Writes the profiles of pieces, with one engine and one connection to the store for all of them."""

    def __init__(
        self,
        open_source: Callable[[], Source],
        engine: EngineConfig,
        store: str,
        claims: object,
        output: Path,
    ) -> None:
        self._lock = stay(output)
        self._source = open_source()
        self._store = open_store(store)
        self._engine = open_generator(engine) if self._source.summariser.config.needs_calls else None
        self._claims = claims

    def close(self) -> None:
        """Give everything back; a worker of Ray does so by its end."""
        self._store.close()
        if self._engine is not None:
            self._engine.close()
        os.close(self._lock)

    def __call__(self, piece: Piece) -> Written:
        """Write the profiles of a piece; failed calls are told, not raised, so that other pieces go on."""
        summariser = self._source.summariser
        named = self._source.histories(piece.start, piece.stop)
        folds = [start_fold(history, summariser) for _, history in named]
        claims = RemoteClaims(self._claims, piece.owner)
        last = SummaryProgress()

        def keep(progress: SummaryProgress) -> None:
            nonlocal last
            last = progress
            claims.keep()

        try:
            complete(folds, summariser, self._engine, self._store, keep, claims)
        except EngineError as error:
            last.n_users, last.n_users_done = len(folds), sum(fold.done for fold in folds)
            return Written(None, last, str(error))
        finally:
            claims.release()
        profiles = [profile(fold, summariser) for fold in folds]
        return Written(profile_table([name for name, _ in named], folds, profiles), last)


def write_on_ray(
    slices: Sequence[tuple[int, int]],
    n_users: int,
    open_source: Callable[[], Source],
    engine: EngineConfig,
    store: str | Path,
    runner: RayRunner,
    file: Path,
) -> dict[str, int | float]:
    """Write profiles into a file and return counts (see `profile_facts`); the order is that of the slices.

    Args:
        slices: Start and stop of every piece, as `open_source` counts.
        n_users: Profiles of all of them.
        open_source: Opens the source in a worker.
        engine: Each worker has one of its own.
        store: A file, for workers on one machine, or a database.
        runner: How many workers.
        file: What `save_profiles` makes.

    Raises:
        ConfigError: the cluster has several machines, and the store is a file.
        EngineError: some calls failed; the finished ones are kept.
        StoreError, OutputError: the store or the folder of `file` cannot be used.
    """
    from trsr.experiment import ray_cluster

    started = time.perf_counter()
    open_store(store).close()  # whatever is wrong with it is said before a cluster is waited for
    with bar("Summarising") as shown:
        waiting = "waiting for the workers of an earlier command to end"
        wait_for_workers(file, lambda: shown.update(0, n_users, waiting))
        ray_cluster.start(runner)
        _check_shared(store, ray_cluster.n_machines())
        claims, job = ray_cluster.make_actor(ClaimTable), ray_cluster.job_id()
        place = str(store) if is_database(store) else str(Path(store).resolve())
        pieces = [Piece(f"{job}-{i}", start, stop) for i, (start, stop) in enumerate(slices)]
        total, tables, errors = SummaryProgress(), dict[int, pl.DataFrame](), list[str]()
        open_work = partial(ProfileWorker, open_source, engine, place, claims, file.resolve())
        for number, written in ray_cluster.do_pieces(pieces, open_work, runner):
            _add(total, written.progress)
            if written.table is not None:
                tables[number] = written.table
            if written.error is not None:
                errors.append(written.error)
            rate = total.n_generated_tokens / (time.perf_counter() - started)
            shown.update(total.n_users_done, n_users, f"{rate:.0f} tokens/s")
    if errors:
        raise EngineError(
            f"{total.n_calls_failed} summary calls failed in {len(errors)} of {len(pieces)} parts "
            f"(the first said: {errors[0]})",
            retryable=True,
        )
    table = pl.concat([tables[number] for number in range(len(pieces))])
    write_whole(file, table.write_parquet)
    return profile_facts(len(table), total, time.perf_counter() - started)


def _check_shared(store: str | Path, n_machines: int) -> None:
    """Refuse a file for workers on several machines: SQLite's locks do not reach from one to another."""
    if n_machines > 1 and not is_database(store):
        raise ConfigError(
            f"The store {store} is a file, which the {n_machines} machines of the Ray cluster cannot share; "
            "name a database with --store postgresql://USER:PASSWORD@HOST/DATABASE."
        )


def _add(total: SummaryProgress, part: SummaryProgress) -> None:
    for counted in fields(SummaryProgress):
        setattr(total, counted.name, getattr(total, counted.name) + getattr(part, counted.name))


def users_a_piece(n_users: int, runner: RayRunner) -> int:
    """Return how many users go to a worker at once."""
    return max(1, min(MAX_USERS, math.ceil(n_users / (PIECES_A_WORKER * runner.concurrency))))


def dataset_slices(dataset: Dataset, n_users: int, limit: int | None) -> tuple[list[tuple[int, int]], int]:
    """Cut a dataset's events into slices of whole users, and count the users that have any text.

    Args:
        dataset: The dataset.
        n_users: Users of a slice that have items with text.
        limit: Only the first so many of them.

    Raises:
        DataError: there is none.
    """
    slices, start, stop, found, taken = list[tuple[int, int]](), 0, 0, 0, 0
    catalogue = dataset.catalogue()
    for history in dataset.histories():
        stop += len(history)
        if not any(catalogue[item].fields for item in history.item_ids):
            continue
        found += 1
        taken += 1
        if found == n_users or taken == limit:
            slices.append((start, stop))
            start, found = stop, 0
        if taken == limit:
            break
    if found:
        slices.append((start, stop))
    if not taken:
        raise DataError(f"{dataset.path} has no user with items that have text; import it anew.")
    return slices, taken


def summarize_examples(bench: Workbench, runner: RayRunner) -> dict[str, int | float]:
    """Write the profile of every example of a run that is shown with one; the workers share its folder.

    Raises:
        As `write_on_ray`.
    """
    n_examples = len(bench.summarised_examples())
    step = users_a_piece(n_examples, runner)
    slices = [(start, min(start + step, n_examples)) for start in range(0, n_examples, step)]
    opened = partial(_open_examples, bench.places())
    file = bench.folder.path / "profiles.parquet"
    return write_on_ray(slices, n_examples, opened, bench.config.engine, bench.store_place, runner, file)


def _open_examples(places: Sequence[Place]) -> Source:
    """Open a run in a worker; a piece is a slice of its examples."""
    bench = reopened(places)
    examples = bench.summarised_examples()

    def histories(start: int, stop: int) -> list[tuple[str, History]]:
        return [(e.example_id, History(e.user_id, e.history)) for e in examples[start:stop]]

    return Source(bench.summariser, histories)
