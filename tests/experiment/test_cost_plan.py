"""`trsr plan` and `trsr summarize --dry-run` match the run that follows, and write nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Answer, tiny_run

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.experiment.config import RunConfig
from trsr.experiment.cost_plan import Rates, StagePlan, plan_dataset, plan_experiment, price
from trsr.experiment.dataset_profiles import ProfileSettings, summarize_dataset
from trsr.experiment.experiment import Experiment
from trsr.experiment.run_folder import RunFolder
from trsr.llm.engines import FakeEngine, TransformersEngine
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import open_store

Trsr = Callable[..., Answer]
RATES = Rates(1000.0, 0.5)
OPTIONS = ("--tokens-per-second", "20000", "--price-per-million", "0.05")
STAGES = [StagePlan("summarize", 10, 60_000_000, 12_000_000), StagePlan("train", 4, 8_000_000, weight=3)]


def test_price_is_plain_arithmetic() -> None:
    summaries, training, total = price(STAGES, Rates(10_000, 0.5, within=1.0))
    assert summaries["hours"] == 72e6 / 10_000 / 3600 == 2.0
    assert (summaries["machines"], summaries["money"]) == (2, 36.0)
    assert training["hours"] == 24e6 / 10_000 / 3600
    assert (training["machines"], training["money"]) == (1, 12.0)
    assert total["hours"] == summaries["hours"] + training["hours"]
    assert (total["calls"], total["read"], total["machines"], total["money"]) == (14, 68_000_000, 3, 48.0)
    assert price([StagePlan("summarize", 0, 0)], Rates(1.0, 1.0))[-1]["machines"] == 0


def test_price_without_a_rate_is_unknown() -> None:
    rows = price(STAGES, Rates())
    assert {row[name] for row in rows for name in ("hours", "machines", "money")} == {None}
    assert rows[-1]["calls"] == 14


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = SyntheticConfig(n_users=30, n_items=200, min_history=4, max_history=24, mean_history=14)
    folder = tmp_path_factory.mktemp("plan") / "shop"
    generate(shape, folder)
    return folder


@pytest.mark.parametrize("kind", ["fake", "transformers"])
@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_plan_dataset_is_what_summarize_does(
    data: Path, tiny_model: Path, tmp_path: Path, method: Any, kind: str
) -> None:
    engine: Any = FakeEngine()
    if kind == "transformers":
        engine = TransformersEngine(model=str(tiny_model), device="cpu", max_prompt_tokens=4096)
    summary = SummaryConfig(method=method, max_field_tokens=6, max_new_tokens=12, fan_in=2)
    limit, file = (8 if kind == "transformers" else None), tmp_path / "s.sqlite"
    chosen = ProfileSettings(summary=summary, engine=engine)
    plan = plan_dataset(data, chosen, file, limit, None, RATES)
    assert not file.exists()
    done = summarize_dataset(data, chosen, file, limit, None).written.progress
    assert plan["calls"] == done.n_calls
    assert plan["calls_to_make"] == done.n_calls_made
    assert plan["calls_known"] == done.n_calls_known
    assert done.n_prompt_tokens <= plan["prompt_tokens_at_most"]
    assert done.n_generated_tokens <= plan["generated_tokens_at_most"]
    with open_store(file) as store:
        assert store.n_bytes() < plan["store_bytes_at_most"] + 20_000  # an empty file has its size
    assert plan_dataset(data, chosen, file, limit, None, RATES)["calls_to_make"] == 0


def by_stage(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in plan["stages"]}


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> RunConfig:
    return RunConfig.model_validate(tiny_run(tiny_model))


def test_plan_experiment_is_what_the_run_does(config: RunConfig, finished_run: Path) -> None:
    plan = plan_experiment(config, rates=RATES)
    done = json.loads((finished_run / "stages.json").read_text())["summarize"]
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    valid = pl.read_parquet(finished_run / "valid_scores.parquet")
    train = pl.read_parquet(finished_run / "examples" / "train.parquet")
    assert (plan["profiles"], plan["calls"]) == (done["profiles"], done["calls"])
    assert plan["calls_to_make"] == done["calls_made"]
    assert done["prompt_tokens"] <= plan["prompt_tokens_at_most"]
    stages = by_stage(plan)
    ranks = ["rank llm_zero_shot", "rank llm"]
    assert list(stages) == ["summarize", "train", "validate", "calibrate", *ranks, "all"]
    assert stages["rank llm"]["calls"] == len(scores)
    assert stages["calibrate"]["calls"] == len(valid)
    assert config.train is not None
    assert stages["train"]["calls"] == config.train.epochs * train["candidates"].list.len().sum()


def test_plan_of_fewer_steps_trains_fewer_users(tiny_model: Path) -> None:
    settings = tiny_run(tiny_model)
    settings["train"] |= {"max_steps": 1, "micro_batch_size": 1}
    stages = by_stage(plan_experiment(RunConfig.model_validate(settings), rates=RATES))
    assert stages["train"]["calls"] == 2 * 3  # users of a step, each with two negatives
    assert stages["validate"]["calls"] == stages["calibrate"]["calls"]


def test_plan_with_known_texts_counts_ranking_tokens_exactly(config: RunConfig, finished_run: Path) -> None:
    new = plan_experiment(config, rates=RATES)
    stored = config.model_copy(update={"store": str(finished_run / "summaries.sqlite")})
    known = plan_experiment(stored, rates=RATES)
    assert (known["calls"], known["calls_to_make"]) == (new["calls"], 0)
    experiment = Experiment(RunFolder(finished_run, config, "test"))
    prompts = [
        experiment.builder.build(e.history, experiment.profiles[e.example_id], e.candidates).group
        for e in experiment.splits.test
    ]
    read = sum(len(group.prefix) + sum(map(len, group.suffixes)) for group in prompts)
    assert by_stage(known)["rank llm"]["read"] == read <= by_stage(new)["rank llm"]["read"]
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    whole = sum(len(group.prefix) + len(suffix) for group in prompts for suffix in group.suffixes)
    assert scores["n_prompt_tokens"].sum() == whole


def test_plan_of_a_tight_budget_stays_within_it(tiny_model: Path) -> None:
    settings = tiny_run(tiny_model, train=None, rankers=["llm_zero_shot"])
    settings["prompt"]["max_tokens"] = 150
    rank = by_stage(plan_experiment(RunConfig.model_validate(settings), rates=RATES))["rank llm_zero_shot"]
    assert rank["read"] <= rank["calls"] * 150


def test_variants_pay_for_no_summary_twice(tiny_model: Path) -> None:
    settings = tiny_run(tiny_model, train=None, rankers=["llm_zero_shot"])
    settings["variants"] = {"few": {"prompt.n_recent": 1}, "tree": {"summary.method": "hierarchical"}}
    stages = by_stage(plan_experiment(RunConfig.model_validate(settings), rates=RATES))
    assert stages["few: summarize"]["calls"] == 0
    settings["summary"]["method"], settings["variants"] = "hierarchical", {}
    alone = plan_experiment(RunConfig.model_validate(settings), rates=RATES)
    assert 0 < stages["tree: summarize"]["calls"] < alone["calls_to_make"]  # the first blocks are the same
    assert stages["few: rank llm_zero_shot"]["calls"] == stages["rank llm_zero_shot"]["calls"]


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_shop_of_the_datas_own_size_is_the_data(tiny_model: Path, data: Path, method: Any) -> None:
    summary = {"method": method, "max_field_tokens": 6, "max_new_tokens": 8, "fan_in": 2}
    protocol = {
        "kind": "sampled",
        "min_history": 4,
        "max_history": 24,
        "n_train": 4,
        "n_valid": 2,
        "n_test": 4,
    }
    negatives = {"negatives": {"kind": "uniform", "n_train": 2, "n_test": 5}}
    changes = {"data": {"kind": "folder", "path": str(data)}, "summary": summary}
    config = RunConfig.model_validate(tiny_run(tiny_model, protocol=protocol | negatives, **changes))
    chosen = ProfileSettings(summary=config.summary, engine=FakeEngine())
    plan = plan_dataset(data, chosen, "no.sqlite", None, None, RATES)
    one, ten = (plan_experiment(config, rates=RATES, n_users=n, events_per_day=0.5) for n in (30, 300))
    assert by_stage(one)["summarize"]["calls"] == plan["calls_to_make"]
    assert by_stage(one)["summarize"]["read"] == plan["prompt_tokens_at_most"]
    assert one["store_bytes_at_most"] == plan["store_bytes_at_most"]
    assert by_stage(ten)["summarize"]["calls"] == 10 * plan["calls"]
    assert by_stage(ten)["train"] == by_stage(one)["train"]
    assert by_stage(ten)["rank llm"]["calls"] == 300 * 6  # five negatives and the item
    daily = ten["each_day"]["calls"]
    assert daily == 150 if method == "recurrent" else 150 < daily <= 150 * 4  # a path of the tree


def test_plan_prints_a_table(trsr: Trsr, config_file: Path) -> None:
    answer = trsr("plan", config_file, *OPTIONS)
    assert answer.code == 0, answer.err
    head, *lines = answer.out.splitlines()
    assert [word.strip() for word in head.split("  ") if word] == [
        *("stage", "calls", "tokens read", "tokens written", "hours", "machines", "money"),
    ]
    for stage in ("summarize", "train", "rank llm", "all"):
        assert any(line.startswith(stage) for line in lines)
    assert "words, as the fake engine counts" in answer.out
    assert "Store: at most about" in answer.out


def test_plan_of_ten_million_users(trsr: Trsr, config_file: Path, tiny_model: Path) -> None:
    options = ("--users", "10_000_000", "--daily-events", "0.5", *OPTIONS, "--json")
    facts = json.loads(trsr("plan", config_file, *options).out)
    assert facts["users"] == 10_000_000
    rows = by_stage(facts)
    assert 20_000_000 < rows["summarize"]["calls"] < 40_000_000  # two to four blocks of five items
    assert rows["rank llm"]["calls"] == 60_000_000
    tokens = rows["summarize"]["read"] + rows["summarize"]["written"]
    assert rows["summarize"]["hours"] == pytest.approx(tokens / 20_000 / 3600)
    assert rows["summarize"]["money"] == pytest.approx(tokens / 1e6 * 0.05)
    assert facts["each_day"]["calls"] == 5_000_000
    assert facts["each_day"]["money"] < rows["summarize"]["money"]
    assert any(f"the tokenizer of {tiny_model}" in note for note in facts["notes"])


def test_dry_run_writes_nothing(trsr: Trsr, data: Path) -> None:
    before = sorted(path.name for path in data.iterdir())
    answer = trsr("summarize", data, "--engine", "fake", "--dry-run", *OPTIONS)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("stage")
    assert sorted(path.name for path in data.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "engine={kind: steam}"], "steam"),
        (["--tokenizer", "./nowhere"], "The tokenizer of './nowhere' is not on this machine"),
        (["--set", "data={kind: folder, path: ./nowhere}"], "There is no dataset folder nowhere"),
    ],
)
def test_plan_reports_a_mistake_in_one_sentence(
    trsr: Trsr, config_file: Path, options: list[str], message: str
) -> None:
    answer = trsr("plan", config_file, *options)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
