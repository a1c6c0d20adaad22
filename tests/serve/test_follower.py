"""Profiles follow events at the price of the new blocks, and leave what a person wrote alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers import word
from stores import (
    BreakingEngine,
    HearingEngine,
    MeddlingEngine,
    events,
    follow,
    seen,
    summariser_of_many,
)

from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.serve.profile_updater import CALLS_A_ROUND, ProfileUpdater
from trsr.serve.store import PendingUpdate, ServeStore

NOTES = "I like accordions, never gloves."
METHODS = ["recurrent", "hierarchical"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServeStore]:
    store = ServeStore(tmp_path / "serve.sqlite")
    yield store
    store.close()


def text(store: ServeStore, user_id: str = "u") -> str:
    latest = store.latest_profile(user_id)
    assert latest is not None
    return latest.text


def due_now(store: ServeStore) -> None:
    """Let the updates that were put off be due."""
    store._db.execute("UPDATE pending SET due = 0")


def depth(n: int, fan_in: int) -> int:
    levels = 0
    while n > 1:
        n = -(-n // fan_in)
        levels += 1
    return levels


def test_five_new_events_on_500_cost_one_call_of_a_chain(store: ServeStore) -> None:
    summariser = summariser_of_many("recurrent")
    store.add_events("u", events(0, 500))
    assert follow(store, summariser) == 100
    store.add_events("u", events(500, 505))
    assert follow(store, summariser) == 1
    assert seen(store) == [500, 505]
    assert len(store.user_summaries("u")) == 101


def test_five_new_events_on_500_cost_one_path_of_a_tree(store: ServeStore) -> None:
    summariser = summariser_of_many("hierarchical", fan_in=4)
    store.add_events("u", events(0, 500))
    assert follow(store, summariser) > 100
    store.add_events("u", events(500, 505))
    assert 2 <= follow(store, summariser) <= 1 + depth(101, 4)


@pytest.mark.parametrize("method", METHODS)
def test_the_profile_does_not_depend_on_when_it_followed(store: ServeStore, method: str) -> None:
    summariser = summariser_of_many(method, fan_in=2)
    store.add_events("at once", events(0, 23))
    follow(store, summariser)
    for stop in (3, 4, 11, 23):
        store.add_events("bit by bit", events(0, stop))
        follow(store, summariser)
    assert text(store, "at once") == text(store, "bit by bit")
    assert store.user_summaries("at once") == store.user_summaries("bit by bit")
    assert seen(store, "bit by bit") == [3, 4, 11, 23]


def test_many_users_are_folded_in_one_stream(store: ServeStore) -> None:
    sizes = []

    class Counting(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            sizes.append(len(prompts))
            yield from super().generate(prompts, params)

    for number in range(5):
        store.add_events(f"u{number}", events(10 * number, 10 * number + 5))
    follower = ProfileUpdater(store, summariser_of_many(), Counting())
    assert follower.step(limit=4) == 4
    assert follower.step(limit=4) == 1
    assert follower.step(limit=4) == 0
    assert sizes == [4, 1]
    assert (follower.n_updates, follower.totals.n_calls_made, follower.totals.n_calls_failed) == (5, 5, 0)
    assert follower.totals.n_generated_tokens > 0


def test_an_update_with_nothing_new_adds_no_version(store: ServeStore) -> None:
    summariser = summariser_of_many()
    store.add_events("u", events(0, 7))
    follow(store, summariser)
    store.request_update("u")
    assert follow(store, summariser) == 0
    assert seen(store) == [7]
    assert store.pending(9) == []


@pytest.mark.parametrize("method", METHODS)
def test_no_update_changes_the_notes_or_reads_them(store: ServeStore, method: str) -> None:
    summariser = summariser_of_many(method)
    for user in ("u", "without notes"):
        store.add_events(user, events(0, 5))
    notes = store.put_notes("u", NOTES)
    engine = HearingEngine()
    for stop in (5, 12, 17):
        for user in ("u", "without notes"):
            store.add_events(user, events(0, stop))
        follow(store, summariser, engine)
        assert store.notes("u") == notes
    assert seen(store) == [5, 12, 17]
    assert not [heard for heard in engine.heard if "accordions" in heard]
    assert text(store) == text(store, "without notes")


def test_summaries_that_no_plan_reads_go(store: ServeStore) -> None:
    summariser = summariser_of_many()
    store.add_events("u", events(0, 7))
    follow(store, summariser)
    before = store.user_summaries("u")
    assert [len(summary.item_ids) for summary in before] == [5, 2]
    store.add_events("u", events(7, 9))
    follow(store, summariser)
    assert [len(summary.item_ids) for summary in store.user_summaries("u")] == [5, 4]
    assert store.texts([before[1].key]) == {}, "the text of the shorter block is of no use any more"


def test_counts_follow_without_a_model(store: ServeStore) -> None:
    follower = ProfileUpdater(store, summariser_of_many("counted"), None)
    for stop in (6, 9):
        store.add_events("u", events(0, stop))
        assert follower.step() == 1
    assert text(store).startswith("Most often: kind")
    assert seen(store) == [6, 9]


def test_without_a_method_nothing_is_written(store: ServeStore) -> None:
    follower = ProfileUpdater(store, summariser_of_many("none"), None)
    store.add_events("u", events(0, 6))
    assert follower.step() == 0
    assert store.profiles("u") == []
    assert store.pending(9) == []


def test_a_second_follower_of_a_database_adds_no_version_twice(store: ServeStore) -> None:
    other = ProfileUpdater(store, summariser_of_many(), FakeGenerator())
    store.add_events("u", events(0, 5))
    engine = MeddlingEngine(other.step)
    assert ProfileUpdater(store, summariser_of_many(), engine).step() == 0
    assert (other.n_updates, seen(store)) == (1, [5])


def test_events_that_come_while_a_profile_is_written_are_folded_next(store: ServeStore) -> None:
    store.add_events("u", events(0, 5))
    engine = MeddlingEngine(lambda: store.add_events("u", events(5, 8)))
    follower = ProfileUpdater(store, summariser_of_many(), engine)
    assert [follower.step(), follower.step(), follower.step()] == [1, 1, 0]
    assert seen(store) == [5, 8]
    assert engine.n_calls == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_long_history_holds_up_nobody_who_comes_later(store: ServeStore, method: str) -> None:
    store.add_events("long", events(0, 500))
    engine = MeddlingEngine(lambda: store.add_events("short", events(550, 555)))
    follower = ProfileUpdater(store, summariser_of_many(method), engine)
    assert [follower.step(), follower.step()] == [0, 1]
    assert seen(store, "short") == [5]
    assert engine.n_calls <= 2 * CALLS_A_ROUND
    n_calls = engine.n_calls + follow(store, summariser_of_many(method), engine)
    assert seen(store, "long") == [500]
    store.add_events("another", events(0, 500))
    assert follow(store, summariser_of_many(method)) == 0, "rounds change no question"
    assert n_calls == len(store.user_summaries("long")) + 1


def test_a_profile_is_added_as_soon_as_its_fold_is_done(store: ServeStore) -> None:
    class Looking(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                there.append(store.latest_profile("short") is not None)
                yield result

    there: list[bool] = []
    store.add_events("long", events(0, 40))
    store.add_events("short", events(550, 555))
    assert ProfileUpdater(store, summariser_of_many(), Looking()).step() == 2
    assert len(there) == 9
    assert there[:2] + there[3:] == [False] * 2 + [True] * 6


def test_a_long_history_whose_engine_breaks_is_put_off(store: ServeStore) -> None:
    store.add_events("bad", events(50, 550))
    ProfileUpdater(store, summariser_of_many("hierarchical"), BreakingEngine()).step()
    assert store.pending(9) == []
    assert [update.n_attempts for update in waiting(store)] == [1]


def test_a_user_whose_calls_fail_holds_up_nobody(store: ServeStore) -> None:
    bad = FakeGenerator(fail_on=lambda prompt: word(50) in prompt.messages[-1].content)
    store.add_events("bad", events(50, 55))
    store.add_events("good", events(0, 5))
    follower = ProfileUpdater(store, summariser_of_many(), bad)
    assert follower.step() == 1
    assert seen(store, "good") == [5]
    assert follower.step() == 0, "put off"
    assert follower.totals.n_calls_failed == 1
    assert store.facts()["failing"] == 1
    (error,) = store._db.execute("SELECT error FROM pending").fetchone()
    assert "told to fail" in error
    due_now(store)
    assert follower.step() == 0
    due_now(store)
    assert follow(store, summariser_of_many()) == 1
    assert seen(store, "bad") == [5]
    assert store.pending(9) == []


def test_a_user_who_breaks_the_engine_holds_others_up_once(store: ServeStore) -> None:
    store.add_events("bad", events(50, 55))
    store.add_events("good", events(0, 5))
    follower = ProfileUpdater(store, summariser_of_many(), BreakingEngine())
    assert follower.step() == 0
    due_now(store)
    assert follower.step() == 1
    assert [update.n_attempts for update in waiting(store)] == [2]


def test_a_history_that_cannot_be_planned_is_put_off(store: ServeStore) -> None:
    def n_tokens(item_id: str) -> int:
        return {"i0": 1}[item_id]

    summariser = summariser_of_many()
    broken = type(summariser)(
        **{
            **{name: getattr(summariser, name) for name in summariser.__dataclass_fields__},
            "config": summariser.config.model_validate({"segmentation": {"kind": "tokens"}}),
            "n_tokens": n_tokens,
        }
    )
    store.add_events("bad", events(0, 2))
    store.add_events("good", events(0, 1))
    assert ProfileUpdater(store, broken, FakeGenerator()).step() == 1
    assert [update.user_id for update in waiting(store)] == ["bad"]


def waiting(store: ServeStore) -> list[PendingUpdate]:
    due_now(store)
    return store.pending(9)


def test_a_user_deleted_while_their_profile_is_written_stays_deleted(store: ServeStore) -> None:
    store.add_events("u", events(0, 10))
    engine = MeddlingEngine(lambda: store.delete_user("u"))
    assert ProfileUpdater(store, summariser_of_many(), engine).step() == 0
    assert engine.n_calls == 2
    for table in ("users", "events", "profiles", "pending", "plans", "drafts", "summaries"):
        assert store._db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_a_text_that_two_share_names_each_ones_own_items(store: ServeStore) -> None:
    """Merges read texts only, so two users come to the same call by different items."""

    class Laconic(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                yield dataclasses.replace(result, text="lamps.")

    for user, start in (("a", 0), ("b", 100)):
        store.add_events(user, events(start, start + 10))
        ProfileUpdater(store, summariser_of_many("hierarchical"), Laconic()).step()
    one, other = store.user_summaries("a"), store.user_summaries("b")
    assert one[-1].key == other[-1].key
    assert one[-1].item_ids == tuple(f"i{n}" for n in range(10))
    assert other[-1].item_ids == tuple(f"i{n}" for n in range(100, 110))


def test_a_shared_text_that_goes_meanwhile_is_written_again(store: ServeStore) -> None:
    """One user has read it, the other is deleted before the profile of the first is done."""
    summariser = summariser_of_many()
    store.add_events("leaver", events(0, 5))
    follow(store, summariser)
    store.add_events("stayer", events(0, 10))
    engine = MeddlingEngine(lambda: store.delete_user("leaver"))
    follower = ProfileUpdater(store, summariser, engine)
    assert follower.step() == 0
    assert store.profiles("stayer") == []
    assert follower.step() == 1
    assert engine.n_calls == 2
    assert [len(summary.item_ids) for summary in store.user_summaries("stayer")] == [5, 5]


def test_a_user_who_comes_back_meanwhile_gets_nothing_of_the_old_profile(store: ServeStore) -> None:
    def leave_and_come_back() -> None:
        store.delete_user("u")
        store.add_events("u", events(20, 30))

    store.add_events("u", events(0, 10))
    engine = MeddlingEngine(leave_and_come_back)
    follower = ProfileUpdater(store, summariser_of_many(), engine)
    assert follower.step() == 0
    assert store.profiles("u") == []
    assert follower.step() == 1
    (keys,) = store._db.execute("SELECT count(*) FROM summaries").fetchone()
    assert keys == len(store.user_summaries("u")) == 2
    assert {item for s in store.user_summaries("u") for item in s.item_ids} == {
        f"i{n}" for n in range(20, 30)
    }


def test_memory_is_given_back_now_and_then(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    monkeypatch.setattr("trsr.serve.profile_updater.give_back", lambda: given.append(None))
    follower = ProfileUpdater(store, summariser_of_many(), FakeGenerator())
    for stop in (3, 6, 9):
        store.add_events("u", events(stop - 3, stop))
        follower.step()
    assert len(given) == 1
    monkeypatch.setattr("trsr.serve.profile_updater.GIVE_BACK_SECONDS", -1.0)
    store.add_events("u", events(9, 12))
    follower.step()
    assert len(given) == 2
