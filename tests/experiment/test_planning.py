"""A plan's counts are those of the real run: with the fake engine and with a real, tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import tiny_run

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.experiment.config import RunConfig, load_config
from trsr.experiment.cost_plan import Plan, Planner, grow, observed_events_a_day, planned_dataset
from trsr.experiment.dataset_profiles import ProfileSettings, histories_with_text, summarize_dataset
from trsr.experiment.experiment import Workbench
from trsr.experiment.forecast import Rates, count_prompts
from trsr.experiment.plan_report import plan_dataset, plan_experiment, planned_engine
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages
from trsr.llm.engines import EngineConfig, FakeEngine, TransformersEngine
from trsr.llm.opening import engine_model_id, token_counter
from trsr.splitting.sampled import SampledProtocol
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import open_store
from trsr.summarize.user_plan import make_summariser

RATES = Rates(1000.0, 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = SyntheticConfig(n_users=30, n_items=200, min_history=4, max_history=24, mean_history=14)
    folder = tmp_path_factory.mktemp("plan") / "shop"
    generate(shape, folder)
    return folder


def engine(kind: str, model: Path) -> EngineConfig:
    return (
        FakeEngine()
        if kind == "fake"
        else TransformersEngine(model=str(model), device="cpu", max_prompt_tokens=4096)
    )


@pytest.mark.parametrize("kind", ["fake", "transformers"])
@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_a_dry_run_foretells_the_run(
    data: Path, tiny_model: Path, tmp_path: Path, method: Any, kind: str
) -> None:
    summary = SummaryConfig(method=method, max_field_tokens=6, max_new_tokens=12, fan_in=2)
    chosen = ProfileSettings(summary=summary, engine=engine(kind, tiny_model))
    file = tmp_path / "s.sqlite"
    limit = 8 if kind == "transformers" else None
    told = plan_dataset(data, chosen, file, limit, None, RATES)
    assert not file.exists()
    done = summarize_dataset(data, chosen, file, limit, None).written.progress
    assert told["calls"] == done.n_calls
    assert told["calls_to_make"] == done.n_calls_made
    assert told["calls_known"] == done.n_calls_known
    with open_store(file) as store:
        rows = list(store.rows())
        assert store.n_bytes() < told["store_bytes_at_most"] + 20_000  # an empty file has its size
    assert sum(row.n_prompt_tokens for row in rows) <= told["prompt_tokens_at_most"]
    assert done.n_generated_tokens <= told["generated_tokens_at_most"]
    # One block each: then all prompts are known, and so is every token.
    single = ProfileSettings(
        summary=summary.model_copy(
            update={"segmentation": summary.segmentation.model_copy(update={"block_size": 50})}
        ),
        engine=chosen.engine,
    )
    told = plan_dataset(data, single, file, limit, None, RATES)
    done = summarize_dataset(data, single, file, limit, None).written.progress
    assert told["calls_with_exact_tokens"] == told["calls_to_make"] == done.n_calls_made
    assert told["prompt_tokens_exact"] == told["prompt_tokens_at_most"] == done.n_prompt_tokens


@pytest.fixture(scope="module")
def planned(config_file: Path) -> Iterator[tuple[RunConfig, Dataset, Plan]]:
    config = load_config(config_file)
    with planned_dataset(config) as dataset:
        planner = Planner(config, dataset, token_counter(config.engine))
        yield config, dataset, planner.plan(None, engine_model_id(config.engine))


def test_a_plan_is_what_the_experiment_then_does(
    planned: tuple[RunConfig, Dataset, Plan], finished_run: Path
) -> None:
    config, _, plan = planned
    stages = json.loads((finished_run / "stages.json").read_text())
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    done, told = stages["summarize"], plan.summaries.total()
    assert (plan.n_profiles, told.n_calls, told.n_to_make) == (
        done["profiles"],
        done["calls"],
        done["calls_made"],
    )
    assert told.exact_tokens < done["prompt_tokens"] <= told.prompt_tokens
    work = {part.stage: part for part in plan.work}
    assert list(work) == ["summarize", "train", "validate", "calibrate", "rank llm_zero_shot", "rank llm"]
    assert work["rank llm"].calls == len(scores)
    assert work["calibrate"].calls == pl.read_parquet(next(finished_run.glob("*valid*.parquet"))).height
    assert config.train is not None
    trained = pl.read_parquet(finished_run / "examples" / "train.parquet")["candidates"].list.len().sum()
    assert work["train"].calls == config.train.epochs * trained


def test_a_training_of_so_many_steps_reads_no_more_users(
    planned: tuple[RunConfig, Dataset, Plan],
) -> None:
    config, dataset, whole = planned
    assert config.train is not None
    assert isinstance(config.protocol, SampledProtocol)
    one_step = config.train.model_copy(update={"max_steps": 1, "batch_size": 2, "micro_batch_size": 1})
    planner = Planner(config.model_copy(update={"train": one_step}), dataset, token_counter(config.engine))
    work = {part.stage: part for part in planner.plan(None, engine_model_id(config.engine)).work}
    users = 2 * (1 + config.protocol.negatives.n_train)
    assert work["train"].calls == users < {part.stage: part for part in whole.work}["train"].calls
    assert work["validate"].calls == work["calibrate"].calls


def test_with_the_texts_written_ranking_tokens_are_exact(
    planned: tuple[RunConfig, Dataset, Plan], finished_run: Path
) -> None:
    config, dataset, before = planned
    bench = Workbench(RunFolder(finished_run, config, "test"))
    test = bench.splits.test
    known = [bench.profiles[example.example_id] for example in test]
    counts = count_prompts(bench.builder, test, known, stand_in="x", n_more=8)
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    assert counts.prompt_tokens == scores["n_prompt_tokens"].sum()
    assert counts.n_exact == counts.n_groups == len(test)
    with open_store(finished_run / "summaries.sqlite") as store:
        planner = Planner(config, dataset, token_counter(config.engine))
        after = planner.plan(store, engine_model_id(config.engine))
    assert after.summaries.total().n_to_make == 0
    first, then = ({w.stage: w for w in plan.work}["rank llm"] for plan in (before, after))
    assert then.read == counts.read_tokens <= first.read
    assert (first.read_exact, then.read_exact) == (0, len(test))
    bound = count_prompts(bench.builder, test, [None] * len(test), stand_in="This shopper buys x", n_more=32)
    assert counts.read_tokens <= bound.read_tokens == first.read


def test_a_bound_never_exceeds_the_prompts_budget(finished_run: Path, config_file: Path) -> None:
    bench = Workbench(RunFolder(finished_run, load_config(config_file), "test"))
    example = bench.splits.test[0]
    (count,) = {
        count_prompts(bench.builder, [example], [None], stand_in="x", n_more=n).read_tokens
        for n in (10**4, 10**5)
    }
    suffixes = [len(bench.builder.suffix(candidate)) for candidate in example.candidates]
    assert count == bench.config.prompt.max_tokens - max(suffixes) + sum(suffixes)


def test_variants_are_planned_and_pay_for_no_summary_twice(tiny_model: Path) -> None:
    settings = tiny_run(tiny_model, train=None, rankers=["llm_zero_shot"])
    settings["variants"] = {"few": {"prompt.n_recent": 1}, "tree": {"summary.method": "hierarchical"}}
    facts = plan_experiment(RunConfig.model_validate(settings), rates=RATES)
    calls = {row["stage"]: row["calls"] for row in facts["stages"]}
    assert calls["few: summarize"] == 0
    settings["summary"]["method"], settings["variants"] = "hierarchical", {}
    alone = plan_experiment(RunConfig.model_validate(settings), rates=RATES)
    assert 0 < calls["tree: summarize"] < alone["calls_to_make"]  # the first blocks are the same
    assert calls["few: rank llm_zero_shot"] == calls["rank llm_zero_shot"]


@pytest.fixture(scope="module")
def growing(data: Path, planned: tuple[RunConfig, Dataset, Plan]) -> Any:
    dataset = Dataset.open(data)
    config = SummaryConfig(max_field_tokens=6, max_new_tokens=8)

    def scale(n_users: int, events_a_day: float | None = None, **changes: Any) -> Any:
        summariser = make_summariser(dataset, config.model_copy(update=changes))
        counter = token_counter(FakeEngine())
        plan = planned[2]
        return grow(plan, dataset, summariser, counter, n_users=n_users, events_a_day=events_a_day, seed=1)

    return scale


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_a_shop_of_the_datas_own_size_is_the_data(data: Path, growing: Any, method: Any) -> None:
    summary = SummaryConfig(method=method, max_field_tokens=6, max_new_tokens=8)
    chosen = ProfileSettings(summary=summary, engine=FakeEngine())
    told = plan_dataset(data, chosen, "no.sqlite", None, None, RATES)
    grown = growing(30, method=method)
    assert grown.work[0].calls == told["calls"] == told["calls_to_make"]
    assert grown.work[0].read == told["prompt_tokens_at_most"]
    assert grown.n_store_bytes == pytest.approx(told["store_bytes_at_most"], rel=0.02)  # but the model's name
    ten = growing(300, method=method)
    assert ten.work[0].calls == 10 * grown.work[0].calls
    assert [w.calls for w in ten.work if w.stage == "train"] == [
        w.calls for w in grown.work if w.stage == "train"
    ]
    rank = {w.stage: w.calls for w in ten.work}["rank llm"]
    assert rank == 300 * 6  # five negatives and the item


def test_a_new_event_costs_a_recurrent_profile_one_call(growing: Any, data: Path) -> None:
    assert growing(1000, 0.5).daily.calls == 500
    rate = observed_events_a_day(Dataset.open(data))
    assert rate is not None
    assert growing(1000).daily.calls == round(1000 * rate)
    assert growing(1000, 0.5, method="none").daily.calls == 0
    tree = growing(1000, 0.5, method="hierarchical", fan_in=2).daily.calls
    assert 500 < tree <= 500 * 4  # a path of the tree: at most five blocks


def test_the_observed_rate_is_events_by_users_and_days(data: Path) -> None:
    dataset = Dataset.open(data)
    events = dataset.events().collect()
    days = (events["timestamp"].max() - events["timestamp"].min()).total_seconds() / 86_400  # type: ignore[operator,union-attr]
    assert observed_events_a_day(dataset) == pytest.approx(len(events) / 30 / days)
    assert len(list(histories_with_text(dataset))) == 30


def test_a_server_is_planned_with_the_configured_model(tiny_model: Path) -> None:
    config = RunConfig.model_validate(tiny_run(tiny_model))
    server = planned_engine(config, "vllm")
    assert (server.kind, getattr(server, "model", "")) == ("openai", str(tiny_model))
    assert planned_engine(config, None) is planned_engine(config, "fake") is config.engine


def test_the_tiny_run_with_its_model_as_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    settings = tiny_run(tiny_model, train=None, rankers=["random"])
    settings["engine"] = {"kind": "transformers", "model": str(tiny_model), "device": "cpu"}
    settings["summary"]["method"] = "hierarchical"
    config = RunConfig.model_validate(settings)
    told = plan_experiment(config, rates=RATES)
    run_stages(Workbench(RunFolder(tmp_path / "run", config, "test")), "summarize")
    done = json.loads((tmp_path / "run" / "stages.json").read_text())["summarize"]
    assert (told["profiles"], told["calls"], told["calls_to_make"]) == (
        done["profiles"],
        done["calls"],
        done["calls_made"],
    )
    assert told["prompt_tokens_exact"] < done["prompt_tokens"] <= told["prompt_tokens_at_most"]
    again = plan_experiment(config, rates=RATES, store=tmp_path / "run" / "summaries.sqlite")
    assert (again["calls_to_make"], again["calls_known"]) == (0, done["calls"])
