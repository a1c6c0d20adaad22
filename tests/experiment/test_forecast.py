"""The forecast of summaries equals the run that follows, call by call and token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import bind_summarizer, item_ids

from trsr.experiment.cost_plan import Forecast, forecast
from trsr.llm.fake import FakeGenerator, n_words
from trsr.summarize.executor import SummaryProgress, summarize
from trsr.summarize.store import TextStore, open_store
from trsr.summarize.user_plan import BoundSummarizer, profile
from trsr.types import History

# Lengths at, below and above block boundaries; equal beginnings and one equal history.
USERS = [(0, 1), (0, 3), (0, 10), (20, 30), (20, 30), (40, 61), (7, 27)]
HISTORIES = [History(f"u{n}", item_ids(*place)) for n, place in enumerate(USERS)]
METHODS = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])


def planned(
    histories: list[History],
    summarizer: BoundSummarizer,
    store: TextStore | None = None,
    requested: set[str] | None = None,
    model_id: str = "fake@1",
) -> Forecast:
    return forecast(
        histories, summarizer, model_id=model_id, n_tokens=n_words, store=store, requested=requested
    )


def run(histories: list[History], summarizer: BoundSummarizer, store: TextStore) -> SummaryProgress:
    seen = [SummaryProgress()]
    folds = summarize(histories, summarizer, FakeGenerator(), store, seen.append)
    assert all(profile(fold, summarizer).text for fold in folds)
    return seen[-1]


@METHODS
def test_forecast_counts_the_calls_of_the_run(method: str) -> None:
    summarizer = bind_summarizer(method, fan_in=3)
    found = planned(HISTORIES, summarizer)
    with open_store(":memory:") as store:
        done = run(HISTORIES, summarizer, store)
        n_rows = len(list(store.rows()))
    assert found.n_calls == done.n_calls
    assert found.n_to_make == done.n_calls_made == n_rows
    assert found.n_calls - found.n_to_make == done.n_calls_known > 0
    assert done.n_prompt_tokens <= found.prompt_tokens
    assert done.n_generated_tokens <= found.stage("summarize").written == found.n_to_make * 48


@METHODS
def test_forecast_of_prompts_that_get_one_text_is_an_upper_bound(method: str) -> None:
    summarizer = bind_summarizer(method, fan_in=3, grounded=True)  # four words of few: some texts are equal
    found = planned(HISTORIES, summarizer)
    with open_store(":memory:") as store:
        done = run(HISTORIES, summarizer, store)
    assert found.n_calls == done.n_calls
    assert found.n_to_make - 5 < done.n_calls_made <= found.n_to_make
    assert done.n_prompt_tokens <= found.prompt_tokens


@METHODS
def test_forecast_of_first_calls_has_exact_tokens(method: str) -> None:
    single = [History(h.user_id, h.item_ids[:3]) for h in HISTORIES]
    summarizer = bind_summarizer(method)
    found = planned(single, summarizer)
    with open_store(":memory:") as store:
        done = run(single, summarizer, store)
    assert (found.n_to_make, found.prompt_tokens) == (done.n_calls_made, done.n_prompt_tokens)


@METHODS
def test_forecast_reads_known_texts_from_the_store(method: str) -> None:
    summarizer = bind_summarizer(method)
    earlier = [History(h.user_id, h.item_ids[:-2]) for h in HISTORIES[2:]]
    with open_store(":memory:") as store:
        run(earlier, summarizer, store)
        found, other = (
            planned(HISTORIES, summarizer, store),
            planned(HISTORIES, summarizer, store, None, "m@1"),
        )
        done = run(HISTORIES, summarizer, store)
        after = planned(HISTORIES, summarizer, store)
    new = planned(HISTORIES, summarizer)
    assert (found.n_calls, found.n_to_make) == (done.n_calls, done.n_calls_made)
    assert found.n_to_make < new.n_to_make == other.n_to_make  # another model's texts are of no use
    assert found.prompt_tokens >= done.n_prompt_tokens
    assert after.n_to_make == after.prompt_tokens == after.store_bytes == 0
    assert None not in after.profiles


@pytest.mark.parametrize("method", ["none", "counted", "recurrent"])
def test_forecast_returns_the_profiles_that_are_known(method: str) -> None:
    summarizer = bind_summarizer(method)
    with open_store(":memory:") as store:
        folds = summarize(HISTORIES, summarizer, FakeGenerator(), store)
        found = planned(HISTORIES, summarizer, store)
    assert found.profiles == [profile(fold, summarizer).text for fold in folds]
    if method == "recurrent":
        assert set(planned(HISTORIES, summarizer).profiles) == {None}


def test_forecast_counts_calls_requested_before_as_known() -> None:
    summarizer, requested = bind_summarizer("recurrent"), set[str]()
    first, again = (planned(HISTORIES, summarizer, None, requested) for _ in range(2))
    assert len(requested) == first.n_to_make
    assert (again.n_calls, again.n_to_make) == (first.n_calls, 0)


@METHODS
def test_forecast_bounds_the_size_of_the_store(method: str, tmp_path: Path) -> None:
    users = [History(f"u{n}", item_ids(n, n + 30)) for n in range(150)]
    summarizer = bind_summarizer(method, max_new_tokens=8)
    found = planned(users, summarizer)
    with open_store(tmp_path / "s.sqlite") as store:
        done = run(users, summarizer, store)
        bound = found.store_bytes * done.n_calls_made / found.n_to_make
        assert bound / 2 < store.n_bytes() < bound
