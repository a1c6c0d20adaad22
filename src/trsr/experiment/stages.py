"""The stages of a run, each a function of the experiment that leaves its result in the run folder."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trsr.data.importers import import_warnings
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import ConfigError, OutputError
from trsr.experiment.config import FolderData, RunConfig
from trsr.experiment.evaluating import evaluate_scores
from trsr.experiment.experiment import Experiment
from trsr.experiment.leakage import check_examples, check_warm_start
from trsr.experiment.preflight import check_before_summaries, check_dataset, dataset_digest
from trsr.experiment.ranking import own_ranker, rank_candidates, score_in_parts
from trsr.experiment.ray import Source, write_profiles_on_ray
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.variants import check_same_examples, variant_experiments
from trsr.progress import bar
from trsr.recommend.calibration import fit_calibration
from trsr.recommend.model_folder import WEIGHTS, read_adapter_info, write_adapter_info
from trsr.splitting.split import build_examples
from trsr.storage import read_table
from trsr.summarize.summarizer import save_profiles, write_profiles
from trsr.train import distributed
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup, profile_kind, training_groups
from trsr.types import History

if TYPE_CHECKING:
    from trsr.train.trainer import TrainingReport

Facts = dict[str, Any]
VALID_SCORES = "valid_scores.parquet"


def prepare_data(experiment: Experiment) -> Facts:
    """Import raw files or make synthetic ones; an existing dataset folder is used as it is."""
    data = experiment.config.data
    if experiment.base is None:  # else made by the run of which this is a variant
        if isinstance(data, SyntheticConfig):
            generate(data, experiment.dataset_path, overwrite=True)
        elif not isinstance(data, FolderData):
            data.run(experiment.dataset_path, overwrite=True)
    for sentence in import_warnings(experiment.dataset.info):
        experiment.notify(f"data: {sentence}")
    return {
        "dataset": experiment.dataset.info.name,
        **experiment.dataset.info.counts,
        "digest": dataset_digest(experiment),
    }


def make_examples(experiment: Experiment) -> Facts:
    """Split users and draw candidates by the protocol.

    Raises:
        LeakageError: an example has seen a target.
    """
    splits = build_examples(experiment.dataset, experiment.config.protocol, experiment.config.seed)
    splits.write(experiment.folder.path / "examples")
    check_examples(experiment)
    return {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)}


def write_summaries(experiment: Experiment) -> Facts:
    """Write the profile of every example that is shown with one."""
    for name in experiment.config.rankers:
        if "." in name:  # a user's own class, checked before calls are paid for
            own_ranker(name, experiment.dataset)
    examples, file = experiment.summarized_examples(), experiment.folder.path / "profiles.parquet"
    engine, store = experiment.config.engine, experiment.store_place
    check_before_summaries(experiment)
    if experiment.config.summary.needs_calls:
        experiment.record_cuts("summary", {item for e in examples for item in e.history})
    if experiment.runner is not None:
        n, step = len(examples), experiment.runner.users_per_piece(len(examples))
        slices = [(start, min(start + step, n)) for start in range(0, n, step)]
        return write_profiles_on_ray(
            slices, n, partial(_open_examples, experiment), engine, store, experiment.runner, file
        )
    histories = [History(e.user_id, e.history) for e in examples]
    written = write_profiles(histories, experiment.summarizer, engine, store)
    save_profiles(file, [e.example_id for e in examples], written)
    return written.facts()


def _open_examples(experiment: Experiment) -> Source:
    """Open a run in a Ray worker; a piece is a slice of its examples."""
    examples = experiment.summarized_examples()

    def histories(start: int, stop: int) -> list[tuple[str, History]]:
        return [(e.example_id, History(e.user_id, e.history)) for e in examples[start:stop]]

    return Source(experiment.summarizer, histories)


def fine_tune(experiment: Experiment) -> Facts:
    """Fine-tune the recommender and write the model folder."""
    folder = experiment.folder
    if experiment.config.train is None:
        return {}
    check_warm_start(experiment)  # again: the folder may hold another model by now
    if not all((folder.path / name).exists() for name in FILES["train"]):  # else only checkpoints are left
        _train(experiment, experiment.config.train)
    shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)
    steps = len([row for row in folder.read_json("training.json", {})["log"] if "loss" in row])
    several = {"processes": distributed.count()} if distributed.count() > 1 else {}
    return {"users": len(experiment.splits.train), "steps": steps, **several}


def _train(experiment: Experiment, train_config: TrainConfig) -> None:
    from trsr.train.model_card import save_model_folder

    config, folder = experiment.config, experiment.folder
    for older in (folder.path / VALID_SCORES, folder.path / "calibration.json"):
        older.unlink(missing_ok=True)  # of a deleted model
    adapter, report = learn(experiment, train_config)
    folder.write_json("training.json", {"log": report.log, "best_step": report.best_step})
    save_model_folder(
        folder.path / "model",
        adapter,
        report,
        model=config.recommender.model,
        labels=experiment.labels,
        template=experiment.ranking_template,
        prompt=config.prompt,
        config=train_config,
        dataset=experiment.dataset.info.name,
        command=folder.command,
        quantization=config.recommender.quantization,
    )


def learn(experiment: Experiment, config: TrainConfig) -> tuple[Path, TrainingReport]:
    """Fine-tune the adapter; every process of the training calls this, see `trsr.train.trainer.train`."""
    from trsr.train.trainer import train

    recommender, seed = experiment.config.recommender, experiment.config.seed
    return train(
        _epochs(experiment, config),
        training_groups(experiment.splits.valid, experiment.profiles, experiment.builder),
        model=recommender.model,
        labels=experiment.labels,
        config=config,
        checkpoints=experiment.folder.path / "checkpoints",
        seed=seed,
        dtype=recommender.dtype,
        device=recommender.device,
        quantization=recommender.quantization,
        sharing=recommender.sharing,
        progress=sys.stderr.isatty() and distributed.is_main(),
    )


def _epochs(experiment: Experiment, config: TrainConfig) -> EpochGroups:
    """Return the training groups; epoch 0 uses the examples of the run folder."""
    if not config.epochs:
        return EpochGroups([])
    seed, mix, train = experiment.config.seed, config.profiles, experiment.splits.train

    def groups(epoch: int) -> list[TrainingGroup]:
        fresh = epoch > 0 and config.resample_negatives
        kinds = {e.example_id: profile_kind(mix, seed, e.example_id, epoch) for e in train}
        profiles = {
            name: experiment.profiles_as(kind)[name] for name, kind in kinds.items() if kind != "none"
        }
        examples = experiment.splits.resample(epoch) if fresh else train
        return training_groups(examples, profiles, experiment.builder)

    changes = config.resample_negatives or mix.none or mix.counted
    return EpochGroups(groups(0), groups if changes else None)


def calibrate(experiment: Experiment) -> Facts:
    """Fit the calibration on the validation examples and save it in the model folder.

    Returns:
        The calibration and why it was chosen; empty if no model was trained.

    Raises:
        RunMismatchError: the model folder cannot be read.
        OutputError: the run folder cannot be written; finished parts of the scores are kept.
    """
    if experiment.config.train is None:
        return {}
    examples, file = experiment.splits.valid, experiment.folder.path / VALID_SCORES
    if not examples:
        return {"calibration": "none: there are no validation examples"}
    if not file.exists():
        with bar("Calibrating") as shown:
            # In this process: no server has the new model yet.
            score_in_parts(experiment, ("llm",), examples, file, shown, served=False)
    scores = read_table(file)
    fit = fit_calibration(
        scores["margin"].to_numpy(),
        scores["label"].to_numpy(),
        scores["user_id"].to_list(),
        seed=experiment.config.seed,
    )
    chosen = fit.calibration
    model = experiment.folder.path / "model"
    write_adapter_info(model, read_adapter_info(model).model_copy(update={"calibration": chosen}))
    experiment.folder.write_json(
        "calibration.json",
        {
            "calibration": None if chosen is None else asdict(chosen),
            "reason": fit.reason,
            "cross_validated_log_loss": fit.log_loss,
            "users": fit.n_users,
            "positives": fit.n_positives,
        },
    )
    facts: Facts = {"examples": len(examples), "calibration": f"none: {fit.reason}"}
    if chosen is not None:
        facts |= {"calibration": f"{chosen.kind}: {fit.reason}"}
        facts |= {"a": round(chosen.a, 6), "b": round(chosen.b, 6)}
    return facts


def run_variants(experiment: Experiment) -> Facts:
    """Fine-tune every variant and rank with it, each in its own run folder."""
    experiments = variant_experiments(experiment)
    for name, variant in experiments.items():
        run_stages(variant, "examples")
        check_same_examples(name, variant)
        run_stages(variant, "rank", partial(notify_with, experiment.notify, name))
    return {"variants": len(experiments)}


def notify_with(notify: Callable[[str], None], name: str, line: str) -> None:
    """Prefix a notification with the name of one of several runs."""
    notify(f"{name}: {line}")


STAGES: dict[str, Callable[[Experiment], Facts]] = {
    "data": prepare_data,
    "examples": make_examples,
    "summarize": write_summaries,
    "train": fine_tune,
    "calibrate": calibrate,
    "variants": run_variants,
    "rank": rank_candidates,
    "evaluate": evaluate_scores,
}

FILES = {
    "examples": ("examples/train.parquet", "examples/valid.parquet", "examples/test.parquet"),
    "summarize": ("profiles.parquet",),
    "train": (f"model/{WEIGHTS}", "training.json"),
    "calibrate": (VALID_SCORES,),
    "rank": ("scores.parquet",),
    "evaluate": ("metrics.json",),
}
"""Files of each stage whose loss or damage is detected; files that later stages change are excluded."""


def run_stages(
    experiment: Experiment, until: str = "evaluate", notify: Callable[[str], None] = lambda _: None
) -> None:
    """Run every unfinished stage up to and including `until`; finished ones are not repeated.

    Raises:
        RunInUseError: another process works on the run.
        RunMismatchError: the dataset, or a file of a finished stage, was changed.
    """
    experiment.notify = notify
    experiment.folder.check_files()
    if missing := _missing_file(experiment):
        notify(f"{missing[0]}: {missing[1]} is missing: this stage and all later ones run again.")
    if _unfinished(experiment, until):
        with experiment.folder.working():
            for name in _unfinished(experiment, until):  # another process may have finished some
                run_stage(experiment, name)


def _unfinished(experiment: Experiment, until: str) -> list[str]:
    """Return the unfinished stages up to `until`, with all stages from a missing file on."""
    names, done = list(STAGES), set(experiment.folder.stages())
    if missing := _missing_file(experiment):
        done &= set(names[: names.index(missing[0])])
    return [name for name in names[: names.index(until) + 1] if name not in done]


def _missing_file(experiment: Experiment) -> tuple[str, str] | None:
    """Return the first finished stage that lacks one of its files, and that file."""
    done = experiment.folder.stages()
    for name in STAGES:
        for file in done.get(name, {}).get("sha256", {}):
            if not (experiment.folder.path / file).exists():
                return name, file
    return None


def run_stage(experiment: Experiment, name: str) -> None:
    """Run a stage, whether it is finished or not."""
    check_dataset(experiment)
    experiment.folder.log(name, "start")
    started = time.perf_counter()
    facts = STAGES[name](experiment)
    seconds = round(time.perf_counter() - started, 2)
    experiment.folder.finish(name, {"seconds": seconds, **facts}, FILES.get(name, ()))
    experiment.notify(f"{name}: {seconds:.0f} s" + "".join(f", {k} {v}" for k, v in facts.items()))


def check_processes(config: RunConfig) -> TrainConfig:
    """Return the training settings, if the processes can share each batch equally.

    Raises:
        ConfigError: there is nothing to train, or a batch cannot be shared equally.
    """
    if config.train is None:
        raise ConfigError(
            "train: found null, so there is nothing to train; give it settings or use `trsr run`."
        )
    config.train.passes_per_step(distributed.count())
    return config.train


def train_distributed(
    out: Path, open_folder: Callable[[], RunFolder], notify: Callable[[str], None] = lambda _: None
) -> None:
    """Run the stages of a run up to the calibrated model folder; every process calls this, having joined.

    Args:
        out: Where the run folder is, or will be.
        open_folder: Opens it; the other processes call it after the main one has finished the stages before
            training.
        notify: Receives a line for each finished stage, in the main process.

    Raises:
        OutputError: the machines do not share the run folder.
    """
    to_train = False
    if distributed.is_main():
        experiment = Experiment(open_folder())
        run_stages(experiment, "summarize", notify)
        to_train = "train" not in experiment.folder.stages() and not (out / "model").exists()
    to_train = distributed.agree(to_train)
    seen = distributed.gather((out / "config.yaml").exists())
    if not all(seen):
        raise OutputError(
            f"Process {seen.index(False)} does not see the run folder that the main process writes; "
            "name with --out a folder on a file system that all machines share."
        )
    if distributed.is_main():
        run_stages(experiment, "calibrate", notify)
    elif to_train:
        experiment = Experiment(open_folder())
        learn(experiment, check_processes(experiment.config))
    distributed.wait()
    distributed.leave()
