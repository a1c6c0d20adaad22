"""A profile that starts from a given text: the text is never asked for, and every later call builds on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from helpers import item_ids, make_summariser, word
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.segment import CountSegmentation, segment
from trsr.summarize.plan import GIVEN, Call, SummaryConfig, plan_calls, plan_hierarchical, plan_recurrent
from trsr.summarize.run import Fold, Summariser, complete, profile, start_fold
from trsr.summarize.store import StoredCall, SummaryStore
from trsr.types import Block, History

EDIT = "This user likes accordions, never gloves."


class ListeningEngine(FakeGenerator):
    """Keeps the last message of every prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for result in super().generate(prompts, params):
            self.heard.append(prompts[result.index].messages[-1].content)
            yield result


def blocks(n: int) -> list[Block]:
    return segment(item_ids(0, 2 * n), CountSegmentation(block_size=2))


def fold_from(
    text: str, stop: int, summariser: Summariser, store: SummaryStore
) -> tuple[Fold, ListeningEngine]:
    engine = ListeningEngine()
    fold = start_fold(History("u", item_ids(0, stop)), summariser, text)
    complete([fold], summariser, engine, store)
    return fold, engine


def test_a_chain_goes_on_from_the_given_text() -> None:
    assert plan_recurrent(blocks(2), given=True) == [
        GIVEN,
        Call("update", (0,), ("i0", "i1")),
        Call("update", (1,), ("i2", "i3")),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(2, 6))
def test_a_tree_is_as_without_it_and_merged_with_the_given_text_last(n: int, fan_in: int) -> None:
    alone = plan_hierarchical(blocks(n), fan_in)
    calls = plan_hierarchical(blocks(n), fan_in, given=True)
    moved = [Call(call.kind, tuple(i + 1 for i in call.inputs), call.item_ids) for call in alone]
    assert calls == [GIVEN, *moved, Call("merge", (0, len(alone)), item_ids(0, 2 * n))]


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_with_no_block_the_given_text_is_all(method: str) -> None:
    summariser = make_summariser(method)
    assert plan_calls([], summariser.config, given=True) == [GIVEN]
    fold = start_fold(History("u", ()), summariser, EDIT)
    assert fold.done
    made = profile(fold, summariser)
    assert (made.text, made.key, made.n_items) == (EDIT, None, 0)


@pytest.mark.parametrize("method", ["none", "counted"])
def test_methods_without_a_model_plan_nothing(method: str) -> None:
    assert plan_calls(blocks(2), SummaryConfig.model_validate({"method": method}), given=True) == []


@pytest.mark.parametrize(("method", "n_calls"), [("recurrent", 2), ("hierarchical", 4)])
def test_the_model_reads_the_given_text_and_is_never_asked_for_it(method: str, n_calls: int) -> None:
    with SummaryStore(":memory:") as store:
        fold, engine = fold_from(EDIT, 6, make_summariser(method), store)
    reading = [content for content in engine.heard if "accordions" in content]
    assert len(engine.heard) == n_calls
    assert len(reading) == 1
    assert fold.texts[0] == EDIT
    assert sorted(fold.keys) == list(range(1, n_calls + 1))


def test_an_appended_block_costs_one_call_of_a_chain_that_began_with_a_given_text() -> None:
    summariser = make_summariser()
    with SummaryStore(":memory:") as store:
        _, first = fold_from(EDIT, 9, summariser, store)
        _, second = fold_from(EDIT, 12, summariser, store)
        _, other = fold_from(EDIT + " Or so.", 12, summariser, store)
    assert [len(engine.heard) for engine in (first, second, other)] == [3, 1, 4]


@pytest.mark.parametrize("blank", ["", "  ", "\u200b\n"])
def test_a_blank_text_is_no_text(blank: str) -> None:
    summariser = make_summariser()
    fold = start_fold(History("u", item_ids(0, 3)), summariser, blank)
    assert [call.kind for call in fold.calls] == ["first"]


def test_counts_are_put_behind_a_given_text() -> None:
    summariser = make_summariser("counted")
    fold = start_fold(History("u", item_ids(0, 4)), summariser, EDIT)
    text = profile(fold, summariser).text
    alone = profile(start_fold(History("u", item_ids(0, 4)), summariser), summariser).text
    assert text == f"{EDIT} Since then: {alone}"
    assert profile(start_fold(History("u", ()), summariser, EDIT), summariser).text == EDIT


def test_without_a_method_a_given_text_stays_as_it_is() -> None:
    summariser = make_summariser("none")
    fold = start_fold(History("u", item_ids(0, 4)), summariser, EDIT)
    assert profile(fold, summariser).text == EDIT


def test_folds_that_need_no_failed_call_are_done() -> None:
    summariser = make_summariser()
    folds = [start_fold(History(f"u{n}", item_ids(9 * n, 9 * n + 6)), summariser) for n in range(3)]
    bad = FakeGenerator(fail_on=lambda prompt: word(9) in prompt.messages[-1].content)
    with SummaryStore(":memory:") as store, pytest.raises(EngineError, match="1 of 3 profiles"):
        complete(folds, summariser, bad, store)
    assert [fold.done for fold in folds] == [True, False, True]


def test_a_kept_text_names_the_users_that_waited_for_it() -> None:
    class Kept(SummaryStore):
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
