"""What is found out before hours of work: a model or store that cannot serve, a dataset that has changed.

They would come to light only at training, when all summaries have been paid for, or never.
"""

from __future__ import annotations

import hashlib
import json

from trsr.config import RunConfig
from trsr.errors import ModelError, RunMismatchError
from trsr.llm import models
from trsr.llm.engines import LlamaCppEngine, TransformersEngine, require_package
from trsr.pipeline.workbench import Workbench
from trsr.summarize.places import is_database
from trsr.summarize.stores import open_store


def check_models(config: RunConfig) -> None:
    """Look up the models that a run will load; nothing is downloaded and nothing written.

    Raises:
        ModelError: one of them is unknown, or may not be looked into.
        MissingExtraError: they are to be asked on a server, and the client is not installed.
    """
    for server in config.recommender.servers.values():
        require_package(server.kind)
    names = [config.recommender.model] if _uses_recommender(config) else []
    if config.summary.needs_calls and isinstance(config.engine, LlamaCppEngine | TransformersEngine):
        names.append(config.engine.model)
    for name in names:
        try:
            models.locate(name)
        except OSError as error:
            raise ModelError(
                f"The model {name!r} cannot be read ({error.strerror}); check the path and its rights."
            ) from error


def check_store(config: RunConfig) -> None:
    """Open the database that is to keep the summaries.

    Raises:
        StoreError, OutputError, MissingExtraError: it cannot be used.
    """
    if config.store is not None and is_database(config.store):
        open_store(config.store).close()


def check_recommender(bench: Workbench) -> None:
    """Find the answer tokens of the model that will rank; only its tokenizer is loaded.

    Raises:
        ModelError: the model cannot be had, or an answer is not one token for it.
    """
    if _uses_recommender(bench.config):
        _ = bench.labels


def check_dataset(bench: Workbench) -> None:
    """Compare the dataset with the one that the run began with.

    Raises:
        RunMismatchError: it was changed since.
    """
    before = bench.folder.stages().get("data", {}).get("digest")
    if before is not None and before != dataset_digest(bench):
        raise RunMismatchError(
            f"The dataset in {bench.dataset_path} was changed after {bench.folder.path} had begun with it; "
            "name another run folder with --out, or bring the old dataset back."
        )


def dataset_digest(bench: Workbench) -> str:
    """Return 12 hex digits that change with any file of the dataset."""
    listed = json.dumps(bench.dataset.info.sha256, sort_keys=True)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def _uses_recommender(config: RunConfig) -> bool:
    return config.train is not None or "llm_zero_shot" in config.rankers
