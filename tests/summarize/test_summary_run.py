"""Profiles are a pure function of histories and settings, and no call is ever paid for twice."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ITEMS, fold_all, full_disk, item_ids, make_summariser, n_calls, totals
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.errors import EngineError, OutputError
from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import SummaryProgress, summarize
from trsr.summarize.prompts import load_summary_template
from trsr.summarize.store import SqliteStore
from trsr.summarize.user_plan import Fold, profile
from trsr.templating import Template
from trsr.types import History

METHODS = ["recurrent", "hierarchical"]
SIZE = 3  # items in a block
HISTORIES = [item_ids(0, 11), item_ids(20, 29), item_ids(40, 42), item_ids(60, 67)]


class Engine:
    """A fake engine whose every result passes through `change`, which may also raise."""

    def __init__(
        self, change: Callable[[Generation], Generation], model_id: str = "fake@1", shuffle: bool = True
    ) -> None:
        self.model_id = model_id
        self.change = change
        self.fake = FakeGenerator(shuffle=shuffle)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        yield from map(self.change, self.fake.generate(prompts, params))

    def close(self) -> None: ...


class ShuffledEngine(Engine):
    """Finishes the calls of a round in a random order, as parallel workers do."""

    def __init__(self, seed: int) -> None:
        super().__init__(lambda result: result)
        self.random = random.Random(seed)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        results = list(super().generate(prompts, params))
        self.random.shuffle(results)
        yield from results


class TellingEngine(FakeGenerator):
    """Writes a text that tells its whole prompt apart from every other."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for index, prompt in enumerate(prompts):
            yield Generation(index, prompt_key(prompt, self.model_id, params), 1, 1, 0.0)


def texts(folds: Sequence[Fold]) -> dict[tuple[str, ...], str]:
    return {fold.history.item_ids: fold.texts[len(fold.calls) - 1] for fold in folds}


def rewritten(result: Generation, text: str) -> Generation:
    return Generation(result.index, text, result.n_prompt_tokens, 1, result.seconds)


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
    with SqliteStore(":memory:") as store:
        histories = [blocks_of(one), blocks_of(other)]
        first, second = fold_all(histories, make_summariser(block_size=SIZE), store, TellingEngine())
    for place in range(min(len(one), len(other))):
        same_beginning = one[: place + 1] == other[: place + 1]
        assert (first.keys[place] == second.keys[place]) == same_beginning


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, SIZE))
def test_an_appended_recurrent_block_costs_exactly_one_call(n_blocks: int, n_new: int) -> None:
    summariser = make_summariser(block_size=SIZE)
    with SqliteStore(":memory:") as store:
        assert n_calls([item_ids(0, SIZE * n_blocks)], summariser, store) == n_blocks
        assert n_calls([item_ids(0, SIZE * n_blocks + n_new)], summariser, store) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(2, 6), st.integers(1, SIZE))
def test_an_appended_hierarchical_block_costs_one_call_and_one_path(
    n_blocks: int, fan_in: int, n_new: int
) -> None:
    summariser = make_summariser("hierarchical", block_size=SIZE, fan_in=fan_in)
    with SqliteStore(":memory:") as store:
        n_calls([item_ids(0, SIZE * n_blocks)], summariser, store)
        made = n_calls([item_ids(0, SIZE * n_blocks + n_new)], summariser, store)
    assert 2 <= made <= 1 + depth(n_blocks + 1, fan_in)


@pytest.mark.parametrize("method", METHODS)
def test_a_second_run_costs_nothing_and_gives_the_same(tmp_path: Path, method: str) -> None:
    summariser = make_summariser(method)
    with SqliteStore(tmp_path / "s.sqlite") as store:
        first = fold_all(HISTORIES, summariser, store)
    with SqliteStore(tmp_path / "s.sqlite") as store:
        engine = FakeGenerator()
        second = fold_all(HISTORIES, summariser, store, engine)
    assert engine.n_calls == 0
    assert [fold.texts for fold in second] == [fold.texts for fold in first]
    assert [fold.keys for fold in second] == [fold.keys for fold in first]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(HISTORIES), seed=st.integers(0, 1000))
def test_neither_the_order_of_users_nor_of_completion_changes_a_profile(
    method: str, order: list[tuple[str, ...]], seed: int
) -> None:
    summariser = make_summariser(method)
    with SqliteStore(":memory:") as store:
        expected = texts(fold_all(HISTORIES, summariser, store, FakeGenerator(shuffle=False)))
    with SqliteStore(":memory:") as store:
        folds = fold_all(order, summariser, store, ShuffledEngine(seed))
        assert texts(folds) == expected
        assert [fold.history.item_ids for fold in folds] == order
    with SqliteStore(":memory:") as store:
        one_by_one = [fold_all([history], summariser, store)[0] for history in order]
    assert texts(one_by_one) == expected


@pytest.mark.parametrize("method", METHODS)
def test_two_equal_histories_ask_once(method: str) -> None:
    summariser = make_summariser(method)
    with SqliteStore(":memory:") as store:
        alone = n_calls([item_ids(0, 11)], summariser, store)
    seen: list[SummaryProgress] = []
    engine = FakeGenerator()
    with SqliteStore(":memory:") as store:
        users = [History("a", item_ids(0, 11)), History("b", item_ids(0, 11))]
        folds = summarize(users, summariser, engine, store, seen.append)
    assert engine.n_calls == alone
    assert folds[0].texts == folds[1].texts
    assert (seen[-1].n_calls, seen[-1].n_calls_made, seen[-1].n_calls_known) == (2 * alone, alone, alone)


def test_two_points_of_one_history_share_their_beginning() -> None:
    with SqliteStore(":memory:") as store:
        made = n_calls([item_ids(0, 15), item_ids(0, 9)], make_summariser(block_size=3), store)
    assert made == 5


def test_users_run_side_by_side() -> None:
    sizes = []

    class Counting(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                sizes.append(len(prompts))  # what was asked so far
                yield result

    with SqliteStore(":memory:") as store:
        fold_all([item_ids(0, 9), item_ids(20, 29), item_ids(40, 43)], make_summariser(), store, Counting())
    assert sizes[0] == 3
    assert max(asked - answered for answered, asked in enumerate(sizes)) == 3
    assert sizes[-1] == 3 + 2 + 2


def changed_template() -> Template:
    template = load_summary_template("generic", "any")
    return Template(
        template.name, template.source.replace("oldest first", "from the oldest"), template.variables
    )


@pytest.mark.parametrize("method", METHODS)
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
    method: str, change: dict[str, Any]
) -> None:
    """Every text carries what made it, so a stale one would show."""
    change = dict(change)
    model_id = change.pop("model_id", "fake@1")

    def run(store: SqliteStore, changed: bool) -> tuple[list[Fold], int]:
        summariser = make_summariser(method, **change) if changed else make_summariser(method)
        mark = "changed" if changed else "original"
        engine = Engine(
            lambda result: rewritten(result, f"{result.text} {mark}"), model_id if changed else "fake@1"
        )
        return fold_all(HISTORIES, summariser, store, engine), engine.fake.n_calls

    def keys(folds: Sequence[Fold]) -> set[str]:
        return {key for fold in folds for key in fold.keys.values()}

    with SqliteStore(":memory:") as store:
        before, made = run(store, changed=False)
        after, made_after = run(store, changed=True)
        assert made == len(keys(before))
        assert made_after == len(keys(after))
        assert not keys(before) & keys(after)
        assert all(text.endswith("changed") for fold in after for text in fold.texts.values())
        again, made_again = run(store, changed=False)
        assert made_again == 0
        assert [fold.texts for fold in again] == [fold.texts for fold in before]


@pytest.mark.parametrize("method", METHODS)
def test_a_failed_call_is_kept_as_a_row_and_only_it_is_tried_again(tmp_path: Path, method: str) -> None:
    file = tmp_path / "s.sqlite"
    summariser = make_summariser(method)
    healthy = FakeGenerator()
    with SqliteStore(":memory:") as store:
        expected = texts(fold_all(HISTORIES, summariser, store, healthy))
    n_all = healthy.n_calls
    bad = FakeGenerator(fail_on=lambda prompt: "aaaaa" in prompt.messages[-1].content)  # the word of item 0
    with SqliteStore(file) as store, pytest.raises(EngineError) as caught:
        fold_all(HISTORIES, summariser, store, bad)
    assert caught.value.retryable
    assert "1 summary calls failed and 1 of 4 profiles are unfinished" in str(caught.value)
    db = sqlite3.connect(file)
    assert db.execute("SELECT text, error FROM summaries WHERE error IS NOT NULL").fetchall() == [
        (None, "The fake engine was told to fail here.")
    ]
    assert db.execute("SELECT count(*) FROM summaries WHERE text = ''").fetchone() == (0,)
    db.close()
    with SqliteStore(file) as store:
        good = FakeGenerator()
        assert texts(fold_all(HISTORIES, summariser, store, good)) == expected
        assert good.n_calls == n_all - (bad.n_calls - 1)
        assert totals(store)["failed"] == 0
        assert totals(store)["attempts"] == n_all + 1


@pytest.mark.parametrize("method", METHODS)
def test_with_calls_failing_all_the_time_each_text_is_still_written_once(method: str) -> None:
    summariser = make_summariser(method)
    engine = FakeGenerator(fail_on=3)
    with SqliteStore(":memory:") as store:
        for _ in range(50):
            try:
                folds = fold_all(HISTORIES, summariser, store, engine)
                break
            except EngineError:
                continue
        counts = totals(store)
        assert counts["attempts"] == engine.n_calls
        assert counts["failed"] == 0
        assert counts["attempts"] - counts["calls"] == engine.n_calls // 3
        with SqliteStore(":memory:") as fresh:
            assert texts(folds) == texts(fold_all(HISTORIES, summariser, fresh))


@pytest.mark.parametrize("nothing", ["", "\u200b", "\n\u202e"])
def test_an_empty_answer_is_a_failed_call(nothing: str) -> None:
    engine = Engine(lambda result: rewritten(result, nothing))
    with SqliteStore(":memory:") as store:
        with pytest.raises(EngineError, match="the model wrote nothing"):
            fold_all(
                HISTORIES, make_summariser(template=load_summary_template("paper", "any")), store, engine
            )
        assert totals(store)["failed"] == totals(store)["calls"] == 4


@pytest.mark.parametrize("stop", [EngineError("the server is gone"), KeyboardInterrupt()])
def test_what_came_before_the_engine_broke_is_kept(stop: BaseException) -> None:
    results = iter(range(6))

    def change(result: Generation) -> Generation:
        if next(results, None) is None:
            raise stop
        return result

    summariser = make_summariser()
    with SqliteStore(":memory:") as store:
        with pytest.raises(type(stop)):
            fold_all(HISTORIES, summariser, store, Engine(change))
        assert totals(store)["calls"] == 6
        rest = n_calls(HISTORIES, summariser, store)
        assert rest == sum(len(make_summariser().blocks(history)) for history in HISTORIES) - 6


def test_an_engine_that_gives_no_answers_ends_in_an_error_not_in_a_loop() -> None:
    class Silent(FakeGenerator):
        def generate(self, *_: object) -> Iterator[Generation]:
            yield from ()

    with SqliteStore(":memory:") as store, pytest.raises(EngineError, match="the engine gave no answer"):
        fold_all(HISTORIES, make_summariser(), store, Silent())


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    summariser = make_summariser(block_size=1)
    histories = [item_ids(0, 60)]
    with SqliteStore(tmp_path / "s.sqlite") as store:
        with full_disk(60_000), pytest.raises(OutputError, match="free space"):
            fold_all(histories, summariser, store)
        kept = totals(store)["calls"]
    assert 0 < kept < 60
    with SqliteStore(tmp_path / "s.sqlite") as store:
        assert n_calls(histories, summariser, store) == 60 - kept


KILLED = """
import sys
sys.path[:0] = {path!r}
from helpers import ITEMS, fold_all, item_ids, make_summariser
from trsr.llm.fake import FakeGenerator
from trsr.summarize.store import SqliteStore

class Loud(FakeGenerator):
    def generate(self, prompts, params):
        for result in super().generate(prompts, params):
            yield result
            print("kept", flush=True)

fold_all([item_ids(0, 40)], make_summariser(block_size=1), SqliteStore({file!r}), Loud(delay=0.05))
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
    with SqliteStore(file) as store:
        kept = totals(store)["calls"]
        assert heard <= kept <= heard + 1 < 40
        assert n_calls([item_ids(0, 40)], make_summariser(block_size=1), store) == 40 - kept
        assert totals(store)["attempts"] == 40


@pytest.mark.parametrize("method", METHODS)
def test_a_profile_is_the_last_text_with_its_key(method: str) -> None:
    summariser = make_summariser(method)
    with SqliteStore(":memory:") as store:
        (fold,) = fold_all([item_ids(0, 8)], summariser, store)
        made = profile(fold, summariser)
        assert (made.user_id, made.method, made.n_items) == ("u0", method, 8)
        assert made.text == fold.texts[len(fold.calls) - 1]
        assert made.text.startswith("This person likes ")
        assert made.key is not None
        assert store.texts([made.key]) == {made.key: made.text}


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_history_has_an_empty_profile_and_needs_no_engine(method: str) -> None:
    summariser = make_summariser(method)
    with SqliteStore(":memory:") as store:
        (fold,) = summarize([History("u", ())], summariser, None, store)
    assert profile(fold, summariser).text == ""
    assert profile(fold, summariser).key is None


@pytest.mark.parametrize(("method", "begins"), [("none", ""), ("counted", "Most often: ")])
def test_methods_without_a_model_need_no_engine(method: str, begins: str) -> None:
    summariser = make_summariser(method)
    with SqliteStore(":memory:") as store:
        (fold,) = summarize([History("u", item_ids(0, 5))], summariser, None, store)
    made = profile(fold, summariser)
    assert made.text.startswith(begins)
    assert bool(made.text) == bool(begins)
    assert (made.method, made.n_items, made.key) == (method, 5, None)


@pytest.mark.parametrize("method", METHODS)
def test_counts_stand_behind_a_written_profile_and_cost_no_call(method: str) -> None:
    history = [item_ids(0, 7)]
    with SqliteStore(":memory:") as store:
        (plain,) = fold_all(history, make_summariser(method), store)
        calls = totals(store)["calls"]
        summariser = make_summariser(method, counts=True)
        (fold,) = fold_all(history, summariser, store)
        assert totals(store)["calls"] == calls
    counted = summariser.counted(fold.history)
    assert counted.startswith("Most often: ")
    assert profile(fold, summariser).text == f"{profile(plain, make_summariser(method)).text} {counted}"


def test_a_method_with_a_model_needs_an_engine() -> None:
    with SqliteStore(":memory:") as store, pytest.raises(EngineError, match="no engine was given"):
        summarize([History("u", item_ids(0, 5))], make_summariser(), None, store)


def test_progress_counts_calls_and_tokens() -> None:
    seen: list[tuple[int, int, int]] = []

    def look(progress: SummaryProgress) -> None:
        seen.append((progress.n_calls_made, progress.n_users_done, progress.n_generated_tokens))

    users = [History("a", item_ids(0, 6)), History("b", item_ids(20, 22))]
    with SqliteStore(":memory:") as store:
        summarize(users, make_summariser(), FakeGenerator(), store, look)
        assert seen[-1][:2] == (3, 2)
        assert seen[-1][2] == totals(store)["generated_tokens"] > 0
    assert seen == sorted(seen)


@pytest.mark.parametrize("method", METHODS)
def test_a_grounded_profile_is_made_of_phrases_of_its_items(method: str) -> None:
    summariser = make_summariser(method, grounded=True)
    prefill = summariser.template.own_text("prefill")
    with SqliteStore(":memory:") as store:
        folds = fold_all(HISTORIES, summariser, store, Engine(lambda result: result))
    for fold in folds:
        titles = [ITEMS[item_id].fields["title"] for item_id in fold.history.item_ids]
        for text in fold.texts.values():
            assert text.startswith(prefill)
            said = text.removeprefix(prefill).removesuffix(".").replace("; before that ", ", ").split(", ")
            assert {phrase.strip() for phrase in said} <= set(titles)


@pytest.mark.parametrize("method", METHODS)
def test_a_grounded_profile_speaks_of_the_newest_block_first_and_of_older_ones(method: str) -> None:
    summariser = make_summariser(method, grounded=True, n_phrases=6)
    with SqliteStore(":memory:") as store:
        (fold,) = fold_all([item_ids(0, 6)], summariser, store)
    new, old = fold.texts[len(fold.calls) - 1].split("; before that ")
    titles = [ITEMS[item_id].fields["title"] for item_id in item_ids(0, 6)]
    assert any(title in new for title in titles[3:])
    assert not any(title in new for title in titles[:3])
    assert any(title in old for title in titles[:3])


def test_a_text_with_a_phrase_that_was_never_read_is_a_failed_call() -> None:
    summariser = make_summariser("recurrent", grounded=True)
    engine = Engine(lambda result: rewritten(result, f"Kingkrapers, {result.text}"))
    with SqliteStore(":memory:") as store, pytest.raises(EngineError, match="wrote 'Kingkrapers'"):
        fold_all(HISTORIES[:1], summariser, store, engine)
