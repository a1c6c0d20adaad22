"""A call is one piece's to make, until it lets go."""

from __future__ import annotations

from trsr.batch.claims import ClaimTable


def test_what_one_has_claimed_is_left_to_it() -> None:
    table = ClaimTable()
    assert table.claim("a", ["k", "l"]) == ["k", "l"]
    assert table.claim("b", ["l", "m"]) == ["m"]


def test_a_piece_that_is_done_again_has_its_claims() -> None:
    table = ClaimTable()
    table.claim("a", ["k"])
    assert table.claim("a", ["k"]) == ["k"]


def test_released_claims_are_free_and_those_of_others_stay() -> None:
    table = ClaimTable()
    table.claim("a", ["k"])
    table.claim("b", ["l"])
    table.release("a")
    table.release("a")
    assert table.claim("c", ["k", "l"]) == ["k"]


def test_a_claim_ends_when_its_owner_takes_too_long() -> None:
    now = [0.0]
    table = ClaimTable(patience=10, clock=lambda: now[0])
    table.claim("a", ["k"])
    now[0] = 9.0
    assert table.claim("b", ["k"]) == []
    now[0] = 10.0
    assert table.claim("b", ["k"]) == ["k"]
    table.release("a")  # must not free what is another's by now
    assert table.claim("c", ["k"]) == []
