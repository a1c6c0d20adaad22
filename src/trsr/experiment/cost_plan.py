"""Counts what an experiment will ask of its models before it is run: `trsr plan`.

No model is loaded and no library of one is needed. How exact the counts are is said with them: calls are
exact, and so are the tokens of prompts whose texts are all known; the others are bounded from above.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import polars as pl

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import DataError
from trsr.experiment.config import OWN_MODEL, FolderData, RunConfig, variants_of
from trsr.experiment.dataset_profiles import histories_with_text
from trsr.experiment.experiment import item_texts, summarised
from trsr.experiment.forecast import (
    TRAINING_WEIGHT,
    CallCounts,
    Forecast,
    PromptCounts,
    Work,
    count_prompts,
    forecast,
    unwritten_text,
)
from trsr.llm.base import Tokenizer
from trsr.llm.context import find_tokenizer
from trsr.llm.fake import RoughTokenizer
from trsr.llm.opening import TokenCounter
from trsr.recommend.prompt import PromptBuilder, load_ranking_template
from trsr.seeding import derive_rng
from trsr.splitting.examples import Splits, build_examples, make_resampler
from trsr.summarize.plan import plan_calls
from trsr.summarize.store import Store, TextStore, open_store
from trsr.summarize.store_url import is_database
from trsr.summarize.user_plan import Summariser, make_summariser
from trsr.train.config import ProfileKind
from trsr.train.dataset import profile_kind
from trsr.types import History, RankingExample

OTHER_TOKENIZER = 4
"""Tokens that one tokenizer makes of a token of another, at most: no more than a token has bytes, about."""


@dataclass(frozen=True)
class Plan:
    """What an experiment will do, stage by stage.

    Attributes:
        n_profiles: Profiles to be written, without those of variants.
        n_test: Test examples.
        summaries: The calls for summaries; for variants, in their own plans.
        work: Of every stage that asks a model, variants included.
        notes: Sentences that say what is exact.
    """

    n_profiles: int
    n_test: int
    summaries: Forecast
    work: list[Work]
    notes: list[str]


@contextmanager
def planned_dataset(config: RunConfig) -> Iterator[Dataset]:
    """Open the data of an experiment; data that a run would make is made in a folder that is gone afterwards.

    Raises:
        DataError: the data cannot be read.
    """
    if isinstance(config.data, FolderData):
        yield Dataset.open(config.data.path)
        return
    with tempfile.TemporaryDirectory(prefix="trsr-plan-") as folder:
        target = Path(folder) / "data"
        if isinstance(config.data, SyntheticConfig):
            yield generate(config.data, target)
        else:
            yield config.data.run(target)


@contextmanager
def known_texts(place: str | Path | None) -> Iterator[Store | None]:
    """Open a store that is there already; planning makes none."""
    if place is None or not (is_database(place) or Path(place).is_file()):
        yield None
        return
    with open_store(place) as store:
        yield store


def summary_work(told: Forecast) -> Work:
    """Return the work of the stage `summarize`."""
    total = told.total()
    written = total.n_to_make * told.max_new_tokens
    return Work("summarize", total.n_to_make, total.prompt_tokens, written, read_exact=total.n_exact)


def summary_notes(told: Forecast, counter: TokenCounter) -> list[str]:
    """Say which counts of summaries are exact."""
    total = told.total()
    if not total.n_calls:
        return ["summarize: no model is asked."]
    known, bounded = total.n_calls - total.n_to_make, total.n_to_make - total.n_exact
    return [
        f"summarize: {total.n_calls:,} calls in the plans (exact); {known:,} of them answered by the store "
        f"or by an equal call, {total.n_to_make:,} to make (exact, unless two prompts happen to get one "
        "text).",
        f"summarize: tokens read are counted by {counter.how}: {'exact' if counter.exact else 'estimated'} "
        f"for {total.n_exact:,} calls whose prompt is known, at most for {bounded:,} that read texts not yet "
        f"written, each counted at its cap of {told.max_new_tokens} tokens.",
        "summarize: tokens written are the cap of every call; few texts are that long.",
    ]


class Planner:
    """Plans one experiment on one dataset.

    Args:
        config: The experiment; its variants are planned with it.
        dataset: Its data.
        counter: Counts the tokens of summary prompts.
        n_thoughts: Tokens that a call for a summary may write beside its text's cap.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, counter: TokenCounter, n_thoughts: int = 0
    ) -> None:
        self.config, self.dataset, self.counter, self.n_thoughts = config, dataset, counter, n_thoughts
        tokenizer = find_tokenizer(config.recommender.model)
        self.exact_tokenizer = tokenizer is not None
        self.tokenizer: Tokenizer = tokenizer or RoughTokenizer()

    def plan(self, store: TextStore | None, model_id: str, asked: set[str] | None = None) -> Plan:
        """Plan the experiment, then its variants, which need not pay for summaries that it has.

        Args:
            store: Texts that are there already.
            model_id: That of the engine.
            asked: See `forecast`.
        """
        asked = set() if asked is None else asked
        splits = build_examples(self.dataset, self.config.protocol, self.config.seed)
        examples = summarised(splits, self.config)
        summariser = make_summariser(self.dataset, self.config.summary)
        told = forecast(
            [History(e.user_id, e.history) for e in examples],
            summariser,
            model_id=model_id,
            n_tokens=self.counter.count,
            store=store,
            asked=asked,
            n_thoughts=self.n_thoughts,
        )
        profiles = {e.example_id: text for e, text in zip(examples, told.profiles, strict=True)}
        work = [summary_work(told), *self._model_work(splits, profiles, summariser)]
        notes = summary_notes(told, self.counter)
        if len(work) > 1:
            notes.append(self._ranking_note())
        for name, variant in variants_of(self.config).items():
            other = Planner(variant, self.dataset, self.counter, self.n_thoughts).plan(store, model_id, asked)
            work += [replace(part, stage=f"{name}: {part.stage}") for part in other.work]
        return Plan(len(examples), len(splits.test), told, work, notes)

    def _ranking_note(self) -> str:
        """Say how the tokens of ranking prompts are counted."""
        how = (
            f"the tokenizer of {self.config.recommender.model}"
            if self.exact_tokenizer
            else "4 characters each"
        )
        return (
            f"train, rank: tokens are counted by {how}, prefixes once a user; exact where the profile is "
            f"known, else at most ({self._n_more()} tokens a profile). A token of training counts as "
            f"{TRAINING_WEIGHT} read; training may stop early."
        )

    def _builder(self) -> PromptBuilder:
        """Return what builds the ranking prompts."""
        prompt = self.config.prompt
        texts = item_texts(self.dataset, prompt.fields, prompt.max_field_tokens, self.tokenizer)
        template = load_ranking_template(prompt.template, self.dataset.info.domain)
        return PromptBuilder(template, prompt, self.tokenizer, texts)

    def _model_work(
        self,
        splits: Splits,
        profiles: Mapping[str, str | None],
        summariser: Summariser,
    ) -> list[Work]:
        """Return the work of training, calibrating and ranking."""
        config, train, valid = self.config, splits.train, splits.valid
        rankers = [name for name in ("llm_zero_shot", *OWN_MODEL) if name in config.rankers]
        if config.train is None and not rankers:
            return []
        builder = self._builder()

        def count(asked: Sequence[RankingExample], kinds: Sequence[ProfileKind]) -> PromptCounts:
            texts = [_profile(summariser, e, profiles, kind) for e, kind in zip(asked, kinds, strict=True)]
            stand_in = unwritten_text(summariser)
            return count_prompts(builder, asked, texts, stand_in=stand_in, n_more=self._n_more())

        work = []
        if config.train is not None:
            mix = config.train.profiles
            learnt, checked = PromptCounts(), PromptCounts()
            resample = make_resampler(self.dataset, config.protocol, config.seed)
            left = config.train.n_steps(len(train)) * config.train.batch_size
            for epoch in range(config.train.epochs):
                fresh = epoch > 0 and config.train.resample_negatives
                kinds = [profile_kind(mix, config.seed, e.example_id, epoch) for e in train]
                shown = [resample(e, epoch) for e in train] if fresh else train
                learnt.add(count(shown[:left], kinds[:left]))
                left = max(0, left - len(train))
            asked_own = count(valid, ["own"] * len(valid))
            at_start = config.train.warm_start is not None
            checked.add(asked_own, at_start + config.train.n_validations(len(train)))
            work.append(self._work("train", learnt, TRAINING_WEIGHT))
            work.append(self._work("validate", checked))
            work.append(self._work("calibrate", asked_own))
        for name in rankers:
            kinds = [OWN_MODEL.get(name, "own")] * len(splits.test)
            work.append(self._work(f"rank {name}", count(splits.test, kinds)))
        return work

    def _n_more(self) -> int:
        """Return the tokens that a profile has at most, for the model that ranks."""
        same = self.counter.model == self.config.recommender.model
        n_more = self.config.summary.max_new_tokens + self.n_thoughts
        return n_more * (1 if same else OTHER_TOKENIZER)

    def _work(self, stage: str, counts: PromptCounts, weight: int = 1) -> Work:
        shared = self.config.recommender.sharing != "separate"
        read = counts.read_tokens if shared else counts.prompt_tokens
        return Work(stage, counts.n_prompts, read, weight=weight, read_exact=counts.n_exact)


def _profile(
    summariser: Summariser, example: RankingExample, own: Mapping[str, str | None], kind: ProfileKind
) -> str | None:
    """Return the profile that an example is shown with; None where it is not written yet."""
    if kind == "counted":
        return summariser.counted(History(example.user_id, example.history))
    return "" if kind == "none" else own[example.example_id]


N_SAMPLE = 1000
"""Users whose prompts are rendered."""


@dataclass(frozen=True)
class Growth:
    """What so many users would ask.

    Attributes:
        work: Of every stage.
        daily: Of each day, new events summarised as they come; None where nothing says how many there are.
        n_store_bytes: The store's size, about, at most.
        notes: Sentences that say where the numbers are from.
    """

    work: list[Work]
    daily: Work | None
    n_store_bytes: int
    notes: list[str]


def grow(
    plan: Plan,
    dataset: Dataset,
    summariser: Summariser,
    counter: TokenCounter,
    *,
    n_users: int,
    events_a_day: float | None,
    seed: int,
) -> Growth:
    """Scale an experiment's plan to a number of users: each has a profile, and is ranked one list.

    Args:
        plan: The experiment's; training does not grow with the users.
        dataset: Gives the histories.
        summariser: Writes the profiles.
        counter: Counts tokens of summary prompts.
        n_users: How many.
        events_a_day: New events of a user a day; by default as in the data, where it has times.
        seed: Of the sample.

    Raises:
        DataError: no user has an item with text.
    """
    histories = list(histories_with_text(dataset))
    if not histories:
        raise DataError(f"{dataset.path} has no user with items that have text; import it anew.")
    chosen = derive_rng(seed, "plan").permutation(len(histories))[:N_SAMPLE]
    sample = [histories[i] for i in sorted(chosen)]
    rendered = _forecast(sample, summariser, counter)
    kinds = Counter(
        call.kind for h in histories for call in plan_calls(summariser.blocks(h.item_ids), summariser.config)
    )
    scale, cap = n_users / len(histories), summariser.config.max_new_tokens
    calls = {kind: round(n * scale) for kind, n in kinds.items()}
    read = sum(n * _mean_tokens(rendered, kind) for kind, n in calls.items())
    n_calls = sum(calls.values())
    summaries = Work("summarize", n_calls, round(read), n_calls * cap, calls_exact=False)
    bytes_a_call = rendered.n_store_bytes / max(1, rendered.total().n_to_make)
    rate = events_a_day if events_a_day is not None else observed_events_a_day(dataset)
    daily = None if rate is None else _daily(sample, rendered, summariser, counter, n_users * rate)
    scaled = [_scaled(work, n_users / plan.n_test) for work in plan.work if work.stage.startswith("rank")]
    rest = [work for work in plan.work if work.stage != "summarize" and not work.stage.startswith("rank")]
    notes = [
        f"summarize: calls from the lengths of all {len(histories):,} histories, tokens from {len(sample):,} "
        f"users, scaled to {n_users:,} users; equal calls of two users are not taken off.",
        "rank: one list a user, as long as those of the test.",
    ]
    if rate is None:
        notes.append(
            "each day: the data has no times, or a single one, to count by; say how many new events a user "
            "has with --daily-events."
        )
    else:
        source = "as given" if events_a_day is not None else "from the data's own times"
        notes.append(
            f"each day: {rate:.4g} new events a user ({source}), each summarised as it comes; "
            "a nightly batch makes fewer calls."
        )
    return Growth([summaries, *rest, *scaled], daily, round(bytes_a_call * n_calls), notes)


def observed_events_a_day(dataset: Dataset) -> float | None:
    """Return the events of a user a day over the time that the data covers; None if it covers none."""
    time = pl.col("timestamp")
    query = dataset.events().select(
        n=pl.len(),
        users=pl.col("user_id").n_unique(),
        timed=time.count(),
        first=time.min(),
        last=time.max(),
    )
    (facts,) = query.collect().to_dicts()
    if not facts["timed"] or facts["first"] == facts["last"]:
        return None
    days = (facts["last"] - facts["first"]) / timedelta(days=1)
    return float(facts["n"] / facts["users"] / days)


def _forecast(histories: Sequence[History], summariser: Summariser, counter: TokenCounter) -> Forecast:
    return forecast(histories, summariser, model_id="planned", n_tokens=counter.count)


def _mean_tokens(told: Forecast, kind: str) -> float:
    """Return the tokens that a call of a kind reads; of any kind where the sample has none of this one."""
    counts = told.by_kind.get(kind, CallCounts())
    if not counts.n_to_make:
        counts = told.total()
    return counts.prompt_tokens / max(1, counts.n_to_make)


def _daily(
    sample: Sequence[History], whole: Forecast, summariser: Summariser, counter: TokenCounter, n_events: float
) -> Work:
    """Return the work of so many events: what the newest events of the sample cost beyond the older ones."""
    before = [History(h.user_id, h.item_ids[:-1]) for h in sample]
    both = _forecast([*before, *sample], summariser, counter).total()
    old = _forecast(before, summariser, counter).total()
    scale = n_events / len(sample)
    calls = (both.n_to_make - old.n_to_make) * scale
    read = (both.prompt_tokens - old.prompt_tokens) * scale
    written = calls * whole.max_new_tokens
    return Work("each day", round(calls), round(read), round(written), calls_exact=False)


def _scaled(work: Work, factor: float) -> Work:
    calls, read, written = (round(n * factor) for n in (work.calls, work.read, work.written))
    return replace(work, calls=calls, read=read, written=written, calls_exact=False, read_exact=0)
