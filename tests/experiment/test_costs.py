"""Hours, machines and money follow from tokens by plain arithmetic, and are unknown without a rate."""

from __future__ import annotations

from trsr.experiment.forecast import Rates, Work, price

WORK = [Work("summarize", 10, 60_000_000, 12_000_000), Work("train", 4, 8_000_000, weight=3)]


def test_hours_machines_and_money() -> None:
    summaries, training, total = price(WORK, Rates(10_000, 0.5, within=1.0))
    assert summaries["hours"] == 72e6 / 10_000 / 3600 == 2.0
    assert (summaries["machines"], summaries["money"]) == (2, 36.0)
    assert training["hours"] == 24e6 / 10_000 / 3600
    assert (training["machines"], training["money"]) == (1, 12.0)
    assert total["hours"] == summaries["hours"] + training["hours"]
    assert (total["calls"], total["read"], total["machines"], total["money"]) == (14, 68_000_000, 3, 48.0)


def test_without_a_rate_nothing_is_made_up() -> None:
    rows = price(WORK, Rates())
    assert {row[name] for row in rows for name in ("hours", "machines", "money")} == {None}
    assert rows[-1]["calls"] == 14


def test_nothing_to_do_takes_no_machine() -> None:
    assert price([Work("summarize", 0, 0)], Rates(1.0, 1.0))[-1]["machines"] == 0
