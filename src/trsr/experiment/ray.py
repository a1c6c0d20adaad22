"""Runs pieces of work on a Ray cluster with Ray Data, and writes profiles with it.

A piece is a small picklable value; the worker reads its data. Ray restarts a worker that dies and repeats its
piece, which must be harmless: the store of summaries has every finished call, and a file appears in one move.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from trsr import errors
from trsr.errors import ConfigError, EngineError, MissingExtraError, TrsrError
from trsr.llm.engines import EngineConfig
from trsr.llm.opening import open_generator
from trsr.progress import bar
from trsr.storage import atomic_write
from trsr.summarize.executor import SummaryProgress, run_calls
from trsr.summarize.store import open_store
from trsr.summarize.store_url import is_database_url
from trsr.summarize.summarizer import profile_facts, profile_table
from trsr.summarize.user_plan import BoundSummarizer, plan_user, profile
from trsr.types import History

MAX_USERS = 1000
"""Most users of a piece: enough to keep an engine full, and few enough to share among workers."""
PIECES_PER_WORKER = 4

Work = Callable[[Any], Any]
"""Does one piece and returns its result; both can be pickled."""
Slice = tuple[int, int]
"""Start and stop of a piece of the profiles, as its `Source` counts."""


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs work on a Ray cluster.

    Attributes:
        concurrency: Workers, each with an engine of its own; at least 1.
        gpus_per_worker: GPUs of each worker; a fraction is shared.
    """

    concurrency: int = 1
    gpus_per_worker: float = 0.0

    def users_per_piece(self, n_users: int) -> int:
        """Return how many users go to a worker at once."""
        return max(1, min(MAX_USERS, math.ceil(n_users / (PIECES_PER_WORKER * self.concurrency))))


def choose_runner(kind: str, concurrency: int | None, gpus_per_worker: float | None) -> RayRunner | None:
    """Return the runner that a command's options name; None is the local one.

    Raises:
        ConfigError: there is no such runner, a number is out of range, or one is given for the local runner.
    """
    if kind not in {"local", "ray"}:
        raise ConfigError(f"runner: found {kind!r}, expected local or ray.")
    if kind == "local":
        if concurrency is not None or gpus_per_worker is not None:
            raise ConfigError(
                "--concurrency and --gpus-per-worker are for --runner ray; add it, or leave them out."
            )
        return None
    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"concurrency: found {concurrency}, expected a whole number of at least 1.")
    if gpus_per_worker is not None and gpus_per_worker < 0:
        raise ConfigError(f"gpus_per_worker: found {gpus_per_worker}, expected a number of at least 0.")
    return RayRunner(concurrency or 1, gpus_per_worker or 0.0)


def start_cluster(runner: RayRunner) -> int:
    """Join the cluster at `RAY_ADDRESS` or on this machine, else start one here; return its machines.

    Raises:
        ConfigError: the named cluster cannot be reached, or this machine has too few GPUs.
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized() and address != "local":
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            if address:
                raise ConfigError(
                    f"No Ray cluster that accepts this machine answers at RAY_ADDRESS={address}; start one "
                    "with `ray start --head`, and set its RAY_AUTH_MODE and RAY_AUTH_TOKEN here too."
                ) from error
    if not ray.is_initialized():
        cpus = max(runner.concurrency, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        needed, found = runner.concurrency * runner.gpus_per_worker, ray.cluster_resources().get("GPU", 0)
        if needed > found:
            ray.shutdown()
            raise ConfigError(
                f"{runner.concurrency} workers need {needed:g} GPUs, this machine has {found:g}; "
                "lower --concurrency or --gpus-per-worker, or join a cluster."
            )
    return sum(bool(node["Alive"]) for node in ray.nodes())


class _Worker:
    """Does pieces in a process of its own; opens its engine and data with the first piece.

    `folder` is the working directory of the command: relative names mean the same here.
    """

    def __init__(self, open_work: Callable[[], Work], folder: str) -> None:
        self._open_work = open_work
        self._folder = folder
        self._work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        result, error = None, None
        try:
            if self._work is None:
                with contextlib.suppress(OSError):
                    os.chdir(self._folder)
                self._work = self._open_work()
            result = self._work(pickle.loads(batch["piece"][0]))
        except TrsrError as found:  # returned: Ray would wrap a raised error and repeat the piece
            error = (type(found).__name__, str(found))
        return {"number": [batch["number"][0]], "result": [pickle.dumps((result, error))]}


def run_pieces(
    pieces: Sequence[Any], open_work: Callable[[], Work], runner: RayRunner
) -> Iterator[tuple[int, Any]]:
    """Yield (index of the piece, its result) in completion order, on a cluster that is started if needed.

    Args:
        pieces: Picklable values.
        open_work: Returns the function that does a piece; called once per worker.
        runner: Number of workers, and GPUs of each.

    Raises:
        TrsrError: a piece failed with it.
        EngineError: Ray gave up.
    """
    start_cluster(runner)
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)]
    table = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(open_work, str(Path.cwd())),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=runner.concurrency, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=runner.gpus_per_worker or None,
    )
    try:
        for row in table.iter_rows():
            result, error = pickle.loads(row["result"])
            if error is not None:
                raise _same_error(*error)
            yield int(row["number"]), result
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineError(
            f"The Ray workers failed ({reason}); what was finished is kept: see Ray's logs, "
            "then run the same command again.",
            retryable=True,
        ) from error


def _same_error(kind: str, message: str) -> TrsrError:
    """Return a worker's error with its class and message, whatever arguments the class takes."""
    found: type[TrsrError] = getattr(errors, kind)
    error = found.__new__(found)
    Exception.__init__(error, message)
    return error


@dataclass(frozen=True, slots=True)
class Source:
    """The histories that workers summarize.

    Attributes:
        summarizer: Settings, prompts and item texts.
        histories: Start and stop of a piece to its histories, each with the name of its profile.
    """

    summarizer: BoundSummarizer
    histories: Callable[[int, int], list[tuple[str, History]]]


class ProfileWorker:
    """Writes the profiles of pieces, with one engine and one connection to the store for all of them."""

    def __init__(self, open_source: Callable[[], Source], engine: EngineConfig, store: str) -> None:
        self._source = open_source()
        self._store = open_store(store)
        self._engine = open_generator(engine) if self._source.summarizer.config.needs_calls else None

    def __call__(self, piece: Slice) -> tuple[pl.DataFrame | None, SummaryProgress, str | None]:
        """Return the table of a piece and its progress; failed calls are reported, not raised."""
        summarizer = self._source.summarizer
        named = self._source.histories(*piece)
        plans = [plan_user(history, summarizer) for _, history in named]
        last = SummaryProgress()

        def keep(progress: SummaryProgress) -> None:
            nonlocal last
            last = progress

        try:
            run_calls(plans, summarizer, self._engine, self._store, keep)
        except EngineError as error:
            last.n_users, last.n_users_done = len(plans), sum(plan.done for plan in plans)
            return None, last, str(error)
        profiles = [profile(plan, summarizer) for plan in plans]
        return profile_table([name for name, _ in named], plans, profiles), last, None


def write_profiles_on_ray(
    slices: Sequence[Slice],
    n_users: int,
    open_source: Callable[[], Source],
    engine: EngineConfig,
    store: str | Path,
    runner: RayRunner,
    file: Path,
) -> dict[str, int | float]:
    """Write the profiles of all slices, in their order, into `file` and return counts (`profile_facts`).

    Args:
        slices: The pieces.
        n_users: Profiles in all of them.
        open_source: Opens the source in a worker.
        engine: Each worker has one of its own.
        store: A file, for workers on one machine, or a database.
        runner: Number of workers, and GPUs of each.
        file: As `save_profiles` writes it.

    Raises:
        ConfigError: the cluster has several machines, and the store is a file.
        EngineError: some calls failed; the finished ones are kept.
        StoreError, OutputError: the store or the folder of `file` cannot be used.
    """
    started = time.perf_counter()
    open_store(store).close()  # a store that cannot be used is reported before a cluster starts
    n_machines = start_cluster(runner)
    if n_machines > 1 and not is_database_url(store):  # SQLite's locks do not reach other machines
        raise ConfigError(
            f"The store {store} is a file, which the {n_machines} machines of the Ray cluster cannot share; "
            "name a database with --store postgresql://USER:PASSWORD@HOST/DATABASE."
        )
    place = str(store) if is_database_url(store) else str(Path(store).resolve())
    total, tables, failures = SummaryProgress(), dict[int, pl.DataFrame](), list[str]()
    opened = partial(ProfileWorker, open_source, engine, place)
    with bar("Summarizing") as shown:
        for number, (table, progress, failure) in run_pieces(slices, opened, runner):
            for counted in fields(SummaryProgress):
                one, more = getattr(total, counted.name), getattr(progress, counted.name)
                setattr(total, counted.name, one + more)
            if table is not None:
                tables[number] = table
            if failure is not None:
                failures.append(failure)
            rate = total.n_generated_tokens / (time.perf_counter() - started)
            shown.update(total.n_users_done, n_users, f"{rate:.0f} tokens/s")
    if failures:
        raise EngineError(
            f"{total.n_calls_failed} summary calls failed in {len(failures)} of {len(slices)} parts "
            f"(first error: {failures[0]})",
            retryable=True,
        )
    table = pl.concat([tables[number] for number in range(len(slices))])
    atomic_write(file, table.write_parquet)
    return profile_facts(len(table), total, time.perf_counter() - started)
