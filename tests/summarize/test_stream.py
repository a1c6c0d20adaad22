"""An engine gets one stream of calls, in an order that suits prefix caches, and nothing twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from helpers import bind_summarizer, item_ids, summarize_all, word

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import SummaryProgress, summarize, summarize_each
from trsr.summarize.store import SqliteStore, StoredCall, open_store
from trsr.types import History

HISTORIES = [item_ids(start, start + 11) for start in (60, 0, 30, 90, 15, 45, 120)]
USERS = [History(f"u{n}", items) for n, items in enumerate(HISTORIES)]
N_CALLS = 4 * len(HISTORIES)
BY_METHOD = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])


class Recorder(FakeGenerator):
    """Remembers the prompts of each call of `generate`: at first, and in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.at_first: list[list[str]] = []
        self.in_all: list[list[str]] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        self.at_first.append([words(prompt) for prompt in prompts])
        yield from super().generate(prompts, params)
        self.in_all.append([words(prompt) for prompt in prompts])


class RoundEngine(FakeGenerator):
    """Takes no prompts after it has begun."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        yield from super().generate(list(prompts), params)


class LastInEngine(FakeGenerator):
    """Answers what came last first, and always alike."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        answered: set[int] = set()
        while len(answered) < len(prompts):
            index = max(set(range(len(prompts))) - answered)
            answered.add(index)
            self.keys.append(prompt_key(prompts[index], self.model_id, params))
            yield Generation(index, "the same as everybody.", 1, 1, 0.0)


def words(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt.messages)


def recorded(histories: Sequence[tuple[str, ...]], known: Sequence[tuple[str, ...]] = ()) -> Recorder:
    summarizer, engine = bind_summarizer(), Recorder()
    with open_store(":memory:") as store:
        summarize_all(known, summarizer, store)
        summarize_all(histories, summarizer, store, engine)
    return engine


def n_shared(texts: Sequence[str]) -> int:
    """Return how many characters texts share with the one before, all together."""
    pairs = [zip(one, two, strict=False) for one, two in itertools.pairwise(texts)]
    return sum(sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pair)) for pair in pairs)


def test_prompts_that_begin_alike_follow_each_other_in_any_order_of_users() -> None:
    # Some users are known up to their first or second block, so that calls of two kinds can be made at once.
    known = [history[: 3 + 3 * (number % 2)] for number, history in enumerate(HISTORIES[:4])]
    (prompts,) = recorded(HISTORIES, known).at_first
    kinds = ["Known before" in prompt for prompt in prompts]
    assert len(prompts) == len(HISTORIES)
    assert sum(one != two for one, two in itertools.pairwise(kinds)) == 1
    for seed in range(20):
        assert n_shared(prompts) >= n_shared(random.Random(seed).sample(prompts, len(prompts)))
    assert recorded(HISTORIES[::-1], known).at_first == [prompts]


@BY_METHOD
def test_all_calls_are_one_stream_and_an_engine_that_takes_rounds_writes_the_same(method: str) -> None:
    summarizer, found = bind_summarizer(method, fan_in=2), []
    for engine in (Recorder(), RoundEngine()):
        with open_store(":memory:") as store:
            plans = summarize_all(HISTORIES, summarizer, store, engine)
        found.append([plan.texts for plan in plans])
        if isinstance(engine, Recorder):
            assert [len(prompts) for prompts in engine.in_all] == [sum(len(plan.calls) for plan in plans)]
    assert found[0] == found[1]


def test_what_is_being_written_for_one_user_is_not_requested_again_for_another() -> None:
    # Every text is the same, so the last calls of users of different depth are; that of the first user waits.
    end = item_ids(100, 103)
    histories = [item_ids(3 * n, 3 * n + 3 * depth) + end for n, depth in ((0, 1), (10, 2), (20, 3))]
    engine = LastInEngine()
    with open_store(":memory:") as store:
        plans = summarize_all(histories, bind_summarizer(), store, engine)
    assert len(engine.keys) == len(set(engine.keys)) == 1 + 2 + 3 + 1
    assert len({plan.keys[len(plan.calls) - 1] for plan in plans}) == 1


def test_progress_counts_calls_tokens_and_users_when_their_profile_is_there() -> None:
    users = [*USERS, History("empty", ()), History("again", HISTORIES[0])]
    seen: list[tuple[int, int, int]] = []

    def note(progress: SummaryProgress) -> None:
        n_calls = progress.n_calls_made + progress.n_calls_known
        seen.append((progress.n_users_done, n_calls, progress.n_generated_tokens))

    with open_store(":memory:") as store:
        summarize(users[:2], bind_summarizer(), FakeGenerator(), store)
        summarize(users, bind_summarizer(), FakeGenerator(), store, note)
        n_tokens = store.stats()[0].n_generated_tokens
    assert seen[0][0] == 1 + 3, "the one without history, and those the store knows"
    assert seen == sorted(seen)
    assert seen[-1][:2] == (len(users), N_CALLS + 4)
    assert 0 < seen[-1][2] < n_tokens


@BY_METHOD
def test_users_in_small_windows_get_the_texts_of_users_all_at_once(method: str) -> None:
    users = [*USERS, History("empty", ()), History("again", HISTORIES[0])]
    summarizer, n_open = bind_summarizer(method), 0

    def source() -> Iterator[History]:
        nonlocal n_open
        for user in users:
            n_open += 1
            assert n_open <= 3, "no more users are read than the window holds"
            yield user

    with open_store(":memory:") as store:
        plans = summarize(users, summarizer, FakeGenerator(), store)
        whole = [(plan.history, plan.texts, plan.keys) for plan in plans]
    found, engine = [], FakeGenerator()
    with open_store(":memory:") as store:
        for plan in summarize_each(source(), summarizer, engine, store, window=3):
            n_open -= 1
            found.append((plan.history, plan.texts, plan.keys))
    assert found == whole
    assert engine.n_calls == len({key for _, _, keys in whole for key in keys.values()})


def test_users_of_a_failed_call_are_unfinished_and_the_others_done() -> None:
    summarizer = bind_summarizer()
    engine = FakeGenerator(fail_on=lambda prompt: word(30) in prompt.messages[-1].content)
    lost: list[tuple[str, ...]] = []
    with open_store(":memory:") as store:
        plans = summarize_each(USERS, summarizer, engine, store, window=2)
        with pytest.raises(EngineError, match="1 summary calls failed"):
            lost.extend(plan.history.item_ids for plan in plans if not plan.done)
    assert lost == [items for items in HISTORIES if "i30" in items[:3]]


def test_results_that_arrive_together_are_kept_together() -> None:
    groups = []

    class Counting(SqliteStore):
        def put_all(self, calls: Sequence[StoredCall]) -> None:
            groups.append(len(calls))
            super().put_all(calls)

    with Counting(":memory:") as store:
        summarize_all(HISTORIES, bind_summarizer(), store)
    assert groups == [len(HISTORIES)] * (N_CALLS // len(HISTORIES))


def test_a_kept_text_names_the_users_that_waited_for_it() -> None:
    seen: list[tuple[str, ...]] = []

    class Kept(SqliteStore):
        def put(self, call: StoredCall) -> None:
            seen.append(call.user_ids)

        def put_all(self, calls: Sequence[StoredCall]) -> None:
            seen.extend(call.user_ids for call in calls)

    users = [*(History(name, item_ids(0, 3)) for name in ("b", "a", "a")), History("c", item_ids(3, 6))]
    with Kept(":memory:") as store:
        summarize(users, bind_summarizer(), FakeGenerator(), store)
    assert sorted(seen) == [("b", "a"), ("c",)]
