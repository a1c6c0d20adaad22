"""Calibrates the fine-tuned model: scores the validation examples with it once, fits, and notes the result.

Stands between training and ranking. The scores stay as `valid_scores.parquet`, where later fits find them.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from trsr.data.files import read_table
from trsr.llm.adapter import read_adapter_info, write_adapter_info
from trsr.pipeline.progress import bar
from trsr.pipeline.ranking import score_in_parts
from trsr.pipeline.workbench import Workbench
from trsr.rank.calibration import CalibrationFit, fit_calibration

VALID_SCORES = "valid_scores.parquet"


def calibrate(bench: Workbench) -> dict[str, Any]:
    """Fit the calibration on the validation examples and save it in the model folder.

    Returns:
        What was fitted and why; nothing where no model was trained.

    Raises:
        RunMismatchError: the model folder cannot be read.
        OutputError: the run folder cannot be written; finished parts of the scores are kept.
    """
    if bench.config.train is None:
        return {}
    if not bench.splits.valid:
        return {"calibration": "none: there are no validation examples"}
    file = bench.folder.path / VALID_SCORES
    if not file.exists():
        with bar("Calibrating") as shown:
            # Here, since the model has just been made here: its server holds it later, if at all.
            score_in_parts(bench, ("llm",), bench.splits.valid, file, shown, served=False)
    fit = fit_scores(read_table(file), bench.config.seed)
    model = bench.folder.path / "model"
    saved = fit.calibration.to_json() if fit.calibration is not None else None
    write_adapter_info(model, read_adapter_info(model).model_copy(update={"calibration": saved}))
    bench.folder.write_json(
        "calibration.json",
        {
            "calibration": saved,
            "reason": fit.reason,
            "cross_validated_log_loss": fit.log_loss,
            "users": fit.n_users,
            "positives": fit.n_positives,
        },
    )
    return _facts(fit, len(bench.splits.valid))


def fit_scores(scores: pl.DataFrame, seed: int) -> CalibrationFit:
    """Fit a calibration to rows of scores, all of one ranker."""
    return fit_calibration(
        scores["margin"].to_numpy(), scores["label"].to_numpy(), scores["user_id"].to_list(), seed=seed
    )


def _facts(fit: CalibrationFit, n_examples: int) -> dict[str, Any]:
    if fit.calibration is None:
        return {"examples": n_examples, "calibration": f"none: {fit.reason}"}
    chosen = fit.calibration
    return {
        "examples": n_examples,
        "calibration": f"{chosen.kind}: {fit.reason}",
        "a": round(chosen.a, 6),
        "b": round(chosen.b, 6),
    }
