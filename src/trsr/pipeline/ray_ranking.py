"""Lets the workers of a Ray cluster score examples into the parts of a run folder that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from trsr.batch.presence import stay, wait_for_workers
from trsr.batch.runner import RayRunner
from trsr.config import RankerName
from trsr.pipeline.ranking import make_ranker, write_part
from trsr.pipeline.workbench import Place, Workbench, reopened
from trsr.types import RankingExample

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
    from trsr.batch import ray

    pieces: list[Part] = [(file.resolve(), examples) for file, examples in parts.items()]
    output = pieces[0][0].with_name(name)
    wait_for_workers(output)
    ray.start(runner)
    done = 0
    opened = partial(RankWorker, bench.places(), name, output, served=served)
    for _, n_examples in ray.do_pieces(pieces, opened, runner):
        done += n_examples
        on_progress(done)
