"""Processes that share a store leave each other's calls alone, and take the texts when they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers import fold_all, item_ids, make_summariser

from trsr.errors import EngineError
from trsr.experiment.ray_workers import ClaimTable
from trsr.llm.fake import FakeGenerator
from trsr.summarize import executor
from trsr.summarize.executor import complete
from trsr.summarize.store import StoredCall, SummaryStore
from trsr.summarize.user_plan import start_fold
from trsr.types import History

HISTORIES = [item_ids(0, 9), item_ids(20, 29)]
USERS = [History(f"u{number}", items) for number, items in enumerate(HISTORIES)]


class Others:
    """Claims under which another process makes the call asked first; it is done after some refusals."""

    def __init__(self, store: SummaryStore, known: dict[str, StoredCall], n_refusals: int) -> None:
        self.store, self.known = store, known
        self.n_left = n_refusals
        self.theirs: str | None = None

    def claim(self, keys: Sequence[str]) -> set[str]:
        self.theirs = self.theirs or keys[0]
        if self.theirs in keys:
            self.n_left -= 1
            if self.n_left == 0:
                self.store.put(self.known[self.theirs])
        return {self.theirs} & set(keys)

    def release(self, keys: Sequence[str]) -> None:
        raise AssertionError(f"{keys} did not fail")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SummaryStore]:
    with SummaryStore(tmp_path / "s.sqlite") as opened:
        yield opened


@pytest.mark.parametrize("n_refusals", [1, 4])
def test_a_call_that_another_makes_is_waited_for_and_not_made(
    store: SummaryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_refusals: int
) -> None:
    monkeypatch.setattr(executor, "ELSEWHERE", 0.0)
    summariser = make_summariser()
    with SummaryStore(tmp_path / "alone.sqlite") as alone:
        expected = fold_all(HISTORIES, summariser, alone)
        known = alone.calls([key for fold in expected for key in fold.keys.values()])
    claims, engine = Others(store, known, n_refusals), FakeGenerator()
    folds = [start_fold(history, summariser) for history in USERS]
    complete(folds, summariser, engine, store, claims=claims)
    assert [fold.texts for fold in folds] == [fold.texts for fold in expected]
    assert engine.n_calls == len(known) - 1


def test_a_call_that_failed_is_free_for_others_and_no_other_is(store: SummaryStore) -> None:
    table, summariser = ClaimTable(), make_summariser()

    class Piece:
        def __init__(self, name: str) -> None:
            self.name = name

        def claim(self, keys: Sequence[str]) -> set[str]:
            return set(table.claim(self.name, keys))

        def release(self, keys: Sequence[str]) -> None:
            table.release(self.name, keys)

    first, again = ([start_fold(history, summariser) for history in USERS] for _ in range(2))
    failing = FakeGenerator(fail_on=lambda prompt: summariser.item_text("i3") in prompt.messages[-1].content)
    with pytest.raises(EngineError, match="1 summary calls failed"):
        complete(first, summariser, failing, store, claims=Piece("a"))
    made = [key for fold in first for key in fold.keys.values()]
    assert set(table.claim("c", made)) == set(made)
    complete(again, summariser, FakeGenerator(), store, claims=Piece("b"))
    assert all(fold.done for fold in again)
