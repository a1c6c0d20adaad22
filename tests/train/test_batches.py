"""A batch is the same users whatever the number of processes, and its loss the mean over them."""

from __future__ import annotations

import math

import pytest

from trsr.errors import ConfigError
from trsr.train.batches import Place, Shares, passes_per_batch
from trsr.train.config import TrainConfig


def steps(n: int, config: TrainConfig, n_processes: int, epoch: int = 0) -> list[list[list[Place]]]:
    """Return what each step reads, a list of passes of all processes."""
    shares = [Shares(n, config, 3, n_processes, index) for index in range(n_processes)]
    for share in shares:
        share.set_epoch(epoch)
    parts = [list(share) for share in shares]
    assert {len(part) for part in parts} == {len(shares[0])}
    size = passes_per_batch(config, n_processes)
    return [
        [place for part in parts for place in part[start : start + size]]
        for start in range(0, len(parts[0]), size)
    ]


@pytest.mark.parametrize("n", [14, 16, 17, 3])
@pytest.mark.parametrize(("n_processes", "micro"), [(2, 1), (4, 1), (2, 2), (1, 2), (8, 1)])
def test_any_number_of_processes_reads_the_same_batches(n: int, n_processes: int, micro: int) -> None:
    one = steps(n, TrainConfig(batch_size=8), 1, epoch=1)
    several = steps(n, TrainConfig(batch_size=8, micro_batch_size=micro), n_processes, epoch=1)
    assert len(one) == len(several) == math.ceil(n / 8)
    for left, right in zip(one, several, strict=True):
        found = [{p.group for part in step for p in part if p.weight} for step in (left, right)]
        assert found[0] == found[1]


@pytest.mark.parametrize("n", [14, 17])
@pytest.mark.parametrize(("n_processes", "micro"), [(1, 1), (1, 4), (2, 2), (4, 2)])
def test_each_user_of_a_step_counts_the_same(n: int, n_processes: int, micro: int) -> None:
    for step in steps(n, TrainConfig(batch_size=8, micro_batch_size=micro), n_processes):
        # The Trainer divides by the passes of a process, and the processes' gradients are averaged.
        shares = [place.weight / len(step) for part in step for place in part if place.weight]
        assert shares == pytest.approx([1 / len(shares)] * len(shares))
        assert n_processes == 1 or {len(part) for part in step} == {micro}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    config = TrainConfig(batch_size=8)
    assert steps(16, config, 2) == steps(16, config, 2)
    assert steps(16, config, 2) != steps(16, config, 2, epoch=1)
    assert list(Shares(16, config, 3)) != list(Shares(16, config, 4))


def test_a_batch_that_cannot_be_shared_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="choose a multiple of 3") as caught:
        Shares(14, TrainConfig(batch_size=8), 0, 3, 0)
    assert "\n" not in str(caught.value)
