"""Training by several processes: the main one does the stages and writes; the others only help to learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trsr.config import RunConfig
from trsr.errors import ConfigError, OutputError
from trsr.pipeline.folder import RunFolder
from trsr.pipeline.stages import learn, run_stages
from trsr.pipeline.workbench import Workbench
from trsr.train import processes
from trsr.train.batches import passes_per_batch


def check_processes(config: RunConfig) -> None:
    """Refuse a training that nobody can do, or that these processes cannot share.

    Raises:
        ConfigError: there is nothing to train, or a batch cannot be shared equally.
    """
    if config.train is None:
        raise ConfigError(
            "train: found null, so there is nothing to train; give it settings or use `trsr run`."
        )
    passes_per_batch(config.train, processes.count())


def train_together(
    out: Path, open_folder: Callable[[], RunFolder], say: Callable[[str], None] = lambda _: None
) -> None:
    """Run the stages of a run up to the calibrated model folder; every process calls this, having joined.

    Args:
        out: Where the run folder is, or will be.
        open_folder: Opens it; the others do so when the main process has finished what comes before the
            training.
        say: Is told what is done, in the main process.

    Raises:
        OutputError: the machines do not share the run folder.
    """
    to_train = False
    if processes.is_main():
        bench = Workbench(open_folder())
        run_stages(bench, "summarize", say)
        to_train = "train" not in bench.folder.stages() and not (out / "model").exists()
    to_train = processes.agree(to_train)
    seen = processes.gather((out / "config.yaml").exists())
    if not all(seen):
        raise OutputError(
            f"Process {seen.index(False)} does not see the run folder that the main process writes; "
            "name with --out a folder on a file system that all machines share."
        )
    if processes.is_main():
        run_stages(bench, "calibrate", say)
    elif to_train:
        learn(Workbench(open_folder()))
    processes.wait()
    processes.leave()
