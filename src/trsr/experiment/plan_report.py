"""What `trsr plan` and `trsr summarize --dry-run` say: calls, tokens, hours, machines and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, MissingExtraError, ModelError
from trsr.experiment.config import RunConfig, validation_sentences
from trsr.experiment.cost_plan import Planner, grow, known_texts, planned_dataset, summary_notes, summary_work
from trsr.experiment.dataset_profiles import ProfileSettings, user_histories
from trsr.experiment.forecast import Forecast, Rates, Work, forecast, price
from trsr.experiment.preflight import check_models, check_plan
from trsr.llm.engines import EngineConfig, OpenAIEngine, n_thought_tokens
from trsr.llm.opening import engine_model_id, token_counter
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.user_plan import make_summariser

SERVERS = ("vllm", "sglang")
_UNKNOWN = "?"


def planned_engine(config: RunConfig, name: str | None) -> EngineConfig:
    """Return the engine to plan for: the configured one, or the one called `name`.

    A server (`openai`, `vllm`, `sglang`) has the model of the configured engine, else that which ranks.

    Raises:
        ConfigError: there is no such engine.
    """
    own = config.engine
    if name is None or name == own.kind or (name in SERVERS and isinstance(own, OpenAIEngine)):
        return own
    if name == "openai" or name in SERVERS:
        model = getattr(own, "model", config.recommender.model)
        return OpenAIEngine(base_url="http://planned.invalid/v1", model=model)
    try:
        return ProfileSettings.model_validate({"summary": {}, "engine": {"kind": name}}).engine
    except ValidationError as error:
        raise ConfigError(list(validation_sentences(error))) from error


def plan_experiment(
    config: RunConfig,
    *,
    rates: Rates,
    engine: str | None = None,
    tokenizer: str | None = None,
    store: str | Path | None = None,
    n_users: int | None = None,
    events_a_day: float | None = None,
) -> dict[str, Any]:
    """Plan a run of an experiment, or with `n_users` a shop of so many users.

    Raises:
        ConfigError: there is no such engine.
        DataError: the data cannot be read.
        ModelError: the tokenizer named is not there.
    """
    chosen = planned_engine(config, engine)
    counter = token_counter(chosen, tokenizer)
    model_id, notes = _model_id(chosen, config.summary)
    planned = config.model_copy(update={"engine": chosen})
    check_models(planned)
    with planned_dataset(config) as dataset, known_texts(store if model_id else None) as texts:
        notes += check_plan(planned, dataset)
        plan = Planner(config, dataset, counter, n_thought_tokens(chosen)).plan(texts, model_id or "unknown")
        if n_users is None:
            said = _facts(plan.summaries, plan.work, rates, [*plan.notes, *notes])
            return {"profiles": plan.n_profiles, **said}
        summariser = make_summariser(dataset, config.summary)
        growth = grow(
            plan,
            dataset,
            summariser,
            counter,
            n_users=n_users,
            events_a_day=events_a_day,
            seed=config.seed,
        )
    daily = None if growth.daily is None else price([growth.daily], rates)[0]
    return {
        "users": n_users,
        "stages": price(growth.work, rates),
        "each_day": daily,
        "store_bytes_at_most": growth.n_store_bytes,
        "notes": [*growth.notes, *plan.notes[1:]],
    }


def plan_dataset(
    data: Path,
    chosen: ProfileSettings,
    store: str | Path,
    limit: int | None,
    user_id: str | None,
    rates: Rates,
) -> dict[str, Any]:
    """Plan what `trsr summarize` would do.

    Raises:
        DataError: the folder is no dataset, or has no such user.
    """
    dataset = Dataset.open(data)
    summariser = make_summariser(dataset, chosen.summary)
    histories = user_histories(dataset, limit, user_id)
    counter = token_counter(chosen.engine)
    model_id, notes = _model_id(chosen.engine, chosen.summary)
    with known_texts(store if model_id else None) as texts:
        told = forecast(
            histories,
            summariser,
            model_id=model_id or "unknown",
            n_tokens=counter.count,
            store=texts,
            n_thoughts=n_thought_tokens(chosen.engine),
        )
    said = _facts(told, [summary_work(told)], rates, [*summary_notes(told, counter), *notes])
    return {"profiles": len(histories), **said}


def _model_id(engine: EngineConfig, summary: SummaryConfig) -> tuple[str | None, list[str]]:
    """Return the engine's model id; without one the store cannot be looked into, and a note says so."""
    try:
        return engine_model_id(engine), []
    except (ModelError, MissingExtraError) as error:
        return None, [f"The store is not looked into: {error}"] if summary.needs_calls else []


def _facts(told: Forecast, work: Sequence[Work], rates: Rates, notes: Sequence[str]) -> dict[str, Any]:
    total = told.total()
    return {
        "calls": total.n_calls,
        "calls_known": total.n_calls - total.n_to_make,
        "calls_to_make": total.n_to_make,
        "calls_with_exact_tokens": total.n_exact,
        "prompt_tokens_exact": total.exact_tokens,
        "prompt_tokens_at_most": total.prompt_tokens,
        "generated_tokens_at_most": total.n_to_make * told.max_new_tokens,
        "stages": price(work, rates),
        "store_bytes_at_most": told.n_store_bytes,
        "notes": list(notes),
    }


def render(facts: Mapping[str, Any]) -> str:
    """Return a plan as text: a table of the stages, then what else there is to say."""
    rows = [*facts["stages"], *filter(None, [facts.get("each_day")])]
    head = ("stage", "calls", "tokens read", "tokens written", "hours", "machines", "money")
    table = [head, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    lines.append(f"\nStore: at most about {facts['store_bytes_at_most'] / 1e6:,.1f} MB more.")
    return "\n".join([*lines, *facts["notes"]])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = [f"{row[name]:,}" for name in ("calls", "read", "written")]
    hours, money = (_UNKNOWN if row[name] is None else f"{row[name]:,.2f}" for name in ("hours", "money"))
    machines = _UNKNOWN if row["machines"] is None else str(row["machines"])
    return (row["stage"], *counts, hours, machines, money)
