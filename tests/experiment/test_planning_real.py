"""On the real data sets a plan's counts are those of the run (skipped where the data is not)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trsr.experiment.config import load_config
from trsr.experiment.cost_plan import Planner
from trsr.experiment.experiment import Workbench
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages
from trsr.llm.opening import engine_model_id, token_counter
from trsr.summarize.store import StoredRow, open_store

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
CONFIGS = Path(__file__).parents[2] / "configs"
FEW = {"n_train": 20, "n_valid": 5, "n_test": 15}
CHANGES = ["engine={kind: fake}", *(f"protocol.{name}={n}" for name, n in FEW.items())]


def rows_of(file: Path) -> dict[str, StoredRow]:
    with open_store(file) as store:
        return {row.key: row for row in store.rows()}


@pytest.mark.parametrize("name", ["mind_recurrent", "amazon_office_hierarchical"])
def test_calls_and_tokens_of_the_plan_are_those_of_the_run(name: str, tmp_path: Path) -> None:
    if not os.environ.get("TRSR_REAL_DATA"):
        pytest.skip("TRSR_REAL_DATA names no folder with the real data sets")
    config = load_config(CONFIGS / f"{name}.yaml", CHANGES)
    bench = Workbench(RunFolder(tmp_path / "run", config, "test"))
    run_stages(bench, "examples")
    planner = Planner(config, bench.dataset, token_counter(config.engine))
    asked: set[str] = set()
    plan = planner.plan(None, engine_model_id(config.engine), asked)
    run_stages(bench, "summarize")
    done = json.loads((tmp_path / "run" / "stages.json").read_text())["summarize"]
    told, rows = plan.summaries.total(), rows_of(tmp_path / "run" / "summaries.sqlite")
    assert plan.n_profiles == done["profiles"] == len(bench.summarised_examples())
    assert (told.n_calls, told.n_to_make) == (done["calls"], done["calls_made"])
    assert told.n_calls - told.n_to_make == done["calls_from_store"]
    assert len(rows) == told.n_to_make
    # Calls whose prompt is known are known by their key, and their tokens to the last one.
    first = [row for key, row in rows.items() if key in asked]
    assert len(first) == told.n_exact > 0
    assert sum(row.n_prompt_tokens for row in first) == told.exact_tokens
    # The others read texts that are written only now: they are bounded, and so is what is written.
    assert told.exact_tokens < done["prompt_tokens"] <= told.prompt_tokens
    assert 0 < done["generated_tokens"] <= told.n_to_make * plan.summaries.max_new_tokens


@pytest.mark.parametrize("name", ["mind_recurrent", "amazon_office_hierarchical"])
def test_with_every_input_written_the_tokens_of_a_whole_run_are_exact(name: str, tmp_path: Path) -> None:
    # Each round, planned when the texts of the round before are there, sums up to what the run read.
    if not os.environ.get("TRSR_REAL_DATA"):
        pytest.skip("TRSR_REAL_DATA names no folder with the real data sets")
    config = load_config(CONFIGS / f"{name}.yaml", CHANGES)
    bench = Workbench(RunFolder(tmp_path / "run", config, "test"))
    run_stages(bench, "summarize")
    done = json.loads((tmp_path / "run" / "stages.json").read_text())["summarize"]
    rows, part = rows_of(tmp_path / "run" / "summaries.sqlite"), tmp_path / "part.sqlite"
    planner = Planner(config, bench.dataset, token_counter(config.engine))
    n_exact = n_tokens = 0
    with open_store(part) as store:
        while True:
            asked: set[str] = set()
            told = planner.plan(store, engine_model_id(config.engine), asked).summaries.total()
            if not told.n_to_make:
                break
            n_exact, n_tokens = n_exact + told.n_exact, n_tokens + told.exact_tokens
            assert store.add(rows[key] for key in asked if key in rows) == told.n_exact
    assert (n_exact, n_tokens) == (done["calls_made"], done["prompt_tokens"])
