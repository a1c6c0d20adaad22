"""What the server learns of the machine before it serves."""

from __future__ import annotations

from itertools import count

import pytest
from serve_parts import Recording, fake_recommender

from trsr.serve.loading import MAX_RANKED, MIN_RANKED, Speed, measure


def test_the_slower_the_machine_the_fewer_are_ranked() -> None:
    assert Speed(rate=1000, n_prefix=500, n_candidate=60).n_ranked == 25
    assert Speed(rate=100, n_prefix=500, n_candidate=60).n_ranked == MIN_RANKED
    assert Speed(rate=1e6, n_prefix=500, n_candidate=60).n_ranked == MAX_RANKED
    assert Speed(rate=8000, n_prefix=500, n_candidate=60).pass_tokens == 400


def test_the_quickest_reading_counts_and_none_knows_a_prefix() -> None:
    scorer = Recording()
    ticks = count()
    speed = measure(fake_recommender(scorer), clock=lambda: float(next(ticks)))
    assert speed is not None
    groups = [group for call in scorer.calls for group in call]
    assert len({group.prefix for group in groups}) == len(groups) > 1
    assert speed.rate == max(len(g.prefix) + sum(map(len, g.suffixes)) for g in groups)  # each took a second


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_small_catalogue_is_enough(n: int) -> None:
    recommender = fake_recommender()
    for name in list(recommender.catalogue.items)[n:]:
        del recommender.catalogue.items[name]
    speed = measure(recommender)
    assert (speed is None) == (n == 0)
    assert speed is None or speed.n_ranked == MAX_RANKED
