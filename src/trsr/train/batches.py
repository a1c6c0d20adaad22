"""Which users each process reads at once, so that a batch is the same however many processes share it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, Sampler

from trsr.errors import ConfigError
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup


@dataclass(frozen=True, slots=True)
class Place:
    """A group's place in the data set, and the weight of its loss in what a process passes backward."""

    group: int
    weight: float


def passes_per_batch(config: TrainConfig, n_processes: int) -> int:
    """Return how many forward passes a process makes for one batch.

    Raises:
        ConfigError: the processes cannot share a batch equally.
    """
    n_at_once = config.micro_batch_size * n_processes
    if config.batch_size % n_at_once:
        raise ConfigError(
            f"train.batch_size: found {config.batch_size} users a step, which {n_processes} processes with "
            f"micro_batch_size {config.micro_batch_size} cannot share equally; "
            f"choose a multiple of {n_at_once}."
        )
    return config.batch_size // n_at_once


class Shares(Sampler[list[Place]]):
    """What one process reads of each batch, a list of places a forward pass.

    The order of all groups depends on seed and epoch only; batch k is the same `batch_size` groups of it
    whatever the number of processes, and the last one of an epoch may be shorter. A step's loss is the mean
    over its batch's groups: the Trainer takes the mean over passes and processes, and weights make up for
    parts of unequal size. Where several processes share a batch, a part that is not full is filled with
    groups of weight 0, because all of them have to make the same passes.

    Args:
        n: Number of groups.
        config: For its sizes of batch and micro-batch.
        seed: Of the order.
        n_processes: How many processes share each batch.
        index: Which of them reads.
    """

    def __init__(self, n: int, config: TrainConfig, seed: int, n_processes: int = 1, index: int = 0) -> None:
        self._n, self._seed, self._epoch = n, seed, 0
        self._n_processes, self._index = n_processes, index
        self._batch_size, self._size = config.batch_size, config.micro_batch_size
        self._n_passes = passes_per_batch(config, n_processes)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._n, self._batch_size)
        return whole * self._n_passes + self._passes(rest)

    def __iter__(self) -> Iterator[list[Place]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._n, generator=generator).tolist()
        for start in range(0, self._n, self._batch_size):
            yield from self._share(order[start : start + self._batch_size])

    def _passes(self, n_users: int) -> int:
        return -(-n_users // (self._size * self._n_processes))

    def _share(self, batch: list[int]) -> Iterator[list[Place]]:
        n_passes = self._passes(len(batch))
        weight = n_passes * self._n_processes / len(batch)
        for number in range(n_passes):
            start = (number * self._n_processes + self._index) * self._size
            part = [Place(group, weight) for group in batch[start : start + self._size]]
            if self._n_processes > 1:
                part += [Place(batch[0], 0.0)] * (self._size - len(part))
            yield part


class WeightedGroups(Dataset[tuple[TrainingGroup, float]]):
    """The groups of an epoch by their places."""

    def __init__(self, groups: EpochGroups) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: Place) -> tuple[TrainingGroup, float]:
        return self.groups[place.group], place.weight
