"""Counts the calls and tokens of an experiment before it runs, and what they cost: `trsr plan`, `--dry-run`.

No model is loaded, and only a temporary folder is written. The number of calls is exact unless two prompts
get the same text. Tokens are exact where all texts of a prompt are known; a text not yet written counts
as its cap of new tokens, so the sum is an upper bound.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trsr.data.dataset import Dataset
from trsr.errors import MissingExtraError, ModelError
from trsr.experiment.config import OWN_MODEL, RunConfig, variants_of
from trsr.experiment.dataset_profiles import ProfileSettings, user_histories
from trsr.experiment.experiment import Experiment
from trsr.experiment.preflight import (
    check_before_summaries,
    check_models,
    placeholder_text,
    uses_recommender,
)
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import prepare_data
from trsr.experiment.variants import variant_experiments
from trsr.llm import models
from trsr.llm.base import Prompt, prompt_key
from trsr.llm.engines import EngineConfig, TransformersEngine, n_thought_tokens
from trsr.llm.fake import RoughTokenizer
from trsr.llm.opening import engine_model_id, find_tokenizer, token_counter
from trsr.seeding import derive_rng
from trsr.splitting.split import build_examples
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import TextStore, open_store
from trsr.summarize.store_url import is_database_url
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan, bind_summarizer, plan_user
from trsr.types import History, RankingExample

TRAINING_WEIGHT = 3
"""A training token costs as much as three tokens read: the backward pass is twice the forward pass
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
OTHER_TOKENIZER = 4
"""Tokens that one tokenizer makes of a token of another, at most."""
N_SAMPLE = 1000
"""Users whose prompts are rendered to plan for `n_users`."""
CALLS_AT_ONCE = 2000
"""Calls rendered and looked up in the store together."""
# Store: bytes of a text's token, of a row (hashes, numbers, overhead), and room in pages that are not full.
_BYTES_PER_TOKEN, _BYTES_PER_ROW, _FILL = 5, 200, 1.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Speed and price of a machine.

    Attributes:
        tokens_per_second: Tokens that one machine reads and writes in a second, all its prompts together.
        price_per_million: Money for a million tokens.
        within: Hours in which all must be done; determines the number of machines.
    """

    tokens_per_second: float | None = None
    price_per_million: float | None = None
    within: float = 24.0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage's calls and tokens, at most; each token is charged `weight` times."""

    stage: str
    calls: int
    read: int
    written: int = 0
    weight: int = 1

    def scaled(self, factor: float) -> StagePlan:
        """Return the same stage for `factor` times as many users."""
        calls, read, written = (round(n * factor) for n in (self.calls, self.read, self.written))
        return replace(self, calls=calls, read=read, written=written)


def price(stages: Sequence[StagePlan], rates: Rates) -> list[dict[str, Any]]:
    """Return one row per stage with hours (of one machine), machines and money, and one for all of them.

    Values that need a missing rate are None. Stages run one after the other; the last row's `machines` finish
    all of them within `rates.within`.
    """
    rows: list[dict[str, Any]] = []
    for stage in stages:
        charged = (stage.read + stage.written) * stage.weight
        speed, money = rates.tokens_per_second, rates.price_per_million
        rows.append(
            {
                **asdict(stage),
                "hours": None if speed is None else charged / speed / 3600,
                "money": None if money is None else charged / 1e6 * money,
            }
        )
    total: dict[str, Any] = {"stage": "all"}
    for name in ("calls", "read", "written", "hours", "money"):
        values = [row[name] for row in rows]
        total[name] = None if None in values else sum(values)
    for row in [*rows, total]:
        row["machines"] = None if row["hours"] is None else math.ceil(row["hours"] / rates.within)
    return [*rows, total]


@dataclass(slots=True)
class Forecast:
    """Calls, tokens and disk space that summarizing some histories takes.

    Attributes:
        max_new_tokens: Tokens of a text at most.
        n_calls: Calls of all plans.
        n_to_make: Distinct calls that the store does not have.
        prompt_tokens: Tokens read by the calls to make, at most.
        store_bytes: Growth of the store, an approximate upper bound.
        profiles: The profile of each history, None where it is not written yet.
    """

    max_new_tokens: int
    n_calls: int = 0
    n_to_make: int = 0
    prompt_tokens: int = 0
    store_bytes: float = 0.0
    profiles: Sequence[str | None] = ()

    def stage(self, name: str) -> StagePlan:
        """Return the calls to make as a stage."""
        return StagePlan(name, self.n_to_make, self.prompt_tokens, self.n_to_make * self.max_new_tokens)


def forecast(
    histories: Sequence[History],
    summarizer: BoundSummarizer,
    *,
    model_id: str,
    n_tokens: Callable[[Prompt], int],
    store: TextStore | None = None,
    requested: set[str] | None = None,
    n_thoughts: int = 0,
) -> Forecast:
    """Count the calls that `summarize` will make for these histories.

    Args:
        histories: One per profile.
        summarizer: Settings, prompts and item texts.
        model_id: The engine's model id.
        n_tokens: Counts a prompt's tokens as the engine does.
        store: Known texts; None for a new store.
        requested: Keys of calls that earlier forecasts count; new ones are added.
        n_thoughts: Tokens that a call may write before its text.
    """
    requested = set() if requested is None else requested
    cap = summarizer.config.max_new_tokens + n_thoughts
    found = Forecast(cap)
    plans = [plan_user(history, summarizer) for history in histories]
    for place in range(max((len(plan.calls) for plan in plans), default=0)):
        pending = [plan for plan in plans if place < len(plan.calls)]
        for start in range(0, len(pending), CALLS_AT_ONCE):
            planned = [
                (plan, *_planned_call(plan, place, summarizer, model_id))
                for plan in pending[start : start + CALLS_AT_ONCE]
            ]
            known = {} if store is None else store.texts(list({key for _, _, key, _ in planned} - requested))
            for plan, prompt, key, n_unwritten in planned:
                found.n_calls += 1
                plan.keys[place] = key
                if key in known:
                    plan.texts[place] = known[key]
                elif key not in requested:
                    requested.add(key)
                    found.n_to_make += 1
                    found.prompt_tokens += n_tokens(prompt) + n_unwritten * cap
                    items = len(json.dumps(plan.calls[place].item_ids))
                    row = _BYTES_PER_ROW + len(model_id) + items + _BYTES_PER_TOKEN * cap
                    found.store_bytes += row * _FILL
    found.profiles = [
        plan.texts.get(len(plan.calls) - 1)
        if plan.calls
        else summarizer.profile_without_llm(plan.history).text
        for plan in plans
    ]
    return found


def _planned_call(
    plan: SummaryPlan, place: int, summarizer: BoundSummarizer, model_id: str
) -> tuple[Prompt, str, int]:
    """Return a call's prompt, a key that only equal calls share, and its number of unwritten inputs."""
    call = plan.calls[place]
    unwritten = [plan.keys[i] for i in call.inputs if i not in plan.texts]
    placeholder = placeholder_text(summarizer)
    prompt = summarizer.prompt(call, [plan.texts.get(i, placeholder) for i in call.inputs])
    key = prompt_key(prompt, model_id, summarizer.params)
    if unwritten:  # such prompts are equal if the prompts of their inputs are
        key = hashlib.sha256("|".join([key, *unwritten]).encode()).hexdigest()
    return prompt, key, len(unwritten)


class _Planner:
    """Plans runs and their variants with one engine and store; a text is counted once for all of them."""

    def __init__(self, engine: EngineConfig, tokenizer: str | None, summary: SummaryConfig) -> None:
        self.counter = token_counter(engine, tokenizer)
        estimate = "" if self.counter.exact else ", an estimate"
        self.counting = f"Tokens read are counted by {self.counter.how}{estimate}"
        self.n_thoughts = n_thought_tokens(engine)
        self.requested: set[str] = set()
        self.store: TextStore | None = None
        self.model_id, self.notes = "unknown", list[str]()
        try:
            self.model_id = engine_model_id(engine)
        except (ModelError, MissingExtraError) as error:
            if summary.needs_calls:
                self.notes.append(f"The store is not read: {error}")

    @contextmanager
    def reading(self, store: str | Path | None) -> Iterator[None]:
        """Look texts up in a store, if it exists and their keys are known."""
        exists = store is not None and (is_database_url(store) or Path(store).is_file())
        if store is None or not exists or self.model_id == "unknown":
            yield
            return
        with open_store(store) as self.store:
            yield

    def forecast(
        self, histories: Sequence[History], summarizer: BoundSummarizer, requested: set[str] | None = None
    ) -> Forecast:
        return forecast(
            histories,
            summarizer,
            model_id=self.model_id,
            n_tokens=self.counter.count,
            store=self.store,
            requested=requested,
            n_thoughts=self.n_thoughts,
        )

    def plan(self, experiment: Experiment) -> tuple[Forecast, list[StagePlan]]:
        """Return the forecast of a run's summaries, and all stages that call a model."""
        experiment.tokenizer = find_tokenizer(experiment.config.recommender.model) or RoughTokenizer()
        experiment.splits = build_examples(
            experiment.dataset, experiment.config.protocol, experiment.config.seed
        )
        examples = experiment.summarized_examples()
        found = self.forecast(
            [History(e.user_id, e.history) for e in examples], experiment.summarizer, self.requested
        )
        own = {e.example_id: text for e, text in zip(examples, found.profiles, strict=True)}
        stages = [found.stage("summarize"), *self._ranking_stages(experiment, own)]
        for name, variant in variant_experiments(experiment).items():
            stages += [replace(one, stage=f"{name}: {one.stage}") for one in self.plan(variant)[1]]
        return found, stages

    def _ranking_stages(self, experiment: Experiment, own: Mapping[str, str | None]) -> list[StagePlan]:
        """Return the stages of training, validation, calibration and ranking."""
        config, splits, train = experiment.config, experiment.splits, experiment.config.train
        stages = []
        if train is not None:
            n_shown = min(
                train.epochs * len(splits.train), train.n_steps(len(splits.train)) * train.batch_size
            )
            n_times = (train.warm_start is not None) + train.n_validations(len(splits.train))
            learned = self._stage("train", experiment, splits.train, own).scaled(
                n_shown / max(1, len(splits.train))
            )
            once = self._stage("calibrate", experiment, splits.valid, own)
            stages += [
                replace(learned, weight=TRAINING_WEIGHT),
                replace(once.scaled(n_times), stage="validate"),
                once,
            ]
        for name in ("llm_zero_shot", *OWN_MODEL):
            if name in config.rankers:
                kind = OWN_MODEL.get(name, "own")
                shown = own if kind == "own" else experiment.counted_profiles if kind == "counted" else {}
                stages.append(
                    self._stage(
                        f"rank {name}", experiment, splits.test, shown, "" if kind == "none" else None
                    )
                )
        return stages

    def _stage(
        self,
        name: str,
        experiment: Experiment,
        examples: Sequence[RankingExample],
        profiles: Mapping[str, str | None],
        default: str | None = None,
    ) -> StagePlan:
        """Count the prompts of some examples and the tokens read; a shared prefix counts once."""
        builder, n_prompts, n_read = experiment.builder, 0, 0
        shared = experiment.config.recommender.sharing != "separate"
        same = self.counter.model == experiment.config.recommender.model
        n_more = (experiment.config.summary.max_new_tokens + self.n_thoughts) * (
            1 if same else OTHER_TOKENIZER
        )
        for example in examples:
            profile = profiles.get(example.example_id, default) if builder.config.use_profile else ""
            written = placeholder_text(experiment.summarizer) if profile is None else profile
            group = builder.build(example.history, written, example.candidates).group
            suffixes = [len(suffix) for suffix in group.suffixes]
            n_prefix = len(group.prefix)
            if profile is None:
                n_prefix = min(n_prefix + n_more, builder.config.max_tokens - max(suffixes))
            n_prompts += len(suffixes)
            n_read += n_prefix * (1 if shared else len(suffixes)) + sum(suffixes)
        return StagePlan(name, n_prompts, n_read)


def plan_experiment(
    config: RunConfig,
    *,
    rates: Rates,
    tokenizer: str | None = None,
    n_users: int | None = None,
    events_per_day: float | None = None,
) -> dict[str, Any]:
    """Plan a run, or with `n_users` a shop of this many users with one ranked list per user.

    Args:
        config: The experiment; texts in its `store` cost nothing.
        rates: Speed and price of a machine.
        tokenizer: The model whose tokenizer counts; by default the engine's own.
        n_users: Users of the shop; training does not grow with them.
        events_per_day: New events of a user per day, whose cost is then a row of its own.

    Raises:
        ConfigError, ModelError, DataError: a run would stop with it before its first summary.
    """
    planner = _Planner(config.engine, tokenizer, config.summary)
    check_models(config)
    with tempfile.TemporaryDirectory(prefix="trsr-plan-") as folder, planner.reading(config.store):
        experiment = Experiment(RunFolder(Path(folder) / "run", config, "trsr plan"))
        prepare_data(experiment)
        planner.notes += _check(experiment)
        found, stages = planner.plan(experiment)
        if len(stages) > 1:
            rough = isinstance(experiment.tokenizer, RoughTokenizer)
            how = "4 characters each" if rough else f"the tokenizer of {config.recommender.model}"
            planner.notes.append(
                f"train, rank: tokens are counted by {how}, at most if the profile is not written yet. "
                f"A training token counts as {TRAINING_WEIGHT} tokens read; training may stop early."
            )
        if n_users is None:
            return _facts(found, stages, rates, planner)
        return _shop(planner, experiment, stages, rates, n_users, events_per_day)


def _check(experiment: Experiment) -> list[str]:
    """Make a run's checks with the models on this machine; return a note for each missing one."""
    configs = [experiment.config, *variants_of(experiment.config).values()]
    names = {one.recommender.model for one in configs if uses_recommender(one)}
    names |= {one.engine.model for one in configs if isinstance(one.engine, TransformersEngine)}
    try:
        missing = {name for name in names if models.is_missing(name)}
        experiment.splits = build_examples(
            experiment.dataset, experiment.config.protocol, experiment.config.seed
        )
        check_before_summaries(experiment, missing)
    except MissingExtraError as error:
        return [f"The models are not checked: {error}"]
    return [
        f"The model {name!r} is not on this machine: its answers, context and layers are not checked."
        for name in sorted(missing)
    ]


def _shop(
    planner: _Planner,
    experiment: Experiment,
    stages: Sequence[StagePlan],
    rates: Rates,
    n_users: int,
    events_per_day: float | None,
) -> dict[str, Any]:
    """Scale a plan to `n_users`, from a sample of the dataset's users; no store is read."""
    planner.store = None
    histories = user_histories(experiment.dataset, None, None)
    chosen = derive_rng(experiment.config.seed, "plan").permutation(len(histories))[:N_SAMPLE]
    sample = [histories[i] for i in sorted(chosen)]
    whole, factor = planner.forecast(sample, experiment.summarizer), n_users / len(sample)
    rows = [whole.stage("summarize").scaled(factor)]
    for stage in stages[1:]:
        ranks = stage.stage.startswith("rank")
        rows.append(stage.scaled(n_users / len(experiment.splits.test)) if ranks else stage)
    daily = None
    if events_per_day is not None:
        requested: set[str] = set()
        planner.forecast(
            [History(h.user_id, h.item_ids[:-1]) for h in sample], experiment.summarizer, requested
        )
        newest = planner.forecast(sample, experiment.summarizer, requested).stage("each day")
        daily = price([newest.scaled(factor * events_per_day)], rates)[0]
    return {
        "users": n_users,
        "stages": price(rows, rates),
        "each_day": daily,
        "store_bytes_at_most": round(whole.store_bytes * factor),
        "notes": [
            f"summarize: from {len(sample):,} of {len(histories):,} users, scaled to {n_users:,}. "
            f"{planner.counting}.",
            "rank: one list per user, as long as the test's lists.",
            "each day: new events are summarized as they come; a nightly batch makes fewer calls.",
            *planner.notes,
        ],
    }


def plan_dataset(
    data: Path,
    chosen: ProfileSettings,
    store: str | Path,
    limit: int | None,
    user_id: str | None,
    rates: Rates,
) -> dict[str, Any]:
    """Plan a command `trsr summarize`.

    Raises:
        DataError: the folder is no dataset, or has no such user.
    """
    dataset = Dataset.open(data)
    planner = _Planner(chosen.engine, None, chosen.summary)
    with planner.reading(store):
        found = planner.forecast(
            user_histories(dataset, limit, user_id), bind_summarizer(dataset, chosen.summary)
        )
    return _facts(found, [found.stage("summarize")], rates, planner)


def _facts(found: Forecast, stages: Sequence[StagePlan], rates: Rates, planner: _Planner) -> dict[str, Any]:
    note = "summarize: no model is called."
    if found.n_calls:
        note = (
            f"summarize: {found.n_calls:,} calls in the plans; the store or an equal call answers "
            f"{found.n_calls - found.n_to_make:,}. {planner.counting}; "
            "texts not yet written, and tokens written, count "
            f"as the cap of {found.max_new_tokens} per call."
        )
    return {
        "profiles": len(found.profiles),
        "calls": found.n_calls,
        "calls_known": found.n_calls - found.n_to_make,
        "calls_to_make": found.n_to_make,
        "prompt_tokens_at_most": found.prompt_tokens,
        "generated_tokens_at_most": found.n_to_make * found.max_new_tokens,
        "stages": price(stages, rates),
        "store_bytes_at_most": round(found.store_bytes),
        "notes": [note, *planner.notes],
    }


def render(facts: Mapping[str, Any]) -> str:
    """Return a plan as text: a table of the stages, then the notes."""
    table = [("stage", "calls", "tokens read", "tokens written", "hours", "machines", "money")]
    for row in [*facts["stages"], *filter(None, [facts.get("each_day")])]:
        counts = [f"{row[name]:,}" for name in ("calls", "read", "written")]
        hours, money = ("?" if row[name] is None else f"{row[name]:,.2f}" for name in ("hours", "money"))
        machines = "?" if row["machines"] is None else str(row["machines"])
        table.append((row["stage"], counts[0], counts[1], counts[2], hours, machines, money))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    lines.append(f"\nStore: at most about {facts['store_bytes_at_most'] / 1e6:,.1f} MB more.")
    return "\n".join([*lines, *facts["notes"]])
