"""What is foretold of summaries is what a run then does, call by call and token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import item_ids, make_summariser

from trsr.experiment.forecast import Forecast, forecast
from trsr.llm.fake import FakeGenerator, n_words
from trsr.summarize.executor import SummaryProgress, summarize
from trsr.summarize.store import TextStore, open_store
from trsr.summarize.user_plan import Summariser, profile
from trsr.types import History

# Lengths at, below and above block boundaries; equal beginnings and one equal history.
USERS = [(0, 1), (0, 3), (0, 10), (20, 30), (20, 30), (40, 61), (7, 27)]
HISTORIES = [History(f"u{n}", item_ids(*place)) for n, place in enumerate(USERS)]
METHODS = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])


def foretell(histories: list[History], summariser: Summariser, store: TextStore | None = None) -> Forecast:
    return forecast(histories, summariser, model_id="fake@1", n_tokens=n_words, store=store)


def run(histories: list[History], summariser: Summariser, store: TextStore) -> SummaryProgress:
    seen = [SummaryProgress()]
    folds = summarize(histories, summariser, FakeGenerator(), store, seen.append)
    assert all(profile(fold, summariser).text for fold in folds)
    return seen[-1]


@METHODS
def test_counts_are_those_of_the_run(method: str) -> None:
    summariser = make_summariser(method, fan_in=3)
    told = foretell(HISTORIES, summariser).total()
    with open_store(":memory:") as store:
        done = run(HISTORIES, summariser, store)
        n_rows = len(list(store.rows()))
    assert told.n_calls == done.n_calls
    assert told.n_to_make == done.n_calls_made == n_rows
    assert told.n_calls - told.n_to_make == done.n_calls_known > 0
    assert told.exact_tokens < done.n_prompt_tokens <= told.prompt_tokens
    assert done.n_generated_tokens <= told.n_to_make * 48


@METHODS
def test_prompts_that_happen_to_get_one_text_only_make_the_run_cheaper(method: str) -> None:
    summariser = make_summariser(method, fan_in=3, grounded=True)  # four words of few: some texts are equal
    told = foretell(HISTORIES, summariser).total()
    with open_store(":memory:") as store:
        done = run(HISTORIES, summariser, store)
    assert told.n_calls == done.n_calls
    assert told.n_to_make - 5 < done.n_calls_made <= told.n_to_make
    assert done.n_prompt_tokens <= told.prompt_tokens


@METHODS
def test_tokens_of_first_calls_are_exact(method: str) -> None:
    single = [History(h.user_id, h.item_ids[:3]) for h in HISTORIES]
    summariser = make_summariser(method)
    told = foretell(single, summariser).total()
    with open_store(":memory:") as store:
        done = run(single, summariser, store)
    assert (told.n_exact, told.exact_tokens) == (done.n_calls_made, done.n_prompt_tokens)
    assert told.bounded_tokens == 0
    assert foretell(HISTORIES, summariser).by_kind["first"].bounded_tokens == 0


@METHODS
def test_what_the_store_knows_is_neither_paid_nor_guessed(method: str) -> None:
    summariser = make_summariser(method)
    earlier = [History(h.user_id, h.item_ids[:-2]) for h in HISTORIES[2:]]
    with open_store(":memory:") as store:
        run(earlier, summariser, store)
        told = foretell(HISTORIES, summariser, store).total()
        done = run(HISTORIES, summariser, store)
        assert (told.n_calls, told.n_to_make) == (done.n_calls, done.n_calls_made)
        assert told.n_to_make < foretell(HISTORIES, summariser).total().n_to_make
        assert told.prompt_tokens >= done.n_prompt_tokens
        after = foretell(HISTORIES, summariser, store)
    assert after.total().n_to_make == after.total().prompt_tokens == after.n_store_bytes == 0
    assert None not in after.profiles


def test_a_call_whose_inputs_are_all_known_is_exact() -> None:
    summariser = make_summariser("recurrent")
    history = History("u", item_ids(0, 12))
    with open_store(":memory:") as store:
        run([History("u", item_ids(0, 9))], summariser, store)
        told = foretell([history], summariser, store).total()
        done = run([history], summariser, store)
    assert (told.n_to_make, told.n_exact, told.exact_tokens) == (1, 1, done.n_prompt_tokens)


def test_profiles_are_those_of_the_run() -> None:
    for method in ("none", "counted", "recurrent"):
        summariser = make_summariser(method)
        with open_store(":memory:") as store:
            folds = summarize(HISTORIES, summariser, FakeGenerator(), store)
            told = foretell(HISTORIES, summariser, store)
        assert told.profiles == [profile(fold, summariser).text for fold in folds]
    assert set(foretell(HISTORIES, summariser).profiles) == {None}


def test_another_model_knows_nothing_of_these_texts() -> None:
    summariser = make_summariser("recurrent")
    with open_store(":memory:") as store:
        run(HISTORIES, summariser, store)
        told = forecast(HISTORIES, summariser, model_id="other@1", n_tokens=n_words, store=store)
    assert told.total().n_to_make == foretell(HISTORIES, summariser).total().n_to_make


def test_calls_that_are_made_anyway_are_not_made_twice() -> None:
    summariser = make_summariser("recurrent")
    asked: set[str] = set()
    first = forecast(HISTORIES, summariser, model_id="fake@1", n_tokens=n_words, asked=asked)
    assert len(asked) == first.total().n_to_make
    again = forecast(HISTORIES, summariser, model_id="fake@1", n_tokens=n_words, asked=asked)
    assert (again.total().n_calls, again.total().n_to_make) == (first.total().n_calls, 0)


@METHODS
def test_the_size_of_the_store_is_a_bound_and_not_a_wild_one(method: str, tmp_path: Path) -> None:
    users = [History(f"u{n}", item_ids(n, n + 30)) for n in range(150)]
    summariser = make_summariser(method, max_new_tokens=8)
    told = foretell(users, summariser)
    with open_store(tmp_path / "s.sqlite") as store:
        done = run(users, summariser, store)
        bound = told.n_store_bytes * done.n_calls_made / told.total().n_to_make
        assert bound / 2 < store.n_bytes() < bound
