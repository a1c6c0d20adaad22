"""A call is one piece's to make, until it lets go."""

from __future__ import annotations

from trsr.experiment.ray_workers import ClaimTable


def test_what_one_has_claimed_is_left_to_it() -> None:
    table = ClaimTable()
    assert table.claim("a", ["k", "l"]) == []
    assert table.claim("b", ["l", "m"]) == ["l"]
    assert table.claim("a", ["k", "l", "m"]) == ["m"]


def test_a_piece_that_is_done_again_has_its_claims() -> None:
    table = ClaimTable()
    table.claim("a", ["k"])
    assert table.claim("a", ["k"]) == []


def test_released_claims_are_free_and_those_of_others_stay() -> None:
    table = ClaimTable()
    table.claim("a", ["k"])
    table.claim("b", ["l"])
    table.release("a")
    table.release("a")
    assert table.claim("c", ["k", "l"]) == ["l"]


def test_a_call_that_failed_is_free_and_the_others_are_not() -> None:
    table = ClaimTable()
    table.claim("a", ["k", "l"])
    table.claim("b", ["m"])
    table.release("a", ["k", "m"])  # the second is not its own
    assert table.claim("c", ["k", "l", "m"]) == ["l", "m"]
    table.release("a")
    assert table.claim("c", ["k", "l", "m"]) == ["m"]


def test_claims_end_when_their_owner_is_not_heard_for_too_long() -> None:
    now = [0.0]
    table = ClaimTable(patience=10, clock=lambda: now[0])
    table.claim("a", ["k"])
    now[0] = 6.0
    table.claim("a", [])
    now[0] = 15.0
    assert table.claim("b", ["k"]) == ["k"]
    now[0] = 16.0
    assert table.claim("b", ["k"]) == []
    table.release("a")  # must not free what is another's by now
    assert table.claim("c", ["k"]) == ["k"]
