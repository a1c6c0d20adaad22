"""What a shop of many users would ask of the models, from a dataset's own histories.

Calls come from the lengths of all histories, scaled to the number of users; tokens a call from a sample of
users; the cost of a day from what one more event of these users would have to be paid for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.experiment.cost_plan import Plan
from trsr.experiment.costs import Work
from trsr.experiment.dataset_profiles import histories_with_text
from trsr.experiment.summary_forecast import CallCounts, Forecast, forecast
from trsr.llm.token_counts import TokenCounter
from trsr.seeding import derive_rng
from trsr.summarize.plan import plan_calls
from trsr.summarize.summarizer import Summariser
from trsr.types import History

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
