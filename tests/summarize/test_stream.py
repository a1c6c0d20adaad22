"""An engine is asked one stream of calls, in an order that suits prefix caches, and nothing twice."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from helpers import fold_all, item_ids, make_summariser, word

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import SummaryProgress, complete, summarize, summarize_each
from trsr.summarize.store import SqliteStore, StoredCall
from trsr.summarize.user_plan import start_fold
from trsr.types import History

HISTORIES = [item_ids(start, start + 11) for start in (60, 0, 30, 90, 15, 45, 120)]
N_CALLS = 4 * len(HISTORIES)


class AskedEngine(FakeGenerator):
    """Remembers what it was asked in each call of `generate`: at first, and in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.at_first: list[list[str]] = []
        self.in_all: list[list[str]] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        self.at_first.append([words(prompt) for prompt in prompts])
        yield from super().generate(prompts, params)
        self.in_all.append([words(prompt) for prompt in prompts])


class OldEngine(FakeGenerator):
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


def ask(histories: Sequence[tuple[str, ...]], known: Sequence[tuple[str, ...]] = ()) -> AskedEngine:
    summariser, engine = make_summariser(), AskedEngine()
    with SqliteStore(":memory:") as store:
        fold_all(known, summariser, store)
        fold_all(histories, summariser, store, engine)
    return engine


def n_shared(texts: Sequence[str]) -> int:
    """Return how many characters texts share with the one before, all together."""
    pairs = [zip(one, two, strict=False) for one, two in itertools.pairwise(texts)]
    return sum(sum(1 for _ in itertools.takewhile(lambda ab: ab[0] == ab[1], pair)) for pair in pairs)


def test_prompts_that_begin_alike_follow_each_other() -> None:
    # Some users are known up to their first or second block, so that calls of two kinds can be made at once.
    known = [history[: 3 + 3 * (number % 2)] for number, history in enumerate(HISTORIES[:4])]
    (prompts,) = ask(HISTORIES, known).at_first
    kinds = ["Known before" in prompt for prompt in prompts]
    assert len(prompts) == len(HISTORIES)
    assert len(set(kinds)) == 2, "there are calls of two kinds"
    assert sum(one != two for one, two in itertools.pairwise(kinds)) == 1
    for seed in range(20):
        turned = random.Random(seed).sample(prompts, len(prompts))
        assert n_shared(prompts) >= n_shared(turned)


def test_the_order_of_users_does_not_change_what_is_asked_at_first() -> None:
    assert ask(HISTORIES[::-1]).at_first == ask(HISTORIES).at_first


def test_users_known_to_different_depths_are_asked_at_once() -> None:
    known = [history[: 3 * depth] for depth, history in enumerate(HISTORIES[:4])]
    engine = ask([history[: 3 * depth + 2] for depth, history in enumerate(HISTORIES[:4])], known)
    assert [len(prompts) for prompts in engine.at_first] == [4]


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_all_calls_are_one_stream_and_an_engine_that_takes_rounds_writes_the_same(method: str) -> None:
    summariser, found = make_summariser(method, fan_in=2), []
    for engine in (AskedEngine(), OldEngine()):
        with SqliteStore(":memory:") as store:
            folds = fold_all(HISTORIES, summariser, store, engine)
        found.append([fold.texts for fold in folds])
        if isinstance(engine, AskedEngine):
            assert [len(prompts) for prompts in engine.in_all] == [sum(len(fold.calls) for fold in folds)]
    assert found[0] == found[1]


def test_what_is_being_written_for_one_user_is_not_asked_again_for_another() -> None:
    # Every text is the same, so the last calls of users of different depth are; that of the first user waits.
    end = item_ids(100, 103)
    histories = [item_ids(3 * n, 3 * n + 3 * depth) + end for n, depth in ((0, 1), (10, 2), (20, 3))]
    engine, summariser = LastInEngine(), make_summariser()
    with SqliteStore(":memory:") as store:
        folds = fold_all(histories, summariser, store, engine)
    assert len(engine.keys) == len(set(engine.keys)) == 1 + 2 + 3 + 1
    assert len({fold.keys[len(fold.calls) - 1] for fold in folds}) == 1


def test_users_are_counted_when_their_profile_is_there() -> None:
    users = [History(f"u{n}", items) for n, items in enumerate([*HISTORIES, ()])]
    seen: list[tuple[int, int]] = []

    def note(progress: SummaryProgress) -> None:
        seen.append((progress.n_users_done, progress.n_calls_made + progress.n_calls_known))

    with SqliteStore(":memory:") as store:
        summarize(users[:2], make_summariser(), FakeGenerator(), store)
        summarize(users, make_summariser(), FakeGenerator(), store, note)
    assert seen[0][0] == 1 + 2, "the one without history, and those the store knows"
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(users), N_CALLS)


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_users_in_small_windows_get_the_texts_of_users_all_at_once(method: str) -> None:
    users = [History(f"u{n}", items) for n, items in enumerate([*HISTORIES, (), HISTORIES[0]])]
    summariser, n_open = make_summariser(method), 0

    def told() -> Iterator[History]:
        nonlocal n_open
        for user in users:
            n_open += 1
            assert n_open <= 3, "no more users are read than the window holds"
            yield user

    with SqliteStore(":memory:") as store:
        whole = [
            (fold.history, fold.texts, fold.keys)
            for fold in summarize(users, summariser, FakeGenerator(), store)
        ]
    found, engine = [], FakeGenerator()
    with SqliteStore(":memory:") as store:
        for fold in summarize_each(told(), summariser, engine, store, window=3):
            n_open -= 1
            found.append((fold.history, fold.texts, fold.keys))
    assert found == whole
    assert engine.n_calls == len({key for _, _, keys in whole for key in keys.values()})


def test_users_of_a_failed_call_are_handed_on_unfinished_and_the_others_are_done() -> None:
    users = [History(f"u{n}", items) for n, items in enumerate(HISTORIES)]
    lost: list[tuple[str, ...]] = []
    engine = FakeGenerator(fail_on=lambda prompt: make_summariser().item_text("i30") in words(prompt))
    with SqliteStore(":memory:") as store:
        folds = summarize_each(users, make_summariser(), engine, store, window=2)
        with pytest.raises(EngineError, match="1 summary calls failed"):
            lost.extend(fold.history.item_ids for fold in folds if not fold.done)
    assert lost == [items for items in HISTORIES if "i30" in items[:3]]


def test_results_that_arrive_together_are_kept_together() -> None:
    class Counting(SqliteStore):
        groups: list[int] = []  # noqa: RUF012 - of one store

        def put_all(self, calls: Sequence[StoredCall]) -> None:
            self.groups.append(len(calls))
            super().put_all(calls)

    with Counting(":memory:") as store:
        fold_all(HISTORIES, make_summariser(), store)
        assert store.groups == [len(HISTORIES)] * (N_CALLS // len(HISTORIES))


def test_folds_that_need_no_failed_call_are_done() -> None:
    summariser = make_summariser()
    folds = [start_fold(History(f"u{n}", item_ids(9 * n, 9 * n + 6)), summariser) for n in range(3)]
    bad = FakeGenerator(fail_on=lambda prompt: word(9) in prompt.messages[-1].content)
    with SqliteStore(":memory:") as store, pytest.raises(EngineError, match="1 of 3 profiles"):
        complete(folds, summariser, bad, store)
    assert [fold.done for fold in folds] == [True, False, True]


def test_a_kept_text_names_the_users_that_waited_for_it() -> None:
    class Kept(SqliteStore):
        def put(self, call: StoredCall) -> None:
            seen.append(call.user_ids)

        def put_all(self, calls: Sequence[StoredCall]) -> None:
            seen.extend(call.user_ids for call in calls)

    seen: list[tuple[str, ...]] = []
    summariser = make_summariser()
    shared = [start_fold(History(name, item_ids(0, 3)), summariser) for name in ("b", "a", "a")]
    with Kept(":memory:") as store:
        complete(
            [*shared, start_fold(History("c", item_ids(3, 6)), summariser)],
            summariser,
            FakeGenerator(shuffle=False),
            store,
        )
    assert sorted(seen) == [("b", "a"), ("c",)]
