"""Does pieces of work on the actors of a Ray cluster, by Ray Data.

A piece is a small picklable value; what it stands for is read by the worker that does it. Workers that die
are started anew, and their piece is done again: doing a piece twice must cost nothing that was finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trsr import errors
from trsr.errors import ConfigError, EngineError, MissingExtraError, TrsrError
from trsr.experiment.experiment import RayRunner

# Read by Ray when it is imported: it would send statistics of use elsewhere.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    import ray.data
except ImportError as _error:
    raise MissingExtraError("ray", "ray") from _error

Work = Callable[[Any], Any]
"""Does one piece and returns its result; both can be pickled."""


def start(runner: RayRunner) -> None:
    """Join the cluster named by `RAY_ADDRESS` or running on this machine; else start one on this machine.

    Raises:
        ConfigError: the cluster that is named cannot be reached, or this machine has too few GPUs.
    """
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address != "local":
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            if address:
                raise ConfigError(
                    f"No Ray cluster that takes this machine answers at RAY_ADDRESS={address}; start one "
                    "with `ray start --head`, and set its RAY_AUTH_MODE and RAY_AUTH_TOKEN here too."
                ) from error
        else:
            return
    cpus = max(runner.concurrency, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    needed, there = runner.concurrency * runner.gpus_per_worker, ray.cluster_resources().get("GPU", 0)
    if needed > there:
        ray.shutdown()
        raise ConfigError(
            f"{runner.concurrency} workers need {needed:g} GPUs, this machine has {there:g}; "
            "lower --concurrency or --gpus-per-worker, or join a cluster."
        )


def n_machines() -> int:
    """Return how many machines the cluster has now."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def make_actor(kind: type, *arguments: Any) -> Any:
    """Start an actor that needs no processor of its own and comes back, empty, when its process dies."""
    return ray.remote(kind).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(*arguments)


def job_id() -> str:
    """Return what tells this job from all others of the cluster."""
    return str(ray.get_runtime_context().get_job_id())


class Worker:
    """Does pieces in a process of its own; opens what it needs when the first one comes.

    Args:
        open_work: Makes the function that does the pieces.
        folder: Where the command was given, so that relative names mean the same here.
    """

    def __init__(self, open_work: Callable[[], Work], folder: str) -> None:
        self._open_work = open_work
        self._folder = folder
        self._work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Do the one piece of a batch; an error on purpose is a result."""
        try:
            if self._work is None:
                with contextlib.suppress(OSError):
                    os.chdir(self._folder)
                self._work = self._open_work()
            result, error = self._work(pickle.loads(batch["piece"][0])), None
        except TrsrError as found:  # not raised here: Ray would wrap it, and try it again
            result, error = None, (type(found).__name__, str(found))
        return {"number": [batch["number"][0]], "result": [pickle.dumps((result, error))]}


def do_pieces(
    pieces: Sequence[Any], open_work: Callable[[], Work], runner: RayRunner
) -> Iterator[tuple[int, Any]]:
    """Yield (place of the piece, its result) in completion order.

    Args:
        pieces: Picklable values.
        open_work: Makes the function that does them, once in each worker.
        runner: How many workers there are, and what each needs.

    Raises:
        TrsrError: a piece ended with it; the pieces before were done.
        EngineError: Ray gave up; a worker that dies is started again, and its piece done again.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)]
    table = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
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
                raise _again(*error)
            yield int(row["number"]), result
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1]
        raise EngineError(
            f"The Ray workers failed ({said}); what was finished is kept: see Ray's logs, "
            "then run the same command again.",
            retryable=True,
        ) from error


def _again(kind: str, message: str) -> TrsrError:
    """Return an error of a worker as one of this process; its message and exit code are the same."""
    found: type[TrsrError] = getattr(errors, kind)
    error = found.__new__(found)
    Exception.__init__(error, message)
    return error
