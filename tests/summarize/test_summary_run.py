"""Profiles are a pure function of histories and settings, and no call is ever paid for twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ITEMS, bind_summarizer, item_ids, n_calls, summarize_all, totals
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import summarize
from trsr.summarize.prompts import load_summary_template
from trsr.summarize.store import RowFilter, Store, open_store
from trsr.summarize.user_plan import SummaryPlan, profile
from trsr.templating import Template
from trsr.types import History

BY_METHOD = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
SIZE = 3  # items in a block
HISTORIES = [item_ids(0, 11), item_ids(20, 29), item_ids(40, 42), item_ids(60, 67)]
USER = History("u", item_ids(0, 5))


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(":memory:") as opened:
        yield opened


class Engine:
    """A fake engine whose every result passes through `change`, which may also raise."""

    def __init__(self, change: Callable[[Generation], Generation], model_id: str = "fake@1") -> None:
        self.model_id = model_id
        self.change = change
        self.fake = FakeGenerator()

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        yield from map(self.change, self.fake.generate(prompts, params))

    def close(self) -> None: ...


class ShuffledEngine(FakeGenerator):
    """Finishes the calls of a round in a random order, as parallel workers do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        results = list(super().generate(prompts, params))
        self.random.shuffle(results)
        yield from results


class KeyEngine(FakeGenerator):
    """Writes a text that no other prompt gets."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for index, prompt in enumerate(prompts):
            yield Generation(index, prompt_key(prompt, self.model_id, params), 1, 1, 0.0)


def answers(text: str) -> Engine:
    """Return an engine that gives one answer to every prompt."""
    return Engine(lambda result: replace(result, text=text))


def texts(plans: Sequence[SummaryPlan]) -> dict[tuple[str, ...], str]:
    return {plan.history.item_ids: plan.texts[len(plan.calls) - 1] for plan in plans}


def depth(n: int, fan_in: int) -> int:
    levels = 0
    while n > 1:
        n = -(-n // fan_in)
        levels += 1
    return levels


def blocks_of(numbers: Sequence[int]) -> tuple[str, ...]:
    """Return a history whose block number k is chosen by `numbers[k]`."""
    return tuple(i for number in numbers for i in item_ids(SIZE * number, SIZE * (number + 1)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6), st.integers(0, 5))
def test_the_key_of_recurrent_call_k_depends_on_blocks_up_to_k_only(
    one: list[int], other: list[int], n_shared: int
) -> None:
    other = [*one[:n_shared], *other]
    with open_store(":memory:") as store:
        histories = [blocks_of(one), blocks_of(other)]
        first, second = summarize_all(histories, bind_summarizer(block_size=SIZE), store, KeyEngine())
    for place in range(min(len(one), len(other))):
        same_beginning = one[: place + 1] == other[: place + 1]
        assert (first.keys[place] == second.keys[place]) == same_beginning


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(2, 6), st.integers(1, SIZE))
def test_an_appended_block_costs_one_call_and_in_a_tree_one_path(
    n_blocks: int, fan_in: int, n_new: int
) -> None:
    old, new = [item_ids(0, SIZE * n_blocks)], [item_ids(0, SIZE * n_blocks + n_new)]
    with open_store(":memory:") as store:
        chain = bind_summarizer(block_size=SIZE)
        assert (n_calls(old, chain, store), n_calls(new, chain, store)) == (n_blocks, 1)
        tree = bind_summarizer("hierarchical", block_size=SIZE, fan_in=fan_in)
        n_calls(old, tree, store)
        assert 1 <= n_calls(new, tree, store) <= 1 + depth(n_blocks + 1, fan_in)


@BY_METHOD
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(HISTORIES), seed=st.integers(0, 1000))
def test_neither_the_order_of_users_nor_of_completion_changes_a_profile(
    method: str, order: list[tuple[str, ...]], seed: int
) -> None:
    summarizer = bind_summarizer(method)
    with open_store(":memory:") as store:
        expected = texts(summarize_all(HISTORIES, summarizer, store, FakeGenerator(shuffle=False)))
    with open_store(":memory:") as store:
        plans = summarize_all(order, summarizer, store, ShuffledEngine(seed))
        assert texts(plans) == expected
        assert [plan.history.item_ids for plan in plans] == order
    with open_store(":memory:") as store:
        assert texts([summarize_all([history], summarizer, store)[0] for history in order]) == expected


def changed_template() -> Template:
    template = load_summary_template("generic", "any")
    source = template.source.replace("oldest first", "from the oldest")
    return Template(template.name, source)


@BY_METHOD
@pytest.mark.parametrize(
    "change",
    [
        {"template": changed_template()},
        {"max_new_tokens": 3},
        {"temperature": 0.5},
        {"frequency_penalty": 0.0},
        {"model_id": "fake@2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_template_model_or_parameter_never_returns_a_stale_text(
    method: str, change: dict[str, Any], store: Store
) -> None:
    def run(mark: str, model_id: str = "fake@1", **change: Any) -> tuple[list[SummaryPlan], set[str], int]:
        engine = Engine(lambda result: replace(result, text=f"{result.text} {mark}"), model_id)
        plans = summarize_all(HISTORIES, bind_summarizer(method, **change), store, engine)
        return plans, {key for plan in plans for key in plan.keys.values()}, engine.fake.n_calls

    before, keys, made = run("original")
    after, new_keys, made_after = run("changed", **change)
    assert (made, made_after) == (len(keys), len(new_keys))
    assert not keys & new_keys
    assert all(text.endswith("changed") for plan in after for text in plan.texts.values())
    again, _, made_again = run("original")
    assert made_again == 0
    assert [plan.texts for plan in again] == [plan.texts for plan in before]


@BY_METHOD
def test_a_failed_call_is_kept_as_a_row_and_only_it_is_tried_again(method: str, store: Store) -> None:
    summarizer = bind_summarizer(method)
    healthy, bad, good = (
        FakeGenerator(),
        FakeGenerator(fail_on=lambda prompt: "aaaaa" in str(prompt)),
        FakeGenerator(),
    )
    with open_store(":memory:") as fresh:
        expected = texts(summarize_all(HISTORIES, summarizer, fresh, healthy))
    with pytest.raises(
        EngineError, match="1 summary calls failed and 1 of 4 profiles are unfinished"
    ) as caught:
        summarize_all(HISTORIES, summarizer, store, bad)
    assert caught.value.retryable
    (failed,) = (row for row in store.rows() if row.error is not None)
    assert (failed.text, failed.error) == (None, "The fake engine was set to fail here.")
    assert texts(summarize_all(HISTORIES, summarizer, store, good)) == expected
    assert good.n_calls == healthy.n_calls - (bad.n_calls - 1)
    assert totals(store)["failed"] == 0
    assert totals(store)["attempts"] == healthy.n_calls + 1


@BY_METHOD
def test_with_calls_failing_all_the_time_each_text_is_still_written_once(method: str, store: Store) -> None:
    summarizer, engine = bind_summarizer(method), FakeGenerator(fail_on=3)
    for _ in range(50):
        try:
            plans = summarize_all(HISTORIES, summarizer, store, engine)
            break
        except EngineError:
            continue
    counts = totals(store)
    assert (counts["attempts"], counts["failed"]) == (engine.n_calls, 0)
    assert counts["attempts"] - counts["calls"] == engine.n_calls // 3
    with open_store(":memory:") as fresh:
        assert texts(plans) == texts(summarize_all(HISTORIES, summarizer, fresh))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "the model wrote nothing"),
        ("\u200b", "the model wrote nothing"),
        ("\n\u202e", "the model wrote nothing"),
        ("<think>", "still thinking aloud"),
        ("<think>\nPens.\n</think>\n", "its thoughts and no answer"),
        ("Here is the updated summary of the user's preferences:", "an introduction and no answer"),
    ],
)
def test_nothing_thoughts_and_introductions_are_failed_calls(answer: str, reason: str, store: Store) -> None:
    summarizer = bind_summarizer(template=load_summary_template("paper", "any"))
    with pytest.raises(EngineError, match=reason):
        summarize_all(HISTORIES, summarizer, store, answers(answer))
    assert totals(store)["failed"] == totals(store)["calls"] == 4
    plans = summarize_all(HISTORIES, summarizer, store, answers("<think>Hm.</think>\n\nSure! pens.\nMore."))
    assert {text.removeprefix("Sure! ") for plan in plans for text in plan.texts.values()} == {"pens."}


def test_a_thought_that_an_earlier_version_stored_as_a_text_is_not_used(store: Store) -> None:
    summarizer = bind_summarizer()
    summarize_all(HISTORIES[:1], summarizer, store)
    rows = [row._replace(text="Here is the summary:") for row in store.rows()]
    store.remove(RowFilter())
    store.add(rows)
    with pytest.raises(EngineError, match="trsr store gc --model"):
        summarize_all(HISTORIES[:1], summarizer, store)


def test_a_template_can_ask_for_more_than_one_line_and_no_other_key_changes(store: Store) -> None:
    summarizer = bind_summarizer()
    assert summarizer.params == summarizer.config.params
    many = Template("many", f"{summarizer.template.source}\n[[stop]]\n")
    assert replace(summarizer, template=many).params.stop == ()
    to_mark = Template("mark", f"{summarizer.template.source}\n[[stop]]\n###\n")
    assert replace(summarizer, template=to_mark).params.stop == ("###",)
    engine = answers("## Summary\n- pens\n- ink")
    (plan,) = summarize_all([item_ids(0, 2)], replace(summarizer, template=many), store, engine)
    assert plan.texts[0].endswith("- pens - ink")


@pytest.mark.parametrize("stop", [EngineError("the server is gone"), KeyboardInterrupt()])
def test_what_came_before_the_engine_broke_is_kept(stop: BaseException, store: Store) -> None:
    results = iter(range(6))

    def change(result: Generation) -> Generation:
        if next(results, None) is None:
            raise stop
        return result

    summarizer = bind_summarizer()
    with pytest.raises(type(stop)):
        summarize_all(HISTORIES, summarizer, store, Engine(change))
    assert totals(store)["calls"] == 6
    n_blocks = sum(len(summarizer.blocks(history)) for history in HISTORIES)
    assert n_calls(HISTORIES, summarizer, store) == n_blocks - 6


def test_an_engine_that_gives_no_answers_ends_in_an_error_not_in_a_loop(store: Store) -> None:
    class Silent(FakeGenerator):
        def generate(self, *_: object) -> Iterator[Generation]:
            yield from ()

    with pytest.raises(EngineError, match="the engine gave no answer"):
        summarize_all(HISTORIES, bind_summarizer(), store, Silent())


KILLED = """
import sys
sys.path[:0] = {path!r}
from helpers import summarize_all, item_ids, bind_summarizer
from trsr.llm.fake import FakeGenerator
from trsr.summarize.store import open_store

class Loud(FakeGenerator):
    def generate(self, prompts, params):
        for result in super().generate(prompts, params):
            yield result
            print("kept", flush=True)

summarize_all([item_ids(0, 40)], bind_summarizer(block_size=1), open_store({file!r}), Loud(delay=0.05))
"""


def test_sigkill_loses_at_most_the_call_in_flight(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    script = KILLED.format(path=[str(Path(__file__).parents[1])], file=str(file))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline() == "kept\n"
        process.send_signal(signal.SIGKILL)
        heard = 5 + len(process.stdout.readlines())
    assert process.returncode == -signal.SIGKILL
    with open_store(file) as store:
        kept = totals(store)["calls"]
        assert heard <= kept <= heard + 1 < 40
        assert n_calls([item_ids(0, 40)], bind_summarizer(block_size=1), store) == 40 - kept
        assert totals(store)["attempts"] == 40


@BY_METHOD
def test_a_profile_is_the_last_text_with_its_key_and_counts_cost_no_call(method: str, store: Store) -> None:
    plain, with_counts = bind_summarizer(method), bind_summarizer(method, counts=True)
    (plan,) = summarize_all([item_ids(0, 8)], plain, store)
    made = profile(plan, plain)
    assert (made.user_id, made.method, made.n_items) == ("u0", method, 8)
    assert made.text == plan.texts[len(plan.calls) - 1]
    assert made.text.startswith("This person likes ")
    assert made.key is not None
    assert store.texts([made.key]) == {made.key: made.text}
    assert n_calls([item_ids(0, 8)], with_counts, store) == 0
    counted = with_counts.counted(plan.history)
    assert counted.startswith("Most often: ")
    assert profile(plan, with_counts).text == f"{made.text} {counted}"


@pytest.mark.parametrize(
    ("method", "n_items", "begins"),
    [("none", 5, ""), ("counted", 5, "Most often: "), ("recurrent", 0, ""), ("hierarchical", 0, "")],
)
def test_a_profile_without_calls_needs_no_engine(
    method: str, n_items: int, begins: str, store: Store
) -> None:
    summarizer = bind_summarizer(method)
    (plan,) = summarize([History("u", item_ids(0, n_items))], summarizer, None, store)
    made = profile(plan, summarizer)
    assert made.text.startswith(begins)
    assert bool(made.text) == bool(begins)
    assert (made.method, made.n_items, made.key) == (method, n_items, None)


def test_a_method_with_a_model_needs_an_engine(store: Store) -> None:
    with pytest.raises(EngineError, match="no engine was given"):
        summarize([USER], bind_summarizer(), None, store)


@BY_METHOD
def test_a_grounded_profile_consists_of_phrases_of_its_items_the_newest_block_first(
    method: str, store: Store
) -> None:
    summarizer = bind_summarizer(method, grounded=True, n_phrases=6)
    prefill = summarizer.template.own_text("prefill")
    plans = summarize_all([*HISTORIES, item_ids(0, 6)], summarizer, store)
    for plan in plans:
        titles = {ITEMS[item_id].fields["title"] for item_id in plan.history.item_ids}
        for text in plan.texts.values():
            assert text.startswith(prefill)
            said = text.removeprefix(prefill).removesuffix(".").replace("; before that ", ", ").split(", ")
            assert {phrase.strip() for phrase in said} <= titles
    new, old = texts(plans)[item_ids(0, 6)].split("; before that ")
    titles_in_order = [ITEMS[item_id].fields["title"] for item_id in item_ids(0, 6)]
    assert any(title in new for title in titles_in_order[3:])
    assert not any(title in new for title in titles_in_order[:3])
    assert any(title in old for title in titles_in_order[:3])


def test_a_text_with_a_phrase_that_was_never_read_is_a_failed_call(store: Store) -> None:
    engine = Engine(lambda result: replace(result, text=f"Kingkrapers, {result.text}"))
    with pytest.raises(EngineError, match="wrote 'Kingkrapers'"):
        summarize_all(HISTORIES[:1], bind_summarizer("recurrent", grounded=True), store, engine)
