"""Variants of a run: models that differ in some settings and rank the same examples.

Each is a run folder `RUN/variants/NAME` that shares dataset and store of its run: common work is done once,
and a killed run resumes.
"""

from __future__ import annotations

import polars as pl

from trsr.errors import ConfigError
from trsr.experiment.config import RunConfig, own_ranker, variants_of
from trsr.experiment.experiment import Experiment
from trsr.experiment.run_folder import RunFolder
from trsr.storage import read_table


def variant_experiments(experiment: Experiment) -> dict[str, Experiment]:
    """Return the experiment of every variant by the name of its ranker.

    Raises:
        RunMismatchError: a variant's folder belongs to other settings.
    """
    folder = experiment.folder
    return {
        name: Experiment(RunFolder(folder.path / "variants" / name, config, folder.command), experiment)
        for name, config in variants_of(folder.config).items()
    }


def check_same_examples(name: str, variant: Experiment) -> None:
    """Check that a variant, whose examples exist already, has the same test examples as its run.

    Raises:
        ConfigError: it has others.
    """
    assert variant.base is not None
    if variant.splits.test != variant.base.splits.test:
        raise ConfigError(
            f"variants.{name}: its test examples differ from the run's, so the rankers cannot be compared; "
            "do not vary the settings that choose users and test candidates."
        )


def variant_scores(experiment: Experiment) -> list[pl.DataFrame]:
    """Return the scores of all finished variants, each under the name of its ranker."""
    return [
        read_table(variant.folder.path / "scores.parquet").with_columns(ranker=pl.lit(name))
        for name, variant in variant_experiments(experiment).items()
    ]


def profile_pair(config: RunConfig) -> tuple[str, str] | None:
    """Return the run's own model and the name of its ranker without a profile, None where there is none.

    The second is the same model without a profile, or a variant that differs only in this.
    """
    if config.summary.method == "none":
        return None
    if {"llm", "llm_no_profile"} <= set(config.rankers):
        return "llm", "llm_no_profile"
    free = {"summary", "rankers", "variants", "sweep"}
    own = config.model_dump(exclude=free)
    for name, variant in variants_of(config).items():
        if variant.summary.method == "none" and variant.model_dump(exclude=free) == own:
            return own_ranker(config), name
    return None
